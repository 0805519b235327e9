"""Where the GPUs are, and memory that is put beside them."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pegaflow.actors.allocator.device import AllocatorDevice
from pegaflow.device import numa
from pegaflow.wire.jobs import Done, GrowExtent
from pegaflow.wire.status import Status

GPUS = {"0000:3b:00.0": 1, "0000:17:00.0": 0, "0000:af:00.0": 1, "0000:d8:00.0": 3}
FIRST, OTHER = UUID(int=7), UUID(int=9)


def host(root: Path, nodes: int = 4, gpus: dict[str, int] = GPUS) -> Path:
    for node in range(nodes):
        (root / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    for bus, node in gpus.items():
        pci, driver = root / f"sys/bus/pci/devices/{bus}", root / f"proc/driver/nvidia/gpus/{bus}"
        pci.mkdir(parents=True)
        driver.mkdir(parents=True)
        (pci / "numa_node").write_text(f"{node}\n")
        uuid = FIRST if bus == min(gpus) else OTHER
        (driver / "information").write_text(f"Model: \t\t X\nIRQ: 1\nGPU UUID: \t GPU-{uuid}\n")
    return root


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ((), [0, 1, 3]),
        (("0",), [0]),
        (("1", "2"), [1]),
        (("0000:d8:00.0", "1"), [1, 3]),
        ((f"GPU-{FIRST}",), [0]),
        (("9",), []),
    ],
)
def test_the_nodes_of_the_gpus_that_count(
    tmp_path: Path, names: tuple[str, ...], nodes: list[int]
) -> None:
    """They are numbered in the order of the bus."""
    assert numa.beside_gpus(names, host(tmp_path)) == nodes


def test_with_one_node_or_no_gpu_there_is_nothing_to_choose(tmp_path: Path) -> None:
    assert numa.beside_gpus((), host(tmp_path / "one", nodes=1)) == []
    assert numa.beside_gpus((), host(tmp_path / "none", gpus={})) == []
    assert numa.beside_gpus((), host(tmp_path / "unknown", gpus={"0000:01:00.0": -1})) == []
    assert numa.beside_gpus((), tmp_path / "nothing") == []


def test_what_the_kernel_says_of_it_is_handed_on() -> None:
    """Node 0 is there on any machine, node 1000 on none."""
    with mmap.mmap(-1, 1 << 20) as shared:
        view = ctypes.c_char.from_buffer(shared)
        address = ctypes.addressof(view)
        assert numa.prefer(address, 1 << 20, 0) in ("", "Operation not permitted")
        assert numa.prefer(address, 1 << 20, 1000) in (
            "Invalid argument",
            "Operation not permitted",
        )
        del view


class Placed:
    """An allocator's device on a host with GPUs beside nodes 1 and 3."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        *,
        numa_affinity: bool = True,
        why: str = "",
        huge: bool = False,
    ) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.counted: list[tuple[str, ...]] = []
        self.grown: list[object] = []  # where memory was preferred, and what was made real then

        def prefer(address: int, length: int, node: int) -> str:
            self.asked.append((address, length, node))
            return why

        def beside(names: tuple[str, ...]) -> list[int]:
            self.counted.append(names)
            return [1, 3]

        @contextmanager
        def preferring(node: int) -> Iterator[str]:
            self.grown.append(node)
            yield why
            self.grown.append(-1)

        patch.setattr(numa, "prefer", prefer)
        patch.setattr(numa, "preferring", preferring)
        patch.setattr(numa, "beside_gpus", beside)
        device: Any = AllocatorDevice(SimpleNamespace())  # type: ignore[arg-type]
        device._files = SimpleNamespace(
            welcome=SimpleNamespace(numa=numa_affinity, gpus=("0",)),
            geometry=SimpleNamespace(extent_bytes=100),
            pool=lambda: SimpleNamespace(address=5000, huge=huge),
            ledger=lambda: None,
        )
        patch.setattr("pegaflow.actors.allocator.device.Extents", lambda *_: self)
        self.device = device

    def grow(self, extent: int) -> str:
        """Of Extents: it is there."""
        self.grown.append(f"extent {extent}")
        return ""

    def done(self, extent: int) -> Done:
        result = self.device._grow(GrowExtent(extent))
        assert isinstance(result, Done)
        return result


def test_extents_are_spread_over_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Placed(monkeypatch)
    assert [host.done(extent) for extent in range(3)] == [Done(Status.OK)] * 3
    assert host.asked == [(5000, 100, 1), (5100, 100, 3), (5200, 100, 1)]
    assert host.counted == [("0",)], "once"


def test_a_kernel_that_refuses_is_asked_once_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Placed(monkeypatch, why="Operation not permitted")
    first, second = host.done(0), host.done(1)
    assert first.ok and "mbind to node 1: Operation not permitted" in first.note
    assert second == Done(Status.OK) and len(host.asked) == 1


def test_huge_pages_are_placed_by_who_makes_them_real(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Placed(monkeypatch, huge=True)
    assert [host.done(extent) for extent in range(2)] == [Done(Status.OK)] * 2
    assert host.grown == [1, "extent 0", -1, 3, "extent 1", -1] and not host.asked
    refused = Placed(monkeypatch, huge=True, why="Operation not permitted")
    first, second = refused.done(0), refused.done(1)
    assert "set_mempolicy to node 1: Operation not permitted" in first.note
    assert second == Done(Status.OK) and refused.grown == [1, "extent 0", -1, "extent 1"]


def policy() -> str:
    """By which memory of this thread is taken, as the kernel shows it."""
    return Path("/proc/thread-self/numa_maps").read_text().split()[1]


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
def test_a_thread_prefers_a_node_for_as_long_and_no_longer() -> None:
    assert policy() == "default"
    with numa.preferring(0) as why:
        assert (why, policy()) in (("", "prefer:0"), ("Operation not permitted", "default"))
    assert policy() == "default"
    with numa.preferring(1000) as why:
        assert why in ("Invalid argument", "Operation not permitted")


def test_where_it_is_not_wanted_nothing_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Placed(monkeypatch, numa_affinity=False)
    assert host.done(0) == Done(Status.OK) and not host.asked and not host.counted
