"""The default pool size and its reason; explicit sizes that cannot be."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.errors import UserError
from pegaflow.core.limits import GIB, MIB
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.core.pool.table import file_bytes
from pegaflow.device import hugepages
from pegaflow.device.hugepages import HugePages
from pegaflow.service.poolsize import Memory, choose, look, pin_note

EXTENT = 32 * MIB
ROOMY = Memory(
    total_bytes=64 * GIB, available_bytes=60 * GIB, cgroup_room_bytes=None, shm_free_bytes=32 * GIB
)


@pytest.mark.parametrize(
    ("change", "size", "reason"),
    [
        ({}, 16 * GIB, "a quarter of 64 GiB of memory"),
        (
            {"available_bytes": 5 * GIB},
            4 * GIB - 2 * EXTENT,
            "5 GiB of available memory less 1 GiB and the ledger",
        ),
        (
            {"cgroup_room_bytes": 3 * GIB},
            2 * GIB - EXTENT,
            "3 GiB left of the cgroup limit less 1 GiB and the ledger",
        ),
        ({"shm_free_bytes": 10 * GIB}, 8 * GIB, "80% of 10 GiB free in /dev/shm"),
    ],
)
def test_the_tightest_bound_is_the_size_and_the_reason(
    change: dict[str, int], size: int, reason: str
) -> None:
    chosen = choose(None, replace(ROOMY, **change), EXTENT)
    assert chosen.size == size
    assert chosen.reason.endswith(reason)


HUGE = HugePages("/dev/hugepages", 2 * MIB, total=5000, free=4108, promised=8)


@pytest.mark.parametrize(
    ("asked", "free", "size", "reason"),
    [
        (None, 4105, 8 * GIB, "4097 huge pages of 2048 kB in /dev/hugepages are free"),
        (None, 4104, 8 * GIB - EXTENT, "4096 huge pages of 2048 kB in /dev/hugepages are free"),
        (30 * GIB + 5, 9, 30 * GIB, "as asked, in huge pages of 2048 kB in /dev/hugepages"),
    ],
)
def test_of_huge_pages_it_has_as_many_as_are_free_or_asked_for(
    asked: int | None, free: int, size: int, reason: str
) -> None:
    """Its trailer needs one, too.  Whether the kernel gives them is seen when the pool is made."""
    pages = replace(HUGE, free=free)
    chosen = choose(asked, replace(ROOMY, available_bytes=GIB), EXTENT, pages)
    assert (chosen.size, chosen.reason.partition(": ")[2]) == (size, reason)


@pytest.mark.parametrize(
    ("asked", "pages", "memory", "why"),
    [
        (
            None,
            replace(HUGE, free=8),
            {},
            "0 huge pages .*; sysctl -w vm.nr_hugepages=5065 is the least",
        ),
        (MIB, HUGE, {}, "a pool of 1 MiB is smaller than one extent"),
        (4 * GIB, HUGE, {"shm_free_bytes": MIB}, r"the ledger .* needs \d.* MiB in /dev/shm"),
        (4 * GIB, HUGE, {"cgroup_room_bytes": 0}, "there is room for 0 B"),
    ],
)
def test_of_huge_pages_there_cannot_be_such_a_pool(
    asked: int | None,
    pages: HugePages,
    memory: dict[str, int],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hugepages, "default_bytes", lambda: 2 * MIB)
    with pytest.raises(UserError, match=why):
        choose(asked, replace(ROOMY, **memory), EXTENT, pages)


def test_a_small_shm_says_how_to_enlarge_it() -> None:
    with pytest.raises(UserError, match=r"64 MiB free in /dev/shm; enlarge it .*--shm-size"):
        choose(None, replace(ROOMY, shm_free_bytes=64 * MIB), EXTENT)


def test_no_memory_says_so() -> None:
    with pytest.raises(UserError, match="available memory less 1 GiB and the ledger; free some"):
        choose(None, replace(ROOMY, available_bytes=GIB), EXTENT)


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.none() | st.integers(0, 1 << 45))
def test_a_default_is_whole_extents_and_always_fits(
    total_bytes: int, shm_bytes: int, cgroup_bytes: int | None
) -> None:
    memory = Memory(
        total_bytes=total_bytes,
        available_bytes=total_bytes,
        cgroup_room_bytes=cgroup_bytes,
        shm_free_bytes=shm_bytes,
    )
    try:
        size = choose(None, memory, EXTENT).size
    except UserError:
        return
    assert size % EXTENT == 0 < size < min(total_bytes, shm_bytes)
    assert cgroup_bytes is None or size < cgroup_bytes
    assert choose(size, memory, EXTENT).size == size
    beside = file_bytes(size // MIN_PAGE)
    assert size + beside <= min(total_bytes, shm_bytes) and (
        cgroup_bytes is None or size + beside <= cgroup_bytes
    )
    assert size // 100 < beside < size // 70 + EXTENT


def test_an_explicit_size_is_kept_in_whole_extents() -> None:
    assert choose(20 * GIB, ROOMY, EXTENT).reason == "pool of 20 GiB: as asked"
    rounded = choose(EXTENT + 1, ROOMY, EXTENT)
    assert rounded.size == EXTENT
    assert "rounded down" in rounded.reason


@pytest.mark.parametrize(
    ("asked", "change", "why"),
    [
        (33 * GIB, {}, "33 GiB does not fit: 32 GiB is free in /dev/shm; enlarge it .*--shm-size"),
        (9 * GIB, {"available_bytes": 8 * GIB}, "8 GiB of memory is available"),
        (9 * GIB, {"cgroup_room_bytes": 7 * GIB}, "7 GiB is left of the cgroup's memory limit"),
        (MIB, {}, "smaller than one extent"),
        (
            8 * GIB,
            {"shm_free_bytes": 8 * GIB},
            r"of 8 GiB with its ledger of \d.* MiB does not fit: 8 GiB is free in /dev/shm",
        ),
    ],
)
def test_an_explicit_size_that_cannot_be(asked: int, change: dict[str, int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        choose(asked, replace(ROOMY, **change), EXTENT)


def machine(root: Path, own: str, files: dict[str, str]) -> Path:
    files = {
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": own,
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_reads_cgroup_2_with_its_ancestors(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/job"
    root = machine(
        tmp_path,
        "0::/user/job",
        {
            f"{group}/memory.max": "max",
            "sys/fs/cgroup/user/memory.max": str(2 * GIB),
            "sys/fs/cgroup/user/memory.current": str(GIB),
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB // 2}",
        },
    )
    memory = look(str(tmp_path), root)
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, 4 * GIB)
    assert memory.cgroup_room_bytes == 2 * GIB - GIB // 2
    assert memory.shm_free_bytes > 0


def test_reads_cgroup_1_inside_a_container(tmp_path: Path) -> None:
    """The path named is the host's; only the mount's own files exist."""
    mount = "sys/fs/cgroup/memory"
    root = machine(
        tmp_path,
        "4:memory:/docker/abc\n3:cpu,cpuacct:/x\n0::/",
        {
            f"{mount}/memory.limit_in_bytes": str(GIB),
            f"{mount}/memory.usage_in_bytes": str(GIB // 4),
            f"{mount}/memory.stat": "total_inactive_file 0",
        },
    )
    assert look(str(tmp_path), root).cgroup_room_bytes == GIB - GIB // 4


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert look(str(tmp_path), machine(tmp_path, "0::/", {})).cgroup_room_bytes is None


def test_the_real_machine_can_be_read() -> None:
    memory = look()
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_pinning_is_noted_only_where_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 * MIB, 8 * MIB))
    assert pin_note(8 * MIB) is None
    assert "only 8 MiB may be locked" in str(pin_note(GIB))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert pin_note(GIB) is None


def test_no_shared_memory_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shared memory at .*none: No such file"):
        look(str(tmp_path / "none"), machine(tmp_path, "0::/", {}))
