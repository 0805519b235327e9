"""A GPU as an engine has it: memory, an event, a client; and the bus, with nothing around it.

Everything goes through cupy's runtime, as the service's own copies do, so neither torch nor a
framework is needed; and where cupy is a stand-in (tests/fakes/cuda.py) it brings its libcuda along.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np

from pegaflow.client import Client, GpuBuffers, LoadDone, export, inspect
from pegaflow.core.errors import UserError
from pegaflow.device.engine import cuda
from pegaflow.service import sizes
from pegaflow.wire.control import ProcessRow, ProcessState
from pegaflow.wire.gpu import Backend
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION
from perf.machine import Bytes, timed

ROOT = Path(__file__).absolute().parents[1]
METHODS = tuple(backend.name.lower() for backend in Backend)
"""Of copies, as `pegaflow.transfer_backend` has them."""

SLAB = 2 << 20  # that cudaMalloc takes from the device at least
INTERPROCESS = 4  # cudaEventInterprocess
WAIT_S = 60.0
LOOK_S = 0.05
STILL_S = 10.0  # after so long nothing more is registered
CHUNK = 64 << 20  # of what is written or read at a time


class Card:
    """One device, its context in this process, and a stream and an event of ours."""

    def __init__(self, device: int = 0) -> None:
        self.runtime = cast(Any, cuda.load())
        try:
            self.runtime.setDevice(device)
            self.stream = self.runtime.streamCreateWithFlags(cuda.NON_BLOCKING)
            self.event = self.runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | INTERPROCESS)
        except RuntimeError as error:
            raise UserError(f"no GPU can be used: {cuda.first_line(error)}") from None

    def record(self) -> None:
        """What was launched before comes before what is ordered after."""
        self.runtime.eventRecord(self.event, self.stream)

    def free_bytes(self) -> int:
        """Of the device's memory, whoever has the rest."""
        return int(self.runtime.memGetInfo()[0])

    def export(self, regions: Sequence[Memory], method: str) -> GpuBuffers:
        """Memory as a client registers it; the method is one of METHODS."""
        import cupy.cuda

        parts = [(region.address, region.size) for region in regions]
        handle = self.runtime.ipcGetEventHandle(self.event)
        driver = getattr(cupy.cuda, "libcuda", None)
        return export(parts, handle, driver, backend=Backend[method.upper()])


