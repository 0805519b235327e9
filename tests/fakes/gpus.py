"""The GPUs that are not there: memory and events that processes share, streams that run late.

What they are for, and how strict they are: tests/fakes/cuda.py.
"""

import ctypes
import mmap
import os
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BUSES = ("0000:65:00.0", "0000:B3:00.0")
UUIDS = (bytes(range(16, 32)), bytes([7, 0, *range(14)]))

PRIORITIES = (-5, 0)  # the highest and the lowest of a stream

LATE_S = 0.001  # nothing runs sooner after it was asked for
LOOK_S = 0.0005
INVALID_VALUE, NOT_SAME_PROCESS, INVALID_HANDLE, ILLEGAL_ADDRESS = 1, 201, 400, 700
NAMES = {
    INVALID_VALUE: "cudaErrorInvalidValue",
    NOT_SAME_PROCESS: "cudaErrorDeviceUninitialized",
    INVALID_HANDLE: "cudaErrorInvalidResourceHandle",
    ILLEGAL_ADDRESS: "cudaErrorIllegalAddress",
}
HEAD = mmap.PAGESIZE  # of a file: words, before the bytes of an allocation
PORTABLE, MAPPED = 1, 2  # of a registration: for all contexts, and for kernels
LIVE, RECORDED, DONE = 0, 1, 2  # words


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(f"{NAMES.get(status, f'cudaError {status}')}: {why or 'refused'}")


