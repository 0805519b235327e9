"""Blocks on a real GPU, moved by a session of a real service: right, in order, and without a leak.

No figure is asserted; perf/gpu.py has them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pegaflow.client import Unexportable
from pegaflow.device import gpufacts
from pegaflow.device.engine import cuda
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from perf import gpulayouts, gpuparts, gputables
from perf.gpucard import METHODS, Bus, Card, Engine, Memory, content, environment, new_keys, settled
from perf.gpuparts import LARGE, SMALL, served
from perf.gputables import FULL, MIB
from perf.gputorch import TorchDecode
from tests.procs.service import PATIENCE_S, Service

SHORT_S = 0.2  # in which a session that does not wait has long gone on
MOVED = 64 * MIB
ROUNDS = 100


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("gpu")
    with Service(folder / "run", pool_size="1GiB", extra=("--devices", "0")) as made:
        yield made


@pytest.fixture(scope="module")
def card() -> Card:
    return Card()


@pytest.fixture(scope="module")
def bus(card: Card) -> Bus:
    return Bus(card, MIB)


@pytest.fixture(scope="module")
def engine(card: Card, service: Service) -> Iterator[Engine]:
    made = served(card, service.endpoint, "layouts", SMALL, stays=True)
    yield made
    made.close()


def test_the_devices_are_the_same_by_driver_and_runtime(card: Card) -> None:
    memory = Memory(card, MIB)
    named = card.export([memory], "auto").memory
    assert cuda.number_of(card.runtime, named) == 0
    assert gpufacts.read().devices[0].bus == named.bus
    memory.free()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", gpulayouts.cases(), ids=lambda case: case.name)
def test_every_byte_comes_back(
    case: gpulayouts.Case, method: str, card: Card, engine: Engine
) -> None:
    turn = 1 + [c.name for c in gpulayouts.cases()].index(case.name) * len(METHODS)
    assert gpulayouts.verify(card, engine, case, method, turn + METHODS.index(method)) > 0


def test_small_allocations_of_one_slab_are_told_apart(card: Card, engine: Engine) -> None:
    """Each has a handle of its own, though the device has them in one piece."""
    size = 4 * 65536
    one, other = (Memory(card, size, alone=False) for _ in range(2))
    for seed, memory in enumerate((one, other)):
        memory.fill(seed)
    layers = tuple(LayerLayout(region, 0, 65536, 65536) for region in range(2))
    engine.renew(Layout(4, layers, "uint8", "slab"), [one, other])
    engine.save(new_keys(2, 9999), [0, 1])
    engine.load(new_keys(2, 9999), [2, 3])
    for seed, memory in enumerate((one, other)):
        half = content(size, seed << 12)[: size // 2]
        assert np.array_equal(memory.read(), np.concatenate([half, half]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("segment", FULL.segments)
def test_blocks_come_back_from_a_full_pool(
    segment: int, method: str, bus: Bus, service: Service
) -> None:
    shape = gputables.shape_of(segment, MOVED)
    memory = Memory(bus.card, 2 * shape.total)
    memory.fill(seed=1)
    gputables.copied(memory, service.endpoint, shape, bus=bus, method=method, turns=1)
    memory.free()


def test_a_save_waits_for_what_was_launched_before_it(card: Card, service: Service) -> None:
    engine = served(card, service.endpoint, "order", SMALL)
    (memory,) = engine.regions
    gate, keys, blocks = threading.Event(), new_keys(SMALL.blocks, 1), range(SMALL.blocks)
    memory.fill(seed=1)

    def wait(_: object) -> None:
        gate.wait(PATIENCE_S)

    card.runtime.launchHostFunc(card.stream, wait, 0)
    card.runtime.memsetAsync(memory.address, 7, memory.size, card.stream)
    card.record()
    engine.client.start_save(keys, blocks, timeout=PATIENCE_S)
    assert engine.client.poll(SHORT_S) == []
    gate.set()
    (done,) = engine.client.poll(PATIENCE_S)
    assert done.status is Status.OK
    memory.fill(seed=2)
    engine.load(keys, range(SMALL.blocks, 2 * SMALL.blocks))
    loaded = memory.read().reshape(2 * SMALL.layers, 2, -1)[:, 1]
    assert (loaded == 7).all()
    engine.close()


def test_nothing_is_left_of_rounds(card: Card, service: Service) -> None:
    gpuparts.rounds(card, service.endpoint, count=ROUNDS)


def test_a_session_is_killed_in_a_copy(card: Card, service: Service) -> None:
    gpuparts.session_killed(card, service.endpoint, shape=LARGE, times=2)


def test_an_engine_is_killed_in_a_copy(card: Card, service: Service) -> None:
    gpuparts.engine_killed(service.endpoint, shape=LARGE, times=2)


def test_two_ranks_have_one_session(card: Card, service: Service) -> None:
    (row,) = gpuparts.ranks(card, service.endpoint)
    assert row["sessions of the engine"] == "1"
    settled(service.endpoint)


def test_a_decoding_engine_goes_on_beside_copies(service: Service) -> None:
    pytest.importorskip("torch")
    for method in METHODS:
        gputables.slowed(TorchDecode(), service.endpoint, SMALL, method, 0.5)


def test_memory_of_an_asynchronous_allocator_cannot_be_named(card: Card) -> None:
    address = card.runtime.mallocAsync(MIB, card.stream)
    card.runtime.streamSynchronize(card.stream)
    memory = Memory.__new__(Memory)
    memory.card, memory.size, memory.address = card, MIB, address
    with pytest.raises(Unexportable, match="cudaMallocAsync"):
        card.export([memory], "auto")
    card.runtime.freeAsync(address, card.stream)


TORCH = """
import torch
from pegaflow.client import export
tensor = torch.zeros(1 << 26, dtype=torch.uint8, device="cuda")[4096:]
event = torch.cuda.Event(interprocess=True)
made = export([(tensor.data_ptr(), tensor.nbytes)], bytes(event.ipc_handle()))
print("offset", made.memory.regions[0].offset, len(made.memory.pieces))
"""


def torch_says(setting: str, *program: str) -> str:
    """The last line of a program whose PyTorch allocates in this way."""
    shell = {**environment(), "PYTORCH_CUDA_ALLOC_CONF": setting}
    shell.pop("PYTORCH_ALLOC_CONF", None)  # newer torch heeds it first
    done = subprocess.run([sys.executable, *program], env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_memory_of_torch_is_named_by_its_allocation() -> None:
    pytest.importorskip("torch")
    assert torch_says("expandable_segments:False", "-c", TORCH) == "offset 4096 0"


def test_expandable_segments_are_served_in_pieces(service: Service) -> None:
    pytest.importorskip("torch")
    line = torch_says("expandable_segments:True", "-m", "tests.gpu.expandable", service.endpoint)
    if "fabric handles alone" in line:
        pytest.skip(line)
    assert line == "pieces, cuda_ipc, cuda_ipc, 32 saved, same: True, left: True"
