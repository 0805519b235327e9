"""One engine against a cache in this process that can fail or hand out wrong bytes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from pegaflow.client import Lease, LoadDone, LookupDone, SaveDone
from pegaflow.replay.content import Bytes
from pegaflow.replay.engine import Engine, Record, Shape
from pegaflow.wire.identities import Incarnation, LeaseId
from pegaflow.wire.status import Status

SPACE = b"namespace of a test"
SHAPE = Shape(layers=3, layer_bytes=4096, blocks=4)


class FakeCache:
    """A client whose service is a dictionary."""

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.held: dict[bytes, Bytes] = {}  # key -> (layers, layer_bytes)
        self.leases: dict[int, list[bytes]] = {}  # not yet loaded
        self.parents: list[bytes] = []  # of each save
        self.attached = True
        self.refusal = ""
        self.down: set[str] = set()  # calls that fail
        self.connects = 0

    def connect(self, timeout: float) -> bool:
        self.connects += 1
        return self.attached

    def lookup(self, keys: Sequence[bytes], *, timeout: float) -> LookupDone:
        if "lookup" in self.down:
            return LookupDone(1, Status.EXPIRED, None, 0)
        hit = next((n for n, key in enumerate(keys) if key not in self.held), len(keys))
        if not hit:
            return LookupDone(1, Status.OK, None, 0)
        number = len(self.leases) + 1
        self.leases[number] = list(keys[:hit])
        return LookupDone(1, Status.OK, Lease(Incarnation(1), LeaseId(number), hit), hit)

    def load(self, lease: Lease, blocks: Sequence[int], *, timeout: float) -> LoadDone:
        keys = self.leases.pop(lease.number)
        assert len(blocks) == len(keys)
        if "load" in self.down:
            return LoadDone(2, Status.COPY_FAILED, tuple(blocks[1:]))
        for key, block in zip(keys, blocks, strict=True):
            self.memory[:, block] = self.held[key]
        return LoadDone(2, Status.OK, ())

    def save(
        self, keys: Sequence[bytes], blocks: Sequence[int], *, parent: bytes, timeout: float
    ) -> SaveDone:
        assert len(set(blocks)) == len(blocks) == len(keys)
        self.parents.append(parent)
        if "save" in self.down:
            return SaveDone(3, Status.DISCONNECTED, 0, 0)
        new = [n for n, key in enumerate(keys) if key not in self.held]
        for n in new:
            self.held[keys[n]] = self.memory[:, blocks[n]].copy()
        return SaveDone(3, Status.OK, len(new), len(keys) - len(new))


def engine() -> tuple[Engine, FakeCache]:
    memory = SHAPE.allocate()
    cache = FakeCache(memory)
    return Engine(cache, SHAPE, memory, SPACE), cache


def keys(*names: int) -> list[bytes]:
    return [bytes([name]) * 32 for name in names]


def blocks_of(record: Record) -> tuple[int, int, int, int]:
    return record.asked, record.served, record.saved, record.known


def test_the_second_time_the_prefix_comes_from_the_cache() -> None:
    one, cache = engine()
    assert blocks_of(one.request(0, keys(1, 2, 3))) == (3, 0, 3, 0)
    again = one.request(1, keys(1, 2, 9))
    assert blocks_of(again) == (3, 2, 1, 0)
    assert again.verified_bytes == again.load_bytes == 2 * SHAPE.block_bytes
    assert again.save_bytes == SHAPE.block_bytes
    assert again.wrong_bytes == 0 and not again.failures
    assert cache.parents == [b"", keys(2)[0]]
    assert not cache.leases


def test_a_long_request_goes_through_in_windows() -> None:
    one, cache = engine()
    chain = keys(*range(1, 11))
    assert blocks_of(one.request(0, chain)) == (10, 0, 10, 0)
    assert cache.parents == [b"", chain[3], chain[7]]
    again = one.request(1, chain + keys(99))
    assert blocks_of(again) == (11, 10, 1, 0)
    assert len(again.lookup_seconds) == 3 and again.wrong_bytes == 0


def test_after_a_miss_nothing_more_is_looked_up() -> None:
    one, _ = engine()
    one.request(0, keys(1, 2, 3, 4, 5))
    broken = one.request(1, keys(1, 9, 2, 3, 4, 5))
    assert blocks_of(broken) == (6, 1, 1, 4)
    assert len(broken.lookup_seconds) == 1


def swap_layers(cache: FakeCache) -> None:
    first = keys(1)[0]
    cache.held[first] = cache.held[first][[1, 0, 2]]


def cut_in_half(cache: FakeCache) -> None:
    cache.held[keys(1)[0]][2, 2048:] = 0


def hand_out_the_neighbour(cache: FakeCache) -> None:
    cache.held[keys(1)[0]] = cache.held[keys(2)[0]]


@pytest.mark.parametrize(
    ("spoil", "where", "most"),
    [
        (swap_layers, "layer 0, byte 0", 2 * 4096),
        (cut_in_half, "layer 2, byte 2048", 2048),
        (hand_out_the_neighbour, "layer 0, byte 0", 3 * 4096),
    ],
)
def test_wrong_bytes_are_counted_and_placed(spoil: object, where: str, most: int) -> None:
    one, cache = engine()
    one.request(0, keys(1, 2))
    assert callable(spoil)
    spoil(cache)
    record = one.request(1, keys(1, 2))
    assert 0.9 * most < record.wrong_bytes <= most
    assert record.wrong == f"block {keys(1)[0].hex()[:16]}, {where}"


def test_a_load_that_does_nothing_is_not_mistaken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, cache = engine()
    one.request(0, keys(1, 2, 3, 4))
    monkeypatch.setattr(cache, "load", lambda *a, **k: LoadDone(2, Status.OK, ()))
    assert one.request(1, keys(1, 2, 3, 4)).wrong_bytes > 0.9 * 4 * SHAPE.block_bytes


def test_a_failure_is_a_miss() -> None:
    one, cache = engine()
    one.request(0, keys(1, 2, 3))
    cache.down = {"load"}
    half = one.request(1, keys(1, 2, 3))
    assert half.failures == {"load copy failed": 1} and half.load_bytes == 0
    assert half.served + half.known == 3 and half.wrong_bytes >= 0
    cache.down = {"lookup", "save"}
    none = one.request(2, keys(1, 2, 3))
    assert none.failures == {"lookup expired": 1, "save disconnected": 1}
    assert blocks_of(none) == (3, 0, 0, 0)


def test_a_lost_service_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    one, cache = engine()
    now = Counter[str]()
    monkeypatch.setattr("time.monotonic", lambda: float(now["s"]))

    def connect(timeout: float) -> bool:
        cache.connects += 1
        now["s"] += 8
        return False

    monkeypatch.setattr(cache, "connect", connect)
    cache.attached = False
    for index in range(6):
        one.request(index, keys(1))
    assert cache.connects == 3


def test_the_memory_is_cut_as_the_layout_says() -> None:
    memory = SHAPE.allocate()
    layout = SHAPE.layout()
    assert memory.shape == (3, 4, 4096) and not memory.any()
    assert len(layout.layers) == 3 and layout.blocks == 4
    assert np.shares_memory(memory, memory[1, 2])
