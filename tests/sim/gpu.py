"""GPUs of the simulated host: kernels of engines, and copies between their memory and the pool.

`Kernels` is the stream of one engine's process, with the event that it records there.  `Gpus` is to
a simulated session what pegaflow/device/engine/cuda_ipc.py is to a real one: for each device two
lanes, one for loads and one for saves.  A copy waits for the newest record of the engine's event,
and its bytes move some time after that, a few pieces at a time; its end is noticed later still, by
a thread.  In a lane copies are in order, among lanes there is none.

A device goes on while a process is stopped, and for a while after it is dead: the process's pidfd
fires only when the device has stopped (wire/gpu.py).  An error of a copy is the context's, so the
process ends.  The kernels of an engine may hang, and then so does what waits for them.

All chance here is `World.chips`, so a run without GPUs is what it would be if there were none.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pegaflow.wire.gpu import HANDLE_BYTES, GpuMemory, GpuRegion
from pegaflow.wire.gpujobs import GpuWarmed, MapGpu, PinPages, WarmGpu
from pegaflow.wire.jobs import Done, PagesDiffer, ReadBlocks, Result, UnmapEngine, WriteBlocks
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

from .world import MS, US, Call, Proc, World

if TYPE_CHECKING:
    from .client import Client
    from .files import Files

BUSES = ("0000:65:00.0", "0000:b3:00.0")
"""Of all devices."""

PIECES = 2
"""Pieces in which a page is copied."""


class Kernels:
    """What one engine's process has launched on its device, in that order."""

    def __init__(self, world: World) -> None:
        self.recorded = 0  # times that the event was recorded
        self.done = 0  # the newest record that was reached
        self._world = world
        self._queue: deque[Call] = deque()
        self._waiting: list[tuple[int, Call]] = []
        self._hung_until = 0
        self._due = False

    def launch(self, work: Call) -> None:
        """Do this some time, after what was launched before."""
        self._queue.append(work)
        if not self._due:
            self._later()

    def record(self) -> None:
        """Let the event stand for all that was launched before."""
        self.recorded += 1
        self.launch(partial(self._reach, self.recorded))

    def when(self, number: int, call: Call) -> None:
        """Do this once that record is reached."""
        self._waiting.append((number, call))
        self._look()

    def hang(self, length: int) -> None:
        """Nothing goes on for so long."""
        self._hung_until = self._world.now + length

    def stop(self) -> None:
        """The process is dead: its event never comes any more."""
        self._queue.clear()
        self._waiting.clear()

    def _reach(self, number: int) -> None:
        self.done = number
        self._look()

    def _look(self) -> None:
        ready = [call for number, call in self._waiting if number <= self.done]
        self._waiting = [entry for entry in self._waiting if entry[0] > self.done]
        for call in ready:
            call()

    def _later(self) -> None:
        self._due = True
        slow = self._world.rough and self._world.chips.random() < 0.05
        delay = self._world.chips.randrange(20 * MS if slow else 200 * US)
        self._world.at(self._world.now + delay, self._turn)

    def _turn(self) -> None:
        if self._world.now < self._hung_until:
            self._world.at(self._hung_until, self._turn)
            return
        for _ in range(self._world.chips.randrange(1, 16)):
            if self._queue:
                self._queue.popleft()()
        self._due = False
        if self._queue:
            self._later()


@dataclass(slots=True, eq=False)
class _Opened:
    """Memory of an engine, as a session has it open."""

    client: "Client"
    memory: bytearray
    device: int
    size: int  # of a block
    closed: bool = False
    running: int = 0  # copies without an end yet
    then: Call = lambda: None  # once it is closed and none runs


@dataclass(slots=True, eq=False)
class _Copy:
    """One job."""

    number: int
    job: ReadBlocks | WriteBlocks
    opened: _Opened
    result: Result = Done(Status.OK)
    mark: int = 0  # record of the engine's event that it waits for
    drags: bool = False  # the device has other things to do
    todo: deque[tuple[int, int, int, int]] = field(default_factory=deque)


