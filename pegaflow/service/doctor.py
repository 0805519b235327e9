"""Whether this host has what the service can use, and what to do where it has not.

`gpu` judges what pegaflow/device/gpufacts.py has read: a list of checks, each a line.  A line is
`ok`; or it `lacks` something, without which blocks of GPU memory move by a slower way or not at
all; or it is a `note`, of what cannot be known from here or costs no more than time.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pegaflow.core.errors import UserError
from pegaflow.device.gpufacts import Device, GpuFacts
from pegaflow.device.hugepages import HugePages, best
from pegaflow.device.poolfiles import TRAILER_BYTES
from pegaflow.wire.units import Bytes, Constant

from .poolsize import SHARE_OF_RAM, Memory
from .sizes import show

PROHIBITED: Constant = 2  # CU_COMPUTEMODE_PROHIBITED
EXCLUSIVE: Constant = 3  # CU_COMPUTEMODE_EXCLUSIVE_PROCESS

NO_GPU = "no GPU here: neither a device file of NVIDIA's nor libcuda.so.1"
"""What is said of a host without one."""

SHM_LEAST: Bytes = 1 << 30
"""What docker gives without being asked is 64 MiB; a pool for a GPU is gigabytes."""


class Verdict(enum.StrEnum):
    """What a check has come to."""

    OK = "ok"
    NOTE = "note"
    LACKS = "lacks"


@dataclass(frozen=True)
class Line:
    """One check."""

    verdict: Verdict
    #: What was looked at.
    about: str
    #: What was found.
    found: str
    #: What to do; empty if nothing.
    do: str = ""

    def __str__(self) -> str:
        do = f"; {self.do}" if self.do else ""
        return f"{self.verdict:<5}  {self.about}: {self.found}{do}"


def absent(facts: GpuFacts) -> bool:
    """Whether nothing points to a GPU."""
    return not facts.files and not facts.devices and not facts.driver


def pool_of(asked_bytes: int | None, memory: Memory, places: Sequence[HugePages] = ()) -> int:
    """How large a pool is meant: as asked, or a share of the memory, whatever /dev/shm holds.

    Args:
        places: where it may lie, if it is to be of huge pages: of as many as there are, then.
    """
    if asked_bytes is not None:
        return asked_bytes
    if places:
        return max(max(0, place.total - 1) * place.page_bytes for place in places)
    room = memory.cgroup_room_bytes
    most = memory.total_bytes if room is None else min(room, memory.total_bytes)
    return int(most * SHARE_OF_RAM)


def gpu(facts: GpuFacts, pool_bytes: int, *, wanted: bool, huge: bool = False) -> list[Line]:
    """What blocks of GPU memory need; a line each.

    Args:
        pool_bytes: how large the pool is to be.
        wanted: whether there is to be a GPU.
        huge: whether the pool is to be of huge pages (--use-hugepages).
    """
    if absent(facts):
        do = "in a container, if there is to be one: start it with --gpus all (docker)"
        gone = Line(Verdict.LACKS if wanted else Verdict.NOTE, "GPU", NO_GPU, do)
        return [gone, _reserved(facts, pool_bytes)] if huge else [gone]
    return [
        _driver(facts),
        _cupy(facts),
        *_nvrtc(facts),
        *_devices(facts),
        _peers(facts),
        _memlock(facts, pool_bytes),
        _numa(facts),
        _reserved(facts, pool_bytes) if huge else _huge_pages(facts, pool_bytes),
        _shm(facts, pool_bytes),
        _pids(facts),
        _trace(facts),
        *_persistence(facts),
    ]


def _driver(facts: GpuFacts) -> Line:
    version = facts.driver or "of unknown version"
    if facts.error:
        do = "install NVIDIA's driver; in a container let the NVIDIA container toolkit bring it in"
        return Line(Verdict.LACKS, "driver", f"{version}, {facts.error}", do)
    cuda = f"{facts.cuda[0]}.{facts.cuda[1]}"
    return Line(Verdict.OK, "driver", f"{version}, for CUDA up to {cuda}")


def _cupy(facts: GpuFacts) -> Line:
    extra = "pegaflow[gpu-cu13]" if facts.cuda[0] >= 13 else "pegaflow[gpu]"
    install = f"pip install '{extra}' where serve runs"
    names = " and ".join(f"{name} {version}" for name, version in facts.cupys)
    if len(facts.cupys) > 1:
        do = "remove all of them, they overwrite each other, then " + install
        return Line(Verdict.LACKS, "cupy", names, do)
    if facts.cupy_error:
        found = f"{names or 'not installed'} ({facts.cupy_error})"
        return Line(Verdict.LACKS, "cupy", found, install)
    for name, _ in facts.cupys:
        major = name.removeprefix("cupy-cuda").removesuffix("x")
        if major.isdigit() and facts.cuda[0] and int(major) > facts.cuda[0]:
            found = f"{names} is for CUDA {major}, the driver for {facts.cuda[0]} at most"
            return Line(Verdict.LACKS, "cupy", found, f"remove it, then {install}")
    return Line(Verdict.OK, "cupy", names or "imported")


def _nvrtc(facts: GpuFacts) -> Iterator[Line]:
    if facts.cupy_error:
        return  # which says it all
    if not facts.nvrtc_error:
        yield Line(Verdict.OK, "NVRTC", "kernels can be compiled")
        return
    which = "cupy-cuda13x" if facts.cuda[0] >= 13 else "cupy-cuda12x"
    do = f"short pieces of blocks move slower; pip install '{which}[ctk]'"
    yield Line(Verdict.NOTE, "NVRTC", facts.nvrtc_error, do)


def _devices(facts: GpuFacts) -> Iterator[Line]:
    if not facts.devices and not facts.error:
        do = "show some to the service's container, whatever CUDA_VISIBLE_DEVICES says"
        yield Line(Verdict.LACKS, "devices", "the driver shows none", do)
    for device in facts.devices:
        yield _device(device)


def _device(device: Device) -> Line:
    about = f"GPU {device.number}"
    found = f"{device.name} at {device.bus}, {device.uuid}"
    if device.compute_mode == EXCLUSIVE:
        do = f"it refuses a second process, so the session's: nvidia-smi -i {device.bus} -c DEFAULT"
        return Line(Verdict.LACKS, about, f"{found}, in exclusive mode", do)
    if device.compute_mode == PROHIBITED:
        do = f"nvidia-smi -i {device.bus} -c DEFAULT"
        return Line(Verdict.LACKS, about, f"{found}, in prohibited mode", do)
    if " MIG " in device.name:
        do = "a process sees one part only: an engine on another part of it is served staged"
        return Line(Verdict.NOTE, about, f"{found}, a part of a GPU", do)
    return Line(Verdict.OK, about, found)


def _peers(facts: GpuFacts) -> Line:
    if facts.apart:
        pairs = ", ".join(f"{one} and {other}" for one, other in facts.apart)
        do = "nothing to do: each engine's blocks go between its own device and the host"
        return Line(Verdict.NOTE, "peer access", f"none between {pairs}", do)
    count = len(facts.devices)
    found = f"between all {count} devices" if count > 1 else "no second device"
    return Line(Verdict.OK, "peer access", found)


def _memlock(facts: GpuFacts, pool_bytes: int) -> Line:
    may = facts.memlock_bytes
    if may is None:
        return Line(Verdict.OK, "memlock", "unlimited")
    found = f"{show(may)} may be locked, the pool has {show(pool_bytes)}"
    if may >= pool_bytes:
        return Line(Verdict.OK, "memlock", found)
    do = (
        "raise it, or copies may go through a small buffer: memlock in limits.conf, LimitMEMLOCK= "
        "of the unit, docker run --ulimit memlock=-1"
    )
    return Line(Verdict.LACKS, "memlock", found, do)


def _numa(facts: GpuFacts) -> Line:
    if facts.nodes == 1:
        return Line(Verdict.OK, "NUMA", "one node")
    where = ", ".join(
        f"GPU {d.number} at {'an unknown node' if d.numa_node < 0 else f'node {d.numa_node}'}"
        for d in facts.devices
    )
    nodes = {d.numa_node for d in facts.devices}
    found = f"{facts.nodes} nodes, {where or 'no device'}"
    if len(nodes) > 1 or -1 in nodes:
        do = "copies between a GPU and memory of another node are slower"
        return Line(Verdict.NOTE, "NUMA", found, do)
    return Line(Verdict.OK, "NUMA", found)


def _huge_pages(facts: GpuFacts, pool_bytes: int) -> Line:
    if facts.shm_huge not in ("", "never"):
        return Line(Verdict.OK, "huge pages", f"/dev/shm has huge={facts.shm_huge}")
    found = "/dev/shm has none"
    do = "registering a pool takes longer: mount -o remount,huge=within_size /dev/shm"
    for place in facts.hugetlb:
        if place.total:
            found += f", {place.total} of {place.size} are reserved ({place.folder})"
        if place.writable and place.total >= place.pages(pool_bytes + TRAILER_BYTES):
            do = "registering a pool takes longer: serve --use-hugepages"
    return Line(Verdict.NOTE, "huge pages", found, do)


def _reserved(facts: GpuFacts, pool_bytes: int) -> Line:
    """What a pool of huge pages needs."""
    try:
        place = best(facts.hugetlb)
    except UserError as err:
        return Line(Verdict.LACKS, "huge pages", str(err))
    needed = place.pages(pool_bytes + TRAILER_BYTES)
    found = (
        f"{place.total} of {place.size} are reserved, {place.available} of them free "
        f"({place.folder}); the pool needs {needed}"
    )
    if place.total < needed:
        return Line(Verdict.LACKS, "huge pages", found, place.reserving(needed))
    return Line(Verdict.OK, "huge pages", found)


def _shm(facts: GpuFacts, pool_bytes: int) -> Line:
    found = f"{show(facts.shm_bytes)}, the pool has {show(pool_bytes)}"
    if facts.shm_bytes < max(pool_bytes, SHM_LEAST):
        do = "docker run --ipc=host, which also shares it with the engines, or --shm-size"
        return Line(Verdict.LACKS, "/dev/shm", found, do)
    return Line(Verdict.OK, "/dev/shm", found)


def _pids(facts: GpuFacts) -> Line:
    if facts.own_pids:
        do = (
            "engines have to be in this container too; else give theirs and this one --pid=host "
            "and --ipc=host, or they are served staged"
        )
        return Line(Verdict.NOTE, "pid namespace", "of this container alone", do)
    do = "an engine in a container needs --pid=host and --ipc=host"
    return Line(Verdict.OK, "pid namespace", "the host's", do)


def _trace(facts: GpuFacts) -> Line:
    if facts.trace_scope < 2 or facts.may_trace:
        return Line(Verdict.OK, "ptrace", f"kernel.yama.ptrace_scope is {facts.trace_scope}")
    do = (
        "blocks of host memory, and of GPU memory in pieces, are served staged; "
        "sysctl kernel.yama.ptrace_scope=1"
    )
    found = f"kernel.yama.ptrace_scope is {facts.trace_scope}"
    return Line(Verdict.NOTE, "ptrace", found, do)


def _persistence(facts: GpuFacts) -> Iterator[Line]:
    known = [d for d in facts.devices if d.stays is not None]
    off = [str(d.number) for d in known if not d.stays]
    if off:
        do = "a first context takes seconds then: run nvidia-persistenced, or nvidia-smi -pm 1"
        yield Line(Verdict.NOTE, "persistence", f"off for GPU {', '.join(off)}", do)
    elif known:
        yield Line(Verdict.OK, "persistence", "on")
    elif facts.devices:
        do = "if it is off, a first context takes seconds: run nvidia-persistenced"
        yield Line(Verdict.NOTE, "persistence", "not known", do)
