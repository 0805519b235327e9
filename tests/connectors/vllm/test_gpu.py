"""KV memory on a GPU: what the service is told of it, and what comes before each order."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pegaflow.client.gpu
from pegaflow.client.buffers import EngineMemory
from pegaflow.connectors.vllm import gpu
from pegaflow.connectors.vllm.mover import Mover
from pegaflow.wire.gpu import NO_GPU, Backend
from pegaflow.wire.layout import LayerLayout, Layout
from tests.fakes import cuda, gpus
from tests.fakes.driver import Driver
from tests.fakes.engines import fresh

from .fakes import Request, Store
from .pair import Pair

LAYOUT = Layout(1, (LayerLayout(0, 0, 64, 64),), "uint8")


class Event:
    """torch.cuda.Event, which is made when it is first used."""

    refused = False  # no other process can open any

    def __init__(self, interprocess: bool = False) -> None:
        self.interprocess, self.number = interprocess, 0

    def _made(self) -> int:
        self.number = self.number or cuda.eventCreateWithFlags(2)
        return self.number

    def ipc_handle(self) -> bytes:
        if not self.interprocess or Event.refused:
            raise RuntimeError("CUDA error: invalid device context\nand more")
        return cuda.ipcGetEventHandle(self._made())

    def record(self, stream: int) -> None:
        cuda.eventRecord(self._made(), stream)


class Torch:
    """What is used of torch, with one stream per device."""

    current = 0  # device of the thread

    def __init__(self) -> None:
        self.cuda, self.Event = self, Event
        self.streams: dict[int, int] = {}

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        cuda.setDevice(device.index)
        Torch.current = device.index
        yield
        cuda.setDevice(0)
        Torch.current = 0

    def current_stream(self, device: Any) -> int:
        with self.device(device):
            if device.index not in self.streams:
                self.streams[device.index] = cuda.streamCreateWithFlags(0)
        return self.streams[device.index]


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Torch:
    fresh(tmp_path, monkeypatch)
    made = Torch()
    monkeypatch.setitem(sys.modules, "torch", made)
    monkeypatch.setattr(pegaflow.client.gpu, "_libcuda", Driver)
    return made


def tensor(address: int, size: int, device: int) -> Any:
    """A tensor in a storage."""
    storage = SimpleNamespace(data_ptr=lambda: address, nbytes=lambda: size)
    named = SimpleNamespace(type="cuda", index=device)
    return SimpleNamespace(device=named, untyped_storage=lambda: storage)


def test_each_storage_is_named_by_its_allocation_and_its_place_there(torch: Torch) -> None:
    cuda.setDevice(1)
    one, two = cuda.malloc(1 << 16), cuda.malloc(1 << 16)
    places = [(one + 512, 4096), (two, 8192), (one + 16384, 4096)]
    caches = {f"layers.{n}": tensor(*place, device=1) for n, place in enumerate(places)}
    assert gpu.holds(caches)
    addresses = [places[n][0] for n in (2, 0, 1)]
    made = gpu.exported(caches, addresses, LAYOUT, Backend.KERNEL).buffers
    assert made.memory.backend is Backend.KERNEL
    assert made.region_bytes == (4096, 4096, 8192)
    memory = made.memory
    assert (memory.bus, memory.uuid) == (gpus.BUSES[1].lower(), gpus.UUIDS[1])
    assert [region.offset for region in memory.regions] == [16384, 512, 0]
    handles = [region.handle for region in memory.regions]
    assert handles == [cuda.ipcGetMemHandle(base) for base in (one, one, two)]


def test_the_event_is_recorded_behind_what_was_launched(torch: Torch) -> None:
    cuda.setDevice(0)
    caches = {"a": tensor(cuda.malloc(4096), 4096, device=0)}
    made = gpu.exported(caches, [caches["a"].untyped_storage().data_ptr()], LAYOUT)
    stream, open_ = torch.current_stream(caches["a"].device), [False]
    cuda.launch(stream, lambda: None, lambda: open_[0])
    made.mark()
    (event,) = cuda.machine().events.values()
    assert event.name.encode() == made.buffers.memory.event.rstrip(b"\0")
    assert event.words[gpus.RECORDED] == 1 and event.words[gpus.DONE] == 0
    open_[0] = True
    cuda.streamSynchronize(stream)
    assert event.words[gpus.DONE] == 1


@pytest.mark.parametrize("capable", [False, True])
def test_memory_that_cannot_be_named_is_copied_here_and_one_line_says_so(
    torch: Torch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capable: bool,
) -> None:
    monkeypatch.setattr(pegaflow.client.gpu, "_libcuda", lambda: Driver(capable))
    address = cuda.malloc(4096)
    # A storage that ends behind its allocation lies in several of them in a row.
    caches = {"a": tensor(address, 8192 if capable else 4096, device=0)}
    made = gpu.exported(caches, [address], LAYOUT).buffers
    assert made.memory == NO_GPU and made.copier is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "copied by this process" in line
    kinds = ("unset expandable_segments", "set backend:native", "sleep mode (start without it)")
    assert all(kind in line for kind in kinds)


def test_where_events_cannot_be_shared_memory_is_copied_here(
    torch: Torch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Event, "refused", True)
    address = cuda.malloc(4096)
    made = gpu.exported({"a": tensor(address, 4096, device=0)}, [address], LAYOUT)
    assert made.buffers.memory == NO_GPU and made.buffers.copier is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "invalid device context" in line and "\n" not in line
    made.mark()


class Array:
    """What is used of a torch tensor of bytes, over numpy."""

    def __init__(self, bytes_: npt.NDArray[np.uint8]) -> None:
        self.bytes, self.shape = bytes_, bytes_.shape

    def __getitem__(self, at: Any) -> "Array":
        return Array(self.bytes[at])

    def numel(self) -> int:
        return self.bytes.size

    def view(self, shape: tuple[int, ...]) -> "Array":
        return Array(self.bytes.reshape(shape))

    def numpy(self) -> npt.NDArray[np.uint8]:
        return self.bytes

    def set_(self, storage: npt.NDArray[np.uint8]) -> "Array":
        return Array(storage)

    def copy_(self, source: "Array", non_blocking: bool) -> None:
        """Later, as the stream does it."""
        assert non_blocking
        Stream.tasks.append(lambda: np.copyto(self.bytes, source.bytes))


class Stream:
    """torch.cuda.Stream; whatever is copied is copied on the newest."""

    tasks: list[Callable[[], None]] = []

    def __init__(self, device: Any) -> None:
        Stream.tasks = []

    def synchronize(self) -> None:
        while Stream.tasks:
            Stream.tasks.pop(0)()


def test_a_staged_copy_moves_what_the_layout_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def strided(array: Array, shape: Any, strides: Any, offset: int) -> Array:
        return Array(np.lib.stride_tricks.as_strided(array.bytes[offset:], shape, strides))

    def empty(size: int, **how: Any) -> Array:
        assert how.get("pin_memory", size == 0)
        return Array(np.zeros(size, np.uint8))

    here = {"stream": lambda stream: nullcontext(), "device": lambda device: nullcontext()}
    on_stream = SimpleNamespace(Stream=Stream, **here)
    made = SimpleNamespace(cuda=on_stream, empty=empty, as_strided=strided, uint8=None)
    monkeypatch.setitem(sys.modules, "torch", made)
    plane = 8 * 64
    layers = (
        LayerLayout(0, 64, 64, 64, segments=2, segment_stride=plane),
        LayerLayout(1, 0, 128, 128),
    )
    layout = Layout(7, layers, "uint8")
    rng = np.random.default_rng(1)
    regions = [rng.integers(0, 256, size, np.uint8) for size in (64 + 2 * plane, 7 * 128)]
    copier = gpu.Copier(layout, regions, None, None)
    reference = EngineMemory(layout, [region.copy() for region in regions])
    page, expected = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    copier.save(page, 3)
    reference.save(expected, 3)
    assert np.array_equal(page, expected)
    copier.load(page, 5)
    copier.save(expected, 5)
    assert np.array_equal(page, expected)


@pytest.fixture
def copier(torch: Torch, monkeypatch: pytest.MonkeyPatch) -> gpu.Copier:
    """One on the second device, whose copies go nowhere."""
    made = gpu.Copier(LAYOUT, [], Recorded(), SimpleNamespace(type="cuda", index=1))

    def prepare(copier: gpu.Copier) -> None:
        copier._stream = Waiting()

    monkeypatch.setattr(gpu.Copier, "_prepare", prepare)
    monkeypatch.setattr(torch, "Event", Launched)
    return made


class Recorded:
    """The engine's event: how many kernels were launched before its newest record."""

    kernels = 3