class _Lane:
    """Copies in one direction on one device: a stream, the thread that fills it, and the one that
    sees what is done."""

    def __init__(self, gpus: "Gpus") -> None:
        self._gpus, self._world = gpus, gpus.world
        self._asked: deque[_Copy] = deque()
        self._stream: deque[_Copy] = deque()
        self._ended: deque[_Copy] = deque()
        self._runs = False  # the device

    @property
    def busy(self) -> bool:
        """Whether the device has something to do."""
        return bool(self._stream)

    def put(self, copy: _Copy) -> None:
        """Do a copy some time."""
        self._asked.append(copy)
        if len(self._asked) == 1:
            self._gpus.owner.after(self._world.chips.randrange(5 * US, 100 * US), self._submit)

    def _submit(self) -> None:
        """The thread gives the device all that has come since its last turn."""
        while self._asked:
            copy = self._asked.popleft()
            self._gpus.prepare(copy)
            self._stream.append(copy)
        if not self._runs:
            self._later()

    def _later(self) -> None:
        self._runs = True
        slow = self._world.rough and self._world.chips.random() < 0.02
        most = 300 * MS if self._stream[0].drags else 20 * MS if slow else 100 * US
        delay = self._world.chips.randrange(5 * US, most)
        self._world.at(self._world.now + delay, self._turn)

    def _turn(self) -> None:
        """The device does something."""
        copy = self._stream[0]
        kernels = copy.opened.client.kernels
        assert kernels is not None
        if self._gpus.over or self._gpus.failed:
            return
        if copy.todo and kernels.done < copy.mark:
            self._world.counts["GPU: a copy waits for kernels"] += 1
            kernels.when(copy.mark, self._later)
            return
        if copy.todo:
            self._gpus.move(copy)
        if not copy.todo:
            self._ended.append(self._stream.popleft())
            self._gpus.owner.after(self._world.chips.randrange(5 * US, 200 * US), self._notice)
        self._runs = False
        if self._stream:
            self._later()

    def _notice(self) -> None:
        """The thread sees the end of the first that is done."""
        self._gpus.end(self._ended.popleft())