class Memory:
    """An allocation on a card, as long as a framework's: what is smaller than SLAB shares one with
    others of the process.

    Args:
        alone: whether nothing else is in its slabs.
    """

    def __init__(self, card: Card, size: int, *, alone: bool = True) -> None:
        self.card, self.size = card, size
        self.address = int(card.runtime.malloc(-(-size // SLAB) * SLAB if alone else size))

    def write(self, content: Bytes, at: int = 0) -> None:
        """Put bytes there, and wait."""
        for start in range(0, len(content), CHUNK):
            part = np.ascontiguousarray(content[start : start + CHUNK])
            self._move(self.address + at + start, part.ctypes.data, len(part), to_device=True)

    def fill(self, seed: int) -> None:
        """Put bytes there that differ everywhere."""
        for number, start in enumerate(range(0, self.size, CHUNK)):
            size = min(CHUNK, self.size - start)
            self.write(content(size, (seed << 12) + number), start)

    def read(self, at: int = 0, size: int = 0) -> Bytes:
        """What is there; of all of it if no size is named."""
        found = np.empty(size or self.size, np.uint8)
        for start in range(0, len(found), CHUNK):
            part = found[start : start + CHUNK]
            self._move(part.ctypes.data, self.address + at + start, len(part), to_device=False)
        return found

    def free(self) -> None:
        """Nobody may have it open."""
        self.card.runtime.free(self.address)

    def _move(self, target: int, source: int, size: int, *, to_device: bool) -> None:
        kind = cuda.HOST_TO_DEVICE if to_device else cuda.DEVICE_TO_HOST
        self.card.runtime.memcpyAsync(target, source, size, kind, self.card.stream)
        self.card.runtime.streamSynchronize(self.card.stream)


class Bus:
    """Copies of one large pinned buffer: what the bus can do at best.  One lasts as long as its
    process: the buffer stays registered."""

    def __init__(self, card: Card, size: int) -> None:
        self.card, self.size = card, size
        self._host = mmap.mmap(-1, size)
        self._here = ctypes.addressof(ctypes.c_char.from_buffer(self._host))
        ctypes.memset(self._here, 1, size)
        card.runtime.hostRegister(self._here, size, cuda.PORTABLE)
        self._there = int(card.runtime.malloc(size))

    def out(self) -> float:
        """Seconds from the device to the host, as a save."""
        return self._timed(self._here, self._there, cuda.DEVICE_TO_HOST)

    def back(self) -> float:
        """Seconds to the device, as a load."""
        return self._timed(self._there, self._here, cuda.HOST_TO_DEVICE)

    def _timed(self, target: int, source: int, kind: int) -> float:
        card = self.card

        def copy() -> None:
            card.runtime.memcpyAsync(target, source, self.size, kind, card.stream)
            card.runtime.streamSynchronize(card.stream)

        return timed(copy)[0]


@dataclass(frozen=True)
class GpuShape:
    """Keys and values of so many layers in planes; twice the blocks: half is saved, half loaded."""

    blocks: int
    layers: int
    segment: int

    @property
    def total(self) -> int:
        """Bytes of all blocks that are saved."""
        return self.blocks * self.layers * 2 * self.segment

    @property
    def layout(self) -> Layout:
        plane = 2 * self.blocks * self.segment
        layers = tuple(
            LayerLayout(
                0, i * 2 * plane, self.segment, self.segment, segments=2, segment_stride=plane
            )
            for i in range(self.layers)
        )
        return Layout(2 * self.blocks, layers, "uint8", "gpu")

    def wrong(self, memory: Memory, blocks: Sequence[int]) -> int:
        """How many pieces of loaded blocks are not those of the saved ones."""
        half = self.blocks * self.segment
        pairs = [
            (plane * 2 * half + block * self.segment)
            for plane in range(2 * self.layers)
            for block in blocks
        ]
        return sum(
            not np.array_equal(memory.read(at, self.segment), memory.read(at + half, self.segment))
            for at in pairs
        )

    def __str__(self) -> str:
        return f"{self.blocks} x {self.layers} x 2 x {sizes.show(self.segment)}"


class Engine:
    """A client whose blocks are on a card.

    Args:
        name: of the engine.
        regions: of the layout.
        method: one of METHODS.
        stays: whether its session stays while nothing is registered, as an engine's does whose
            scheduler is a client too.
    """

    def __init__(
        self,
        endpoint: str,
        name: str,
        layout: Layout,
        *,
        card: Card,
        regions: Sequence[Memory],
        method: str = "auto",
        rank: int = 0,
        world: int = 1,
        generation: bytes | None = None,
        stays: bool = False,
    ) -> None:
        self.card, self.regions, self.name = card, regions, name
        self._layout, self._rank, self._method = layout, rank, method
        namespace = blake2b(name.encode(), digest_size=16).digest()  # none finds another's blocks
        self._scheduler: Client | None = None
        if stays:
            self._scheduler = Client(name, namespace, endpoint=endpoint, world=world)
            if not self._scheduler.connect(WAIT_S):
                raise UserError(f"no session: {self._scheduler.refusal}")
        self.client = Client(
            name,
            namespace,
            endpoint=endpoint,
            world=world,
            opens=rank == 0 and not stays,
            generation=generation,
        )
        self._register()

    def renew(
        self, layout: Layout, regions: Sequence[Memory], *, method: str | None = None
    ) -> float:
        """Give up what is registered and attach this instead, in the same session: milliseconds.

        Raises:
            UserError: it is not given up, or the other not opened.
        """
        start = time.perf_counter()
        if not self.client.unregister():
            raise UserError("the session did not give the memory up")
        for region in self.regions:
            region.free()
        self.regions, self._layout = regions, layout
        self._method = method or self._method
        self._register()
        self.attach()
        return 1e3 * (time.perf_counter() - start)

    def _register(self) -> None:
        buffers = self.card.export(self.regions, self._method)
        self.client.register(self._layout, buffers, rank=self._rank)
        self.card.record()

    def attach(self) -> float:
        """Milliseconds until the session has opened the memory.

        Raises:
            UserError: it has not, or not by CUDA IPC.
        """
        seconds, there = timed(lambda: self.client.connect(WAIT_S))
        if not there:
            raise UserError(f"no session: {self.client.refusal}")
        loads, saves, note = self.client.ways
        if (loads, saves) != ("cuda_ipc", "cuda_ipc"):
            raise UserError(f"loads go by {loads}, saves by {saves}: {note}")
        return 1e3 * seconds

    def save(self, keys: Sequence[bytes], blocks: Sequence[int]) -> float:
        """Seconds."""
        self.card.record()
        seconds, done = timed(lambda: self.client.save(keys, blocks, timeout=WAIT_S))
        if done.saved != len(keys):
            raise UserError(f"{done.saved} of {len(keys)} saved: {done.status.words}")
        return seconds

    def load(self, keys: Sequence[bytes], blocks: Sequence[int]) -> float:
        """Seconds, without the lookup before."""
        found = self.client.lookup(keys, timeout=WAIT_S)
        lease = found.lease
        if lease is None or found.blocks != len(keys):
            raise UserError(f"{found.blocks} of {len(keys)} blocks found")
        self.card.record()
        seconds, done = timed(lambda: self.client.load(lease, blocks, timeout=WAIT_S))
        loaded(done)
        return seconds

    def close(self, *, free: bool = True) -> None:
        """Leave, and free the memory once nobody has it open."""
        left = self.client.unregister()
        self.client.close()
        if self._scheduler is not None:
            self._scheduler.close()
        if left and free:
            for region in self.regions:
                region.free()


def loaded(done: LoadDone) -> None:
    """Nothing of it has failed."""
    if done.status is not Status.OK:
        raise UserError(f"not loaded: {done.status.words}")


def environment() -> dict[str, str]:
    """For `python -m perf...` as a child: it finds what we find."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), inherited)))}


def new_keys(count: int, turn: int) -> list[bytes]:
    """Block hashes of a turn."""
    return [b"%016x%016x" % (turn, block) for block in range(count)]


def content(size: int, seed: int) -> Bytes:
    """Bytes of which no eight that begin a word are alike, nor those of another seed."""
    words = np.arange(-(-size // 8), dtype=np.uint64)
    words += np.uint64(seed << 40)
    words *= np.uint64(0x9E3779B97F4A7C15)
    return words.view(np.uint8)[:size]


def session_of(endpoint: str, engine: str) -> ProcessRow:
    """The session that serves this engine, once the supervisor says so."""
    found: list[ProcessRow] = []

    def seen() -> bool:
        report = inspect(endpoint, 1.0)
        rows = report.processes if report else ()
        found.extend(r for r in rows if r.address.name == SESSION and r.engine == engine)
        return bool(found)

    wait_for(f"the session of {engine}", seen)
    return found[0]


def counters(endpoint: str) -> dict[str, int]:
    """All numbers of a service, summed over its processes."""
    found: dict[str, int] = {}
    report = inspect(endpoint, 1.0)
    for row in report.processes if report else ():
        for counter in row.counters:
            found[counter.name] = found.get(counter.name, 0) + counter.value
    return found


def registered(endpoint: str, engine: str = "") -> tuple[int, float]:
    """Bytes of the pool that a session has registered with the driver, once they are all or do not
    grow any more, and the seconds that took.

    Args:
        engine: that it serves; empty: the spare that has registered least.
    """
    start = last = time.monotonic()
    most = 0
    while time.monotonic() - last < STILL_S and time.monotonic() - start < WAIT_S:
        report = inspect(endpoint, 1.0)
        rows = report.processes if report else ()
        own = [r for r in rows if r.engine == engine if engine or r.state == ProcessState.SPARE]
        each = [c.value for r in own for c in r.counters if c.name == "session_registered_bytes"]
        if each and min(each) > most:
            most, last = min(each), time.monotonic()
        if report is not None and most >= report.pool_bytes:
            break
        time.sleep(LOOK_S)
    return most, last - start


def wait_for(what: str, true: Callable[[], bool]) -> None:
    """Look until it is so.

    Raises:
        UserError: it does not become so.
    """
    until = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > until:
            raise UserError(f"in {WAIT_S:.0f} s it has not come to this: {what}")
        time.sleep(LOOK_S)


def settled(endpoint: str) -> None:
    """Wait until the books of allocator, index and sessions agree on every byte of the pool."""

    def agree() -> bool:
        n = counters(endpoint)
        parts = sum(
            n.get(f"pool_{part}_bytes", 0) for part in ("free", "held", "sealed", "absent", "waste")
        )
        return (
            0 < n.get("pool_capacity_bytes", 0) == parts
            and n.get("pool_held_bytes") == n.get("session_held_bytes", 0)
            and n.get("pool_sealed_bytes") == n.get("resident_bytes")
        )

    wait_for("free + held + sealed is the pool", agree)


def open_files(pid: int) -> int:
    """Descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
