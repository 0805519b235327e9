"""Memory of an engine that lies in pieces: mapped here side by side, and given back."""

import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pegaflow.client.gpu import export
from pegaflow.core.errors import UserError
from pegaflow.device import procs
from pegaflow.device.engine.cuda_ipc import Opened
from pegaflow.wire.gpu import NO_FD, GpuMemory
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from tests.fakes import cuda, vmm
from tests.fakes.driver import Driver
from tests.fakes.engines import Foreign
from tests.fakes.vmm import Segment

from .session import BLOCKS, IDS, LAYOUT, PAGE, PLANE, RUN, Session

SIZE = 4096
BEFORE = 300  # of the segment, that is somebody else's
TWO = Layout(BLOCKS, tuple(LayerLayout(n, 0, RUN, RUN) for n in (0, 1)), "uint8")


class InPieces:
    """An engine that is this very process, but for its event."""

    def __init__(self, *sizes: int) -> None:
        self.event = Foreign(64).event
        self.segments = [Segment(-(-(BEFORE + s) // SIZE), SIZE) for s in sizes]
        regions = [(s.address + BEFORE, n) for s, n in zip(self.segments, sizes, strict=True)]
        named = export(regions, self.event.name.encode().ljust(64, b"\0"), Driver())
        assert named.lender is not None
        self.lender = named.lender
        self.memory = self.lender.lend(named.memory)
        self.bytes = [cuda.memory(address, size) for address, size in regions]
        for bytes_ in self.bytes:
            bytes_[:] = np.random.default_rng(1).integers(0, 256, len(bytes_), np.uint8)

    def open(self, session: Session, layout: Layout = LAYOUT, **change: object) -> Opened:
        memory: GpuMemory = replace(self.memory, **change)  # type: ignore[arg-type]
        started = procs.start_ticks(os.getpid())
        return session.gpus.open(memory, layout, pid=os.getpid(), started_ticks=started)


@pytest.fixture
def engine(session: Session) -> Iterator[InPieces]:
    made = InPieces(4 * PLANE)
    yield made
    made.lender.take_back()


def held() -> dict[str, int]:
    """How often this process holds which piece: once mapped, and once by the segment's handle."""
    return {name: count for name, count in cuda.machine().holding.items() if count}


def taken() -> int:
    """Descriptors of pieces and of processes that are open here."""
    links = (Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    pidfds = sum(os.readlink(link) == "anon_inode:[pidfd]" for link in links if link.is_symlink())
    return len(vmm.exported()) + pidfds


@pytest.mark.parametrize("pinned", [False, True])
def test_blocks_go_and_come(session: Session, engine: InPieces, pinned: bool) -> None:
    assert len(engine.memory.pieces) > 1
    opened = engine.open(session)
    if pinned:
        session.pin()
    session.read(opened)
    assert session.ended() == Done(Status.OK)
    view = engine.bytes[0].reshape(4, BLOCKS, RUN)
    there = [view[:, int(block)].tobytes() for block in IDS]
    assert session.pages() == there
    engine.bytes[0][:] = 0
    session.write(opened)
    assert session.ended() == Done(Status.OK)
    assert [view[:, int(block)].tobytes() for block in IDS] == there
    assert int(np.count_nonzero(view[:, 1])) == 0


def test_what_does_not_lie_side_by_side_is_mapped_apart(session: Session) -> None:
    engine = InPieces(PLANE, PLANE)
    opened = engine.open(session, TWO)
    engine.lender.take_back()
    session.read(opened)
    assert session.ended() == Done(Status.OK)
    for page, block in enumerate(IDS):
        parts = [b.reshape(BLOCKS, RUN)[int(block)].tobytes() for b in engine.bytes]
        at = int([2, 0, 1][page]) * PAGE
        assert session.pool[at : at + 2 * RUN].tobytes() == b"".join(parts)


def test_it_is_unmapped_when_its_last_copy_is_over(session: Session, engine: InPieces) -> None:
    before, addresses = held(), set(cuda.machine().ranges)
    opened = engine.open(session)
    assert held() == {name: count + 1 for name, count in before.items()}, "mapped, and no handle"
    assert len(cuda.machine().ranges) == len(addresses) + 1
    engine.event.words[1] += np.uint64(1)  # kernels that the event stands behind
    session.read(opened)
    ended: queue.SimpleQueue[dict[str, int]] = queue.SimpleQueue()
    opened.close(lambda: ended.put(held()))
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.02)
    assert held() != before
    engine.event.words[2] = engine.event.words[1]
    session.ended()
    assert ended.get(timeout=20) == before, "who is told that it is closed may free it"
    assert set(cuda.machine().ranges) == addresses


Change = Callable[[InPieces, pytest.MonkeyPatch], dict[str, object]]


def one(engine: InPieces, fd: int) -> dict[str, object]:
    """The last piece has another descriptor than it should have."""
    pieces = list(engine.memory.pieces)
    pieces[-1] = replace(pieces[-1], fd=fd)
    return {"pieces": tuple(pieces)}


def not_permitted(engine: InPieces, patch: pytest.MonkeyPatch) -> dict[str, object]:
    def take(pidfd: int, fd: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    patch.setattr(procs, "take_fd", take)
    return {}


def gone(engine: InPieces, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Another process has its pid."""
    patch.setattr(procs, "open_pidfd", lambda pid, ticks: None)
    return {}


def longer(engine: InPieces, patch: pytest.MonkeyPatch) -> dict[str, object]:
    pieces = list(engine.memory.pieces)
    pieces[-1] = replace(pieces[-1], length=pieces[-1].length + 4096)
    return {"pieces": tuple(pieces)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda engine, patch: one(engine, 987_654), "cannot be had: Bad file descriptor"),
        (lambda engine, patch: one(engine, 0), "cuMemImportFromShareableHandle: error 1"),
        (lambda engine, patch: one(engine, NO_FD), "could not export it .*ulimit -n"),
        (lambda engine, patch: {"event": bytes(64)}, "InvalidResourceHandle"),
        (longer, "cuMemMap: error 1"),
        (not_permitted, "--cap-add SYS_PTRACE.*ptrace_scope"),
        (gone, "its process is gone"),
    ],
)
def test_what_cannot_be_mapped_is_refused_and_nothing_is_left(
    session: Session, engine: InPieces, monkeypatch: pytest.MonkeyPatch, change: Change, why: str
) -> None:
    before, addresses = held(), set(cuda.machine().ranges)
    descriptors = taken()
    changed = change(engine, monkeypatch)
    with pytest.raises(UserError, match=f"cannot open the engine's memory on GPU .*{why}"):
        engine.open(session, LAYOUT, **changed)
    assert (held(), set(cuda.machine().ranges)) == (before, addresses)
    assert taken() == descriptors


def test_what_was_taken_is_not_kept(session: Session, engine: InPieces) -> None:
    before = taken()
    assert before == len(engine.memory.pieces)
    engine.open(session)
    assert taken() == before
    engine.lender.take_back()
    assert vmm.exported() == []


def test_a_descriptor_is_taken_out_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("there")
    there = os.open(path, os.O_RDONLY)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(there,)) as child:
        os.close(there)
        pidfd = procs.open_pidfd(child.pid, procs.start_ticks(child.pid))
        assert pidfd is not None
        taken = procs.take_fd(pidfd, there)
        assert os.read(taken, 9) == b"there" and not os.get_inheritable(taken)
        with pytest.raises(OSError, match="Bad file descriptor"):
            procs.take_fd(pidfd, 987_654)
        child.communicate()
    with pytest.raises(ProcessLookupError):
        procs.take_fd(pidfd, there)
    for fd in (taken, pidfd):
        os.close(fd)
