"""KV memory on a GPU: what the service is told of it, and what comes before each order."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pegaflow.client.gpu
from pegaflow.client import GpuBuffers, Unexportable
from pegaflow.client.gpu import NOT_SHARED
from pegaflow.connectors.vllm import gpu
from pegaflow.connectors.vllm.mover import Mover
from tests.fakes import cuda, gpus
from tests.fakes.driver import Driver
from tests.fakes.engines import fresh

from .fakes import Request, Store
from .pair import Pair


class Event:
    """torch.cuda.Event, which is made when it is first used."""

    def __init__(self, interprocess: bool = False) -> None:
        assert interprocess
        self.number = 0

    def _made(self) -> int:
        self.number = self.number or cuda.eventCreateWithFlags(2)
        return self.number

    def ipc_handle(self) -> bytes:
        return cuda.ipcGetEventHandle(self._made())

    def record(self, stream: int) -> None:
        cuda.eventRecord(self._made(), stream)


class Torch:
    """What is used of torch, with one stream per device."""

    def __init__(self) -> None:
        self.cuda, self.Event = self, Event
        self.streams: dict[int, int] = {}

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        cuda.setDevice(device.index)
        yield
        cuda.setDevice(0)

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
    made = gpu.exported(caches, addresses).buffers
    assert made.region_bytes == (4096, 4096, 8192)
    memory = made.memory
    assert (memory.bus, memory.uuid) == (gpus.BUSES[1].lower(), gpus.UUIDS[1])
    assert [region.offset for region in memory.regions] == [16384, 512, 0]
    handles = [region.handle for region in memory.regions]
    assert handles == [cuda.ipcGetMemHandle(base) for base in (one, one, two)]


def test_the_event_is_recorded_behind_what_was_launched(torch: Torch) -> None:
    cuda.setDevice(0)
    caches = {"a": tensor(cuda.malloc(4096), 4096, device=0)}
    made = gpu.exported(caches, [caches["a"].untyped_storage().data_ptr()])
    stream, open_ = torch.current_stream(caches["a"].device), [False]
    cuda.launch(stream, lambda: None, lambda: open_[0])
    made.mark()
    (event,) = cuda.machine().events.values()
    assert event.name.encode() == made.buffers.memory.event.rstrip(b"\0")
    assert event.words[gpus.RECORDED] == 1 and event.words[gpus.DONE] == 0
    open_[0] = True
    cuda.streamSynchronize(stream)
    assert event.words[gpus.DONE] == 1


@pytest.mark.parametrize("case", ["incapable", "two devices", "not its own"])
def test_memory_that_cannot_be_named_is_one_line(
    torch: Torch, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    caches = {"a": tensor(cuda.malloc(4096), 4096, device=0)}
    if case == "incapable":
        monkeypatch.setattr(pegaflow.client.gpu, "_libcuda", lambda: Driver(capable=False))
    elif case == "two devices":
        cuda.setDevice(1)
        caches["b"] = tensor(cuda.malloc(4096), 4096, device=1)
    else:
        address = caches["a"].untyped_storage().data_ptr()
        caches["a"] = tensor(address, 8192, device=0)  # of several allocations in a row
    addresses = [cache.untyped_storage().data_ptr() for cache in caches.values()]
    with pytest.raises(Unexportable) as error:
        gpu.exported(caches, addresses)
    line = str(error.value)
    assert "\n" not in line and ("2 devices" in line or line == NOT_SHARED)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Marks and submissions of workers whose memory is taken for a GPU's, in their order."""
    seen: list[str] = []
    submit = Mover.submit

    def exported(caches: dict[str, Any], _: Any) -> gpu.Exported:
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


def test_an_engine_whose_memory_cannot_be_named_goes_on_without_us(
    store: Store,
    marked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*_: Any) -> GpuBuffers:
        raise Unexportable(NOT_SHARED)

    monkeypatch.setattr(gpu, "exported", refused)
    pair = Pair(waits=False)
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    pair.compute(request, [])
    assert not pair.finish(request) and marked == []
    (line,) = [r.getMessage() for r in caplog.records if "off" in r.getMessage()]
    assert "expandable_segments" in line
    pair.close()
