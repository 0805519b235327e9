"""Ranks that hold the same bytes, each in a process of its own: they save one copy between them,
every engine of such a model finds it, and the death of one costs blocks and nothing else."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from .rank import BYTES, Process
from .service import Service, eventually

SCHEDULER = -1
COUNT = 8
EVEN, ODD = 2, 1
"""Orders in which rank 0 of two begins with the first block, or with the second."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


class Group:
    """One life of an engine."""

    def __init__(self, service: Service, world: int, replicas: int, stack: ExitStack) -> None:
        self.ranks: list[Process] = []
        generation = int.from_bytes(os.urandom(8), "big")
        for rank in range(SCHEDULER, world):
            process = Process(service.endpoint, generation, rank, world=world, replicas=replicas)
            stack.callback(process.kill)
            process.tell("connect")
            self.ranks.append(process)
        self.scheduler = self.ranks[0]
        for process in self.ranks:
            assert process.hear()[0]
        del self.ranks[0]

    def save(self, order: int, seed: int) -> list[int]:
        """All ranks save the same keys; how many blocks each."""
        for rank in self.ranks:
            rank.tell("save", order, seed, COUNT)
        ended = [rank.hear() for rank in self.ranks]
        assert {status for status, _ in ended} == {"OK"}
        return [saved for _, saved in ended]

    def found(self, seed: int) -> int:
        """So many blocks are found, and every rank loads them: the bytes that it would have
        computed."""
        session, number, blocks = self.scheduler.ask("lookup", seed, COUNT)
        for rank in self.ranks if blocks else ():
            assert rank.ask("load", session, number, blocks, seed) == ["OK", True]
        return int(blocks)


@contextmanager
def group(service: Service, world: int, replicas: int) -> Iterator[Group]:
    with ExitStack() as stack:
        yield Group(service, world, replicas, stack)
    eventually("its session is gone", lambda: not any(r.engine for r in service.processes()))


def test_they_hold_the_bytes_of_one_and_each_loads_all_of_them(service: Service) -> None:
    before = service.counter("pool_sealed_bytes")
    with group(service, 2, 2) as pair:
        assert pair.save(ODD, seed=1) == [COUNT // 2, COUNT // 2]
        assert pair.found(1) == COUNT
        copy = before + COUNT * BYTES
        eventually("there is one copy", lambda: service.counter("pool_sealed_bytes") == copy)


@pytest.mark.parametrize(("saver", "finder"), [(2, 1), (1, 2), (2, 4)])
def test_any_number_of_them_shares(service: Service, saver: int, finder: int) -> None:
    seed = 10 * saver + finder
    with group(service, saver, saver) as first:
        assert sum(first.save(ODD, seed)) == COUNT
    with group(service, finder, finder) as second:
        assert second.found(seed) == COUNT
    with group(service, 2, 1) as apart:
        assert apart.found(seed) == 0, "its ranks hold a half each"


@pytest.mark.parametrize(("order", "prefix"), [(ODD, 0), (EVEN, 1)])
def test_one_that_dies_before_it_saves_shortens_the_prefix(
    service: Service, order: int, prefix: int
) -> None:
    seed = 100 + order
    with group(service, 2, 2) as pair:
        assert pair.ranks[0].ask("save", order, seed, COUNT) == ["OK", COUNT // 2]
        pair.ranks[1].kill()
    with group(service, 2, 2) as pair:
        assert pair.found(seed) == prefix
        assert sum(pair.save(1, seed)) == COUNT // 2, "the other half is there"
        assert pair.found(seed) == COUNT


def test_one_that_stands_still_keeps_nobody(service: Service) -> None:
    with group(service, 2, 2) as pair:
        os.kill(pair.ranks[1].popen.pid, signal.SIGSTOP)
        assert pair.ranks[0].ask("save", EVEN, 200, COUNT) == ["OK", COUNT // 2]
        _, _, blocks = pair.scheduler.ask("lookup", 200, COUNT)
        assert blocks == 1
        os.kill(pair.ranks[1].popen.pid, signal.SIGCONT)
        assert pair.ranks[1].ask("save", EVEN, 200, COUNT)[0] in ("OK", "DROPPED")
