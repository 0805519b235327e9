"""GPU memory in pieces: found in the driver, exported for an Attach, and closed after it."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.client import Client, GpuBuffers, Unexportable, export, gpu
from pegaflow.client.machine import State
from pegaflow.wire.gpu import NO_FD, NO_HANDLE
from pegaflow.wire.layout import LayerLayout, Layout
from tests.fakes import cuda, vmm
from tests.fakes.driver import Driver
from tests.fakes.engines import fresh
from tests.fakes.vmm import Segment

SIZE = 4096
EVENT = bytes(64)
LAYOUT = Layout(1, (LayerLayout(0, 0, 64, 64),), "uint8")


@pytest.fixture(autouse=True)
def _gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fresh(tmp_path, monkeypatch)
    yield
    assert vmm.exported() == [], "left open"


def named(segment: Segment, *regions: tuple[int, int]) -> GpuBuffers:
    return export([(segment.address + at, size) for at, size in regions], EVENT, Driver())


def test_regions_are_named_by_the_pieces_that_they_lie_in() -> None:
    segment = Segment(6, SIZE)
    start = segment.address
    memory = named(segment, (SIZE + 8, SIZE), (2 * SIZE + 8, 16), (5 * SIZE, SIZE)).memory
    assert [r.handle for r in memory.regions] == [NO_HANDLE] * 3
    assert [r.offset - start for r in memory.regions] == [SIZE + 8, 2 * SIZE + 8, 5 * SIZE]
    found = [(p.address - start, p.length, p.fd) for p in memory.pieces]
    assert found == [(n * SIZE, SIZE, NO_FD) for n in (1, 2, 5)], "each once, by address"


def test_other_memory_beside_it_has_its_handle() -> None:
    cuda.setDevice(0)
    segment, other = Segment(1, SIZE), cuda.malloc(SIZE)
    memory = export([(segment.address, 8), (other + 64, 8)], EVENT, Driver()).memory
    assert memory.regions[0].handle == NO_HANDLE and len(memory.pieces) == 1
    handle = cuda.ipcGetMemHandle(other)
    assert (memory.regions[1].handle, memory.regions[1].offset) == (handle, 64)


def test_their_descriptors_are_made_anew_each_time_and_not_inherited() -> None:
    segment = Segment(3, SIZE)
    buffers = named(segment, (0, 3 * SIZE))
    assert buffers.lender is not None
    for _ in range(2):
        lent = buffers.lender.lend(buffers.memory)
        assert len(vmm.exported()) == 3
        assert not any(os.get_inheritable(piece.fd) for piece in lent.pieces)
    segment.sleep()
    assert buffers.lender.lend(buffers.memory) == buffers.memory, "none is there, and none is open"


@pytest.mark.parametrize(
    ("kinds", "why"),
    [(0, "created to be shared with nobody"), (vmm.FABRIC, "fabric handles alone")],
)
def test_what_was_not_created_for_it_is_said_in_a_line(kinds: int, why: str) -> None:
    with pytest.raises(Unexportable, match=why) as error:
        named(Segment(2, SIZE, kinds=kinds), (0, 8))
    assert "\n" not in str(error.value)


def test_memory_of_a_pool_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be created for descriptors, which are those of the pool."""
    ask = Driver.cuPointerGetAttribute

    def pooled(self: Driver, data: object, attribute: int, pointer: object) -> int:
        status = ask(self, data, attribute, pointer)
        if attribute == gpu.MEMPOOL:
            data._obj.value = 7  # type: ignore[attr-defined]
        return status

    monkeypatch.setattr(Driver, "cuPointerGetAttribute", pooled)
    with pytest.raises(Unexportable, match="cudaMallocAsync"):
        named(Segment(1, SIZE), (0, 8))


def test_a_region_ends_where_nothing_is_mapped() -> None:
    with pytest.raises(Unexportable):
        named(Segment(2, SIZE), (0, 2 * SIZE + 1))


def test_what_the_driver_does_not_export_is_found_before_an_attach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Driver, "cuMemExportToShareableHandle", lambda *_: 1)
    segment = Segment(1, SIZE)
    held = cuda.machine().holding[segment.names[0]]
    with pytest.raises(Unexportable):
        named(segment, (0, 8))
    assert cuda.machine().holding[segment.names[0]] == held, "the handle is given back"


def test_more_pieces_than_descriptors_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (gpu.FILES_SPARE + 2, 1 << 20))
    assert len(named(Segment(2, SIZE), (0, 2 * SIZE)).memory.pieces) == 2
    with pytest.raises(Unexportable, match=r"in 3 pieces.*have 2 for them \(ulimit -n, at most 16"):
        named(Segment(3, SIZE), (0, 3 * SIZE))


def test_descriptors_stay_open_until_it_is_settled(tmp_path: Path) -> None:
    """A session that was told their numbers takes them later, and may not find others there."""
    client = Client("engine", bytes(16), endpoint=str(tmp_path / "nobody.sock"))
    client.register(LAYOUT, named(Segment(2, SIZE), (0, 2 * SIZE)))
    assert client._memory is not None
    client._memory.lend(client._memory.gpu)  # type: ignore[union-attr]
    for state in State:
        client._machine.state = state
        if state in (State.JOINING, State.LEAVING, State.DYING):
            client._take_back()
            assert len(vmm.exported()) == 2, state
    client._machine.state = State.READY
    client._take_back()
    assert vmm.exported() == []
    client._machine.state = State.LOST
    client.close()