class Waiting:
    """A stream that has been told to wait for so many kernels."""

    until = 0

    def wait_event(self, event: Recorded) -> None:
        assert Torch.current == 1, "or this thread makes a context on the first device"
        self.until = event.kernels


class Launched:
    """torch.cuda.Event of our own; with each look at it a kernel ends, and another is launched."""

    over = 0

    def record(self, stream: Waiting) -> None:
        self.until = stream.until

    def query(self) -> bool:
        assert Torch.current == 1
        self.over += 1
        Recorded.kernels += 1
        return self.over >= self.until


def test_a_staged_copy_waits_for_the_kernels_before_it_and_for_none_that_follow(
    copier: gpu.Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "kernels", 3)
    assert copier.wait(time.monotonic_ns() + 60 * 10**9) and Recorded.kernels == 6
    monkeypatch.setattr(Recorded, "kernels", 1 << 40)
    assert not copier.wait(time.monotonic_ns() + 1_000_000)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Marks and submissions of workers whose memory is taken for a GPU's, in their order."""
    seen: list[str] = []
    submit = Mover.submit

    def exported(caches: dict[str, Any], *_: Any) -> gpu.Exported:
        buffers: Any = [array.reshape(-1) for array in caches.values()]
        return gpu.Exported(buffers, lambda: seen.append("mark"))

    def submitted(mover: Mover, *jobs: Any) -> None:
        seen.append("submit")
        submit(mover, *jobs)

    monkeypatch.setattr(gpu, "holds", lambda caches: True)
    monkeypatch.setattr(gpu, "exported", exported)
    monkeypatch.setattr(Mover, "submit", submitted)
    return seen


def test_all_that_was_launched_comes_before_a_load_or_save(store: Store, marked: list[str]) -> None:
    pair = Pair()
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    saves = len(marked)
    assert marked == ["mark", "submit"] * (saves // 2) and saves
    pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15])
    pair.until(lambda: pair.received == ["b"])
    assert marked[saves:] == ["mark", "submit"]
    pair.close()


def test_memory_that_is_back_after_sleep_is_named_anew(
    store: Store, marked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was named before is freed by then; and so is the event behind it."""
    named: list[gpu.Exported] = []
    export = gpu.exported

    def exported(*of: Any) -> gpu.Exported:
        named.append(export(*of))
        return named[-1]

    monkeypatch.setattr(gpu, "exported", exported)
    pair = Pair()
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    pair.worker.unregister_kv_caches()
    assert len(named) == 1
    pair.worker.restore_kv_caches()
    pair.worker.restore_kv_caches()
    assert len(named) == 2, "once, for it is there once"
    half = pair.worker._worker
    assert half is not None and half._memory is not None
    assert half._memory[1] is named[1].buffers and half._mark is named[1].mark
    pair.close()
