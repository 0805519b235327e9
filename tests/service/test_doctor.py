"""What the doctor makes of a host: each thing that it may lack is one line that says what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from pegaflow.core.limits import GIB, MIB
from pegaflow.device import gpufacts
from pegaflow.device.gpufacts import Device, GpuFacts
from pegaflow.device.hugepages import HugePages
from pegaflow.service import doctor
from pegaflow.service.cli import app
from pegaflow.service.doctor import Line, Verdict
from pegaflow.service.poolsize import Memory

POOL = 8 * GIB
FIRST = Device(0, "NVIDIA H200", "0000:65:00.0", "GPU-1", numa_node=0, stays=True)
SECOND = replace(FIRST, number=1, bus="0000:b3:00.0", uuid="GPU-2")
WELL = GpuFacts(
    driver="580.159.04",
    cuda=(13, 0),
    devices=(FIRST, SECOND),
    cupys=(("cupy-cuda13x", "14.2.0"),),
    shm_huge="within_size",
    shm_bytes=64 * GIB,
)
HUGE = HugePages("/dev/hugepages", 2 * MIB, total=64, free=32, promised=0)


def lines(facts: GpuFacts, *, wanted: bool = True) -> list[Line]:
    return doctor.gpu(facts, POOL, wanted=wanted)


def test_a_host_that_has_everything() -> None:
    found = lines(WELL)
    assert {line.verdict for line in found} == {Verdict.OK}
    assert [line.about for line in found] == [
        *(
            "driver",
            "cupy",
            "NVRTC",
            "GPU 0",
            "GPU 1",
            "peer access",
            "memlock",
            "NUMA",
            "huge pages",
        ),
        *("/dev/shm", "pid namespace", "ptrace", "persistence"),
    ]
    assert str(found[0]) == "ok     driver: 580.159.04, for CUDA up to 13.0"


LACKING: list[tuple[dict[str, Any], str, str]] = [
    ({"error": "no libcuda.so.1", "devices": ()}, "driver", "container toolkit"),
    ({"cupys": (), "cupy_error": "No module named 'cupy'"}, "cupy", "pegaflow[gpu-cu13]"),
    ({"cupys": (), "cupy_error": "x", "cuda": (12, 8)}, "cupy", "'pegaflow[gpu]'"),
    ({"cuda": (12, 8)}, "cupy", "remove it, then pip install 'pegaflow[gpu]'"),
    ({"cupys": (("cupy-cuda12x", "14"), ("cupy-cuda13x", "14"))}, "cupy", "remove all of them"),
    ({"devices": ()}, "devices", "show some"),
    ({"devices": (replace(FIRST, compute_mode=3),)}, "GPU 0", "-i 0000:65:00.0 -c DEFAULT"),
    ({"devices": (replace(FIRST, compute_mode=2),)}, "GPU 0", "-c DEFAULT"),
    ({"memlock_bytes": 8 * MIB}, "memlock", "--ulimit memlock=-1"),
    ({"shm_bytes": 64 * MIB}, "/dev/shm", "--ipc=host"),
]
NOTED: list[tuple[dict[str, Any], str, str]] = [
    ({"devices": (replace(FIRST, name="NVIDIA H200 MIG 1g.18gb"),)}, "GPU 0", "one part only"),
    ({"nvrtc_error": "no libnvrtc.so.13"}, "NVRTC", "cupy-cuda13x[ctk]"),
    (
        {"nvrtc_error": "none", "cuda": (12, 8), "cupys": (("cupy-cuda12x", "14"),)},
        "NVRTC",
        "cupy-cuda12x[ctk]",
    ),
    ({"apart": ((0, 1),)}, "peer access", "nothing to do"),
    ({"nodes": 2, "devices": (FIRST, replace(SECOND, numa_node=1))}, "NUMA", "slower"),
    ({"nodes": 2, "devices": (replace(FIRST, numa_node=-1),)}, "NUMA", "slower"),
    ({"shm_huge": ""}, "huge pages", "huge=within_size"),
    ({"shm_huge": "never", "hugetlb": (HUGE,)}, "huge pages", "huge=within_size"),
    ({"shm_huge": "", "hugetlb": (replace(HUGE, total=4097),)}, "huge pages", "--use-hugepages"),
    ({"own_pids": True}, "pid namespace", "--pid=host"),
    ({"trace_scope": 2}, "ptrace", "ptrace_scope=1"),
    ({"devices": (replace(FIRST, stays=False),)}, "persistence", "-pm 1"),
    ({"devices": (replace(FIRST, stays=None),)}, "persistence", "nvidia-persistenced"),
]


@pytest.mark.parametrize(
    ("change", "about", "do", "verdict"),
    [*((*c, Verdict.LACKS) for c in LACKING), *((*c, Verdict.NOTE) for c in NOTED)],
)
def test_what_is_not_as_it_should_be_is_one_line(
    change: dict[str, Any], about: str, do: str, verdict: Verdict
) -> None:
    (line,) = (line for line in lines(replace(WELL, **change)) if line.verdict is not Verdict.OK)
    assert (line.about, line.verdict) == (about, verdict) and do in line.do, line


@pytest.mark.parametrize(
    "change",
    [
        {"memlock_bytes": POOL},
        {"cupys": (("cupy-cuda12x", "14.2.0"),)},
        {"trace_scope": 2, "may_trace": True},
        {"trace_scope": 1},
        {"nodes": 2},
        {"devices": (FIRST,)},
    ],
)
def test_what_is_good_enough_is_no_complaint(change: dict[str, Any]) -> None:
    assert {line.verdict for line in lines(replace(WELL, **change))} == {Verdict.OK}


def test_a_host_without_a_gpu_is_one_line() -> None:
    nothing = GpuFacts(files=False, error="no libcuda.so.1")
    (line,) = lines(nothing)
    assert line.verdict is Verdict.LACKS and "--gpus all" in line.do
    (line,) = lines(nothing, wanted=False)
    assert line.verdict is Verdict.NOTE


@pytest.mark.parametrize(
    ("places", "verdict", "said"),
    [
        ((replace(HUGE, total=4097, free=10),), Verdict.OK, "4097 of 2048 kB are reserved, 10 of"),
        ((HUGE,), Verdict.LACKS, "the pool needs 4097; "),
        ((HUGE,), Verdict.LACKS, "nr_hugepages"),
        ((replace(HUGE, writable=False),), Verdict.LACKS, "no file in /dev/hugepages"),
        ((), Verdict.LACKS, "no hugetlbfs is mounted"),
    ],
)
@pytest.mark.parametrize("host", [WELL, GpuFacts(files=False, error="no libcuda.so.1")])
def test_a_pool_that_is_to_be_of_huge_pages(
    host: GpuFacts, places: tuple[HugePages, ...], verdict: Verdict, said: str
) -> None:
    found = doctor.gpu(replace(host, hugetlb=places), POOL, wanted=False, huge=True)
    (line,) = (line for line in found if line.about == "huge pages")
    assert line.verdict is verdict and said in str(line)


def test_the_pool_is_what_is_asked_for_or_a_quarter_of_what_may_be_taken() -> None:
    memory = Memory(64 * GIB, 60 * GIB, None, 64 * MIB)
    assert doctor.pool_of(GIB, memory) == GIB
    assert doctor.pool_of(None, memory) == 16 * GIB
    assert doctor.pool_of(None, replace(memory, cgroup_room_bytes=8 * GIB)) == 2 * GIB
    assert doctor.pool_of(None, memory, (HUGE,)) == 63 * 2 * MIB
    assert doctor.pool_of(GIB, memory, (HUGE,)) == GIB


def told(monkeypatch: pytest.MonkeyPatch, facts: GpuFacts, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(gpufacts, "read", lambda: facts)
    done = CliRunner().invoke(app, ["doctor", "--pool-size", "8GiB", *words])
    return done.exit_code, done.output


def test_the_command_fails_if_something_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = told(monkeypatch, WELL, "--gpu")
    assert code == 0 and len(printed.splitlines()) == 13
    code, printed = told(monkeypatch, replace(WELL, shm_bytes=64 * MIB), "--gpu")
    assert code == 1 and "lacks  /dev/shm: 64 MiB, the pool has 8 GiB; " in printed
    code, printed = told(monkeypatch, replace(WELL, memlock_bytes=MIB), "--format", "json")
    assert code == 1 and [line["about"] for line in json.loads(printed)][6] == "memlock"


def test_no_gpu_is_an_error_where_there_is_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = GpuFacts(files=False, error="no libcuda.so.1")
    code, printed = told(monkeypatch, nothing, "--gpu")
    assert code == 1 and printed.startswith("lacks  GPU: no GPU here") and printed.count("\n") == 1
    code, printed = told(monkeypatch, nothing)
    assert code == 0 and printed.startswith("note   GPU: no GPU here")