class Gpus:
    """All devices of one session's process.

    Args:
        complete: ends a job of the session.
        differing: which pages of a job do not hold what was sealed.
    """

    def __init__(
        self,
        owner: Proc,
        files: "Files",
        pool: bytearray,
        *,
        complete: Callable[[int, Result], None],
        differing: Callable[[WriteBlocks], PagesDiffer | None],
    ) -> None:
        self.owner, self.world = owner, owner.world
        self.over = False  # the driver has taken it from the device
        self.failed = False  # a copy has, and so will all others
        self._files, self._pool = files, pool
        self._complete, self._differing = complete, differing
        self._lanes: dict[tuple[int, bool], _Lane] = {}  # by device, and whether it saves
        self._opened: dict[int, _Opened] = {}  # by mapping
        self._closing: set[_Opened] = set()

    def takes(self, number: int, job: Message) -> bool:
        """Do a job if it is about memory of a GPU."""
        if isinstance(job, MapGpu):
            chips = self.world.chips
            delay = chips.randrange(chips.choice((MS, MS, 30 * MS, 1500 * MS)))
            self.owner.after(delay, lambda: self._complete(number, self._open(job)))
            return True
        if isinstance(job, PinPages | WarmGpu):
            refused = self.world.chips.random() < 0.1
            done = GpuWarmed(job.gpu) if isinstance(job, WarmGpu) else Done(Status.OK)
            ended = Done(Status.COPY_FAILED, "no memory") if refused else done
            self.owner.after(MS, lambda: self._complete(number, ended))
            return True
        if isinstance(job, UnmapEngine) and job.mapping in self._opened:
            opened = self._opened.pop(job.mapping)
            opened.closed, opened.then = True, lambda: self._complete(number, Done(Status.OK))
            self._closing.add(opened)
            self._close(opened)
            return True
        if not (isinstance(job, ReadBlocks | WriteBlocks) and job.mapping in self._opened):
            return False
        opened = self._opened[job.mapping]
        opened.running += 1
        where = opened.device, isinstance(job, ReadBlocks)
        self._lanes.setdefault(where, _Lane(self)).put(_Copy(number, job, opened))
        return True

    def prepare(self, copy: _Copy) -> None:
        """What the lane's thread looks at before it gives a copy to the device."""
        job, opened = copy.job, copy.opened
        differ = self._differing(job) if isinstance(job, WriteBlocks) else None
        if differ is not None:
            copy.result = differ
        elif opened.closed:
            copy.result = Done(Status.COPY_FAILED, "the engine has gone")
        elif self.world.now >= job.deadline:
            copy.result = Done(Status.EXPIRED, "the deadline has passed")
        else:
            assert opened.client.kernels is not None
            copy.mark = opened.client.kernels.recorded
            copy.drags = self._drags()
            cuts = [opened.size * n // PIECES for n in range(PIECES + 1)]
            for block, offset in zip(job.blocks, job.offsets, strict=True):
                copy.todo += [(block, offset, cuts[n], cuts[n + 1]) for n in range(PIECES)]

    def move(self, copy: _Copy) -> None:
        """The device moves some bytes, whoever lives."""
        opened, reads = copy.opened, isinstance(copy.job, ReadBlocks)
        client, size, counts = opened.client, opened.size, self.world.counts
        self._files.copying(client, self.owner, not reads)
        if self.world.rough and self.world.chips.random() < 0.002:
            counts["GPU: a copy fails"] += 1
            self.fail()
            return
        if not self.owner.alive:
            counts["GPU: bytes move after a death"] += 1
        most = 2 if copy.drags else 7
        for _ in range(min(len(copy.todo), self.world.chips.randrange(1, most))):
            block, offset, start, end = copy.todo.popleft()
            there = slice(block * size + start, block * size + end)
            here = slice(offset + start, offset + end)
            if reads:
                self._files.written.append((here.start, here.stop))
                self._files.saved.append((offset, size, self.owner.address))
                self._pool[here] = opened.memory[there]
                continue
            if client.alive:
                client.judge(block)
            opened.memory[there] = self._pool[here]

    def _drags(self) -> bool:
        world = self.world
        slow = world.rough and world.chips.random() < (0.4 if world.drags else 0.01)
        if slow:
            world.drags = max(0, world.drags - 1)
            world.counts["GPU: a copy drags"] += 1
        return slow

    def fail(self) -> None:
        """An error stays with the context; the first thread that hears of it ends the process."""
        if not self.failed:
            self.failed = True
            delay = self.world.chips.randrange(US, MS)
            self.owner.after(delay, lambda: self.owner.die("the GPU has failed"))

    def end(self, copy: _Copy) -> None:
        """A copy is over, and a thread has seen it."""
        self.world.counts["GPU: copies"] += 1
        copy.opened.running -= 1
        self._complete(copy.number, copy.result)
        self._close(copy.opened)

    def lasts(self) -> int:
        """The process dies: how long its devices go on."""
        if not (self._opened or self._closing):
            return 0
        chips = self.world.chips
        return chips.randrange(1, chips.choice((US, 30 * MS, 400 * MS, 1500 * MS)))

    def take_down(self) -> None:
        """They have stopped, and all is closed."""
        self.over = True
        for opened in (*self._opened.values(), *self._closing):
            opened.client.closed_by(self.owner)

    def _open(self, job: MapGpu) -> Done:
        client = self.world.handles.get(job.memory.regions[0].handle)
        refused = self.world.rough and self.world.chips.random() < 0.05
        if client is None or not client.alive or refused:
            return Done(Status.COPY_FAILED, "cannot open the engine's memory")
        size, device = job.layout.layers[0].segment_bytes, BUSES.index(job.memory.bus)
        self._opened[job.mapping] = _Opened(client, client.opened_by(self.owner), device, size)
        return Done(Status.OK)

    def _close(self, opened: _Opened) -> None:
        """As soon as nothing runs."""
        if opened.running or opened not in self._closing:
            return

        def close() -> None:
            self._closing.discard(opened)
            opened.client.closed_by(self.owner)
            opened.then()

        self.owner.after(self.world.chips.randrange(5 * US, MS), close)


def named(handle: bytes, device: int) -> GpuMemory:
    """What an engine says of memory on this device."""
    return GpuMemory(BUSES[device], bytes(16), (GpuRegion(handle, 0),), bytes(HANDLE_BYTES))