class Shared:
    """A file that processes share: an allocation, or an event."""

    def __init__(self, name: str, size: int = -1) -> None:
        path = Path(os.environ["FAKE_CUDA"], name)
        fd = os.open(path, os.O_RDWR | (os.O_CREAT if size >= 0 else 0))
        try:
            if size >= 0:
                os.ftruncate(fd, HEAD + size)
            self.map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self.name, self.path = name, path
        self.words = np.frombuffer(self.map, np.uint64, HEAD // 8)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + HEAD
        self.size = len(self.map) - HEAD
        self.device = int(name.split(".")[1])
        self.maker = int(name.split(".")[2])
        self.users = 0  # of this process, that have opened it

    @property
    def opened(self) -> Path:
        """There as long as this process has it open."""
        return self.path.with_name(f"{self.name}.open.{os.getpid()}")

    def elsewhere(self) -> list[int]:
        """Living processes that have it open."""
        pids = [
            int(p.name.rpartition(".")[2]) for p in self.path.parent.glob(f"{self.name}.open.*")
        ]
        return [pid for pid in pids if lives(pid)]


def named(handle: bytes, kind: str, status: int) -> str:
    """The name of a file of this kind, if a handle is one."""
    if not re.fullmatch(rb"%b\.\d\.\d+\.[0-9a-f]{12}\0*" % kind.encode(), handle):
        raise CUDARuntimeError(status, f"no handle of {kind}")
    return handle.rstrip(b"\0").decode()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _context(device: int, pid: int) -> Path:
    return Path(os.environ["FAKE_CUDA"], f"context.{device}.{pid}")


def contexts(device: int) -> list[int]:
    """Living processes that have a context on a device."""
    there = Path(os.environ["FAKE_CUDA"]).glob(f"context.{device}.*")
    return sorted(pid for path in there if lives(pid := int(path.suffix[1:])))


def taken(device: int) -> int:
    """Bytes of a device that living processes have allocated, or have pieces of."""
    folder = Path(os.environ["FAKE_CUDA"])
    names = (p.name for p in folder.glob(f"mem.{device}.*") if ".open." not in p.name)
    found = (Shared(name) for name in names if lives(int(name.split(".")[2])))
    pieces = [p.name for p in folder.glob(f"phys.{device}.*") if ".open." not in p.name]
    in_pieces = sum(Shared(name).size for name in pieces if holders(name))
    return in_pieces + sum(shared.size for shared in found if shared.words[LIVE])


def holders(name: str) -> list[int]:
    """Living processes that have a handle of a piece, or have it mapped."""
    there = Path(os.environ["FAKE_CUDA"]).glob(f"{name}.open.*")
    return sorted(pid for p in there if lives(pid := int(p.name.rpartition(".")[2])))


@dataclass
class Piece:
    """Physical memory that is mapped (vmm.py)."""

    memory: Shared
    address: int
    size: int
    devices: set[int] = field(default_factory=set)  # that may touch it there

    @property
    def end(self) -> int:
        return self.address + self.size


@dataclass
class Range:
    """Addresses that pieces are mapped at (vmm.py)."""

    address: int
    size: int
    pieces: dict[int, Piece] = field(default_factory=dict)  # by address

    def at(self, pointer: int) -> Piece | None:
        """The piece that is mapped there."""
        return next((p for p in self.pieces.values() if p.address <= pointer < p.end), None)

    def permits(self, device: int, pointer: int, size: int) -> bool:
        """Whether a device may touch these bytes."""
        at = pointer
        while at < pointer + size:
            piece = self.at(at)
            if piece is None or device not in piece.devices:
                return False
            at = piece.end
        return True


@dataclass
class Task:
    """Something that a stream does, once it may."""

    work: Callable[[], None]
    ready: Callable[[], bool] = lambda: True
    since: float = field(default_factory=time.monotonic)


@dataclass
class Stream:
    device: int
    priority: int = 0
    tasks: deque[Task] = field(default_factory=deque)


@dataclass(frozen=True)
class Pinned:
    """Memory of the host that devices reach by themselves."""

    start: int
    size: int
    device: int  # whose context has registered it
    flags: int

    def touches(self, pointer: int, size: int) -> bool:
        return self.start < pointer + size and pointer < self.start + self.size


class Machine:
    """What this process knows of the devices."""

    def __init__(self) -> None:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.devices = list(range(len(BUSES))) if shown is None else [*map(int, shown.split(","))]
        self.lock = threading.Condition(threading.RLock())
        self.here = threading.local()  # .device
        self.errors: dict[int, int] = {}  # sticky, by device
        self.memory: dict[int, Shared] = {}  # by address
        self.events: dict[int, Shared] = {}
        self.ranges: dict[int, Range] = {}  # by address
        self.handles: dict[int, Shared] = {}  # of pieces
        self.holding: Counter[str] = Counter()  # pieces, and how often they are held here
        self.streams: dict[int, Stream] = {}
        self.host: list[mmap.mmap] = []  # of hostAlloc
        self.pinned: list[Pinned] = []  # what is registered, or allocated so
        self.unpinned = 0  # copies that went through the driver's own buffers
        self.number = 1 << 20  # newest of a stream or an event
        self.calls: list[str] = []  # names of copies, in the order in which they were asked for
        self.rng = random.Random(os.environ.get("FAKE_CUDA_SEED", "1"))
        threading.Thread(target=self._run, name="fake-gpu", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self.lock:
                now = time.monotonic()
                heads = [s for s in self.streams.values() if s.tasks]
                able = [s for s in heads if now - s.tasks[0].since >= LATE_S]
                able = [s for s in able if s.device not in self.errors and s.tasks[0].ready()]
                if able:
                    stream = self.rng.choice(able)
                    try:
                        stream.tasks[0].work()
                    except CUDARuntimeError as error:
                        self.errors[stream.device] = error.status
                    stream.tasks.popleft()
                    self.lock.notify_all()
                    continue
                self.lock.wait(LOOK_S if heads else None)

    def check(self) -> int:
        """The calling thread's device, which is sound."""
        device = self.devices[getattr(self.here, "device", 0)]
        if device in self.errors:
            raise CUDARuntimeError(self.errors[device], "an earlier error of this context")
        _context(device, os.getpid()).touch()
        return device

    def wait(self, device: int, over: Callable[[], bool]) -> None:
        with self.lock:
            while device not in self.errors and not over():
                self.lock.wait(LOOK_S)
            if device in self.errors:
                raise CUDARuntimeError(self.errors[device])

    def add(self, stream: int, task: Task) -> None:
        with self.lock:
            self.stream(stream).tasks.append(task)
            self.lock.notify_all()

    def stream(self, number: int) -> Stream:
        if number not in self.streams:
            raise CUDARuntimeError(INVALID_HANDLE, f"no stream {number}")
        return self.streams[number]

    def event(self, number: int) -> Shared:
        if number not in self.events or not self.events[number].words[LIVE]:
            raise CUDARuntimeError(INVALID_HANDLE, f"no event {number}")
        return self.events[number]

    def events_open(self) -> list[str]:
        """Names of events of other processes that this one has open."""
        return [e.name for e in self.events.values() if e.maker != os.getpid()]

    def new(self, kind: dict[int, Shared], shared: Shared) -> int:
        with self.lock:
            self.number += 1
            kind[self.number] = shared
            return self.number

    def hold(self, piece: Shared) -> None:
        """This process has one more handle or mapping of a piece."""
        with self.lock:
            self.holding[piece.name] += 1
            piece.opened.touch()

    def let_go(self, piece: Shared) -> None:
        """And one less."""
        with self.lock:
            self.holding[piece.name] -= 1
            if not self.holding[piece.name]:
                piece.opened.unlink()

    def owner(self, pointer: int, size: int) -> Shared | Range | None:
        """The allocation that these bytes are in, dead or alive, or the addresses of pieces."""
        with self.lock:
            everything: list[Shared | Range] = [*self.memory.values(), *self.ranges.values()]
            for shared in everything:
                if shared.address <= pointer and pointer + size <= shared.address + shared.size:
                    return shared
        return None

    def touch(self, device: int, pointer: int, size: int) -> None:
        """The device reads or writes these bytes of its own memory."""
        found = self.owner(pointer, size)
        if isinstance(found, Range):
            sound = found.permits(device, pointer, size)
        else:
            sound = bool(found and found.words[LIVE] and found.device == device)
        if not sound:
            raise CUDARuntimeError(ILLEGAL_ADDRESS, f"{size} bytes at {pointer:#x}")

    def is_pinned(self, device: int, pointer: int, size: int, *, mapped: bool = False) -> bool:
        """Whether a device reaches this host memory by itself; `mapped`: from a kernel."""
        with self.lock:
            for one in self.pinned:
                if one.touches(pointer, size):
                    if one.start <= pointer and pointer + size <= one.start + one.size:
                        known = one.device == device or one.flags & PORTABLE
                        return bool(known and (one.flags & MAPPED or not mapped))
                    raise CUDARuntimeError(INVALID_VALUE, "across the end of a registration")
        return False
