"""A run of the loop: the longest turn is measured, and what was there before is left alone."""

import gc
from itertools import count
from typing import Any

import pytest
import zmq

import pegaflow.actors.runtime.loop
from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.runtime.host import Host, Step
from pegaflow.actors.runtime.loop import Loop
from pegaflow.wire.links import DRAIN_MAX, DRAIN_NS
from tests.actors.rig import BOSS, HELLO, IDX

MS = 1_000_000


class Turns:
    """A host whose turns take so long, one after the other; then it stops."""

    def __init__(self, turns: list[int]) -> None:
        self.now = 1
        self.actor = Gateway(IDX, BOSS, HELLO)
        self._turns = turns

    def start(self, now: int) -> Step:
        return Step()

    def wake_at(self) -> int:
        return self.now

    def wake(self, now: int) -> Step:
        self.now += self._turns.pop(0)
        return Step(stop=None if self._turns else "done")


def test_the_longest_turn_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = Turns([3 * MS, 7 * MS, 5 * MS])
    monkeypatch.setattr(pegaflow.actors.runtime.loop, "monotonic", lambda: host.now)
    loop = Loop(host, lambda number, job: None)
    assert loop.run() == "done"
    assert loop.turns.longest_ns == 7 * MS
    gc.unfreeze()


def test_no_collection_looks_at_what_was_there_before_the_first_turn() -> None:
    class Stopping(Gateway):
        def start(self, now: int) -> list[Any]:
            found.append((gc.get_freeze_count(), len(gc.get_objects())))
            raise InterruptedError

    found: list[tuple[int, int]] = []
    loop = Loop(Host(Stopping(IDX, BOSS, HELLO)), lambda number, job: None)
    before = len(gc.get_objects())
    with pytest.raises(InterruptedError):
        loop.run()
    gc.unfreeze()
    loop.context.destroy(linger=0)
    ((frozen, left),) = found
    assert frozen >= before and left < before / 10


class Flood:
    """A socket that always has one more message."""

    closed = False
    read = 0

    def recv_multipart(self, flags: int) -> list[bytes]:
        self.read += 1
        return [b"somebody", b"no envelope", b""]

    def get(self, what: int) -> int:
        return zmq.POLLIN


@pytest.mark.parametrize(("each_ns", "read"), [(0, DRAIN_MAX), (MS, DRAIN_NS // MS)])
def test_a_flood_starves_nobody(monkeypatch: pytest.MonkeyPatch, each_ns: int, read: int) -> None:
    clock = count(0, each_ns)
    monkeypatch.setattr(pegaflow.actors.runtime.loop, "monotonic", lambda: next(clock))
    loop = Loop(Host(Gateway(IDX, BOSS, HELLO)), lambda number, job: None)
    flood: Any = Flood()
    loop._receive(flood, None)
    assert flood.read == read
    loop.context.destroy(linger=0)
