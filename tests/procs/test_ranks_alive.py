"""A scheduler and two ranks in processes of their own: joined, killed, superseded."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import permutations

import pytest

from .rank import Process
from .service import Service, eventually

SCHEDULER, RANKS = -1, (0, 1)
COUNT = 8


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


class Group:
    """One life of the engine."""

    def __init__(self, service: Service, generation: int, order: tuple[int, ...]) -> None:
        self.by_rank: dict[int, Process] = {}
        for rank in order:
            process = self.by_rank[rank] = Process(service.endpoint, generation, rank)
            process.tell("connect")

    def attached(self) -> "Group":
        """All of them are served."""
        for rank, process in self.by_rank.items():
            connected, loads, saves, note = process.hear()
            assert connected, rank
            assert rank < 0 or (loads, saves, note) == ("process_vm", "process_vm", "")
        return self

    def save(self, order: int, seed: int) -> None:
        """Both ranks save the same keys."""
        for rank in RANKS:
            self.by_rank[rank].tell("save", order, seed, COUNT)
        assert [self.by_rank[rank].hear() for rank in RANKS] == [["OK", COUNT]] * 2

    def holds(self, seed: int) -> None:
        """Both ranks load what they saved."""
        session, number, blocks = self.by_rank[SCHEDULER].ask("lookup", seed, COUNT)
        assert blocks == COUNT
        for rank in RANKS:
            assert self.by_rank[rank].ask("load", session, number, blocks, seed) == ["OK", True]

    def kill(self) -> None:
        for process in self.by_rank.values():
            process.kill()


@contextmanager
def group(
    service: Service, generation: int, order: tuple[int, ...] = (SCHEDULER, *RANKS)
) -> Iterator[Group]:
    with ExitStack() as stack:
        made = Group(service, generation, order)
        stack.callback(made.kill)
        yield made.attached()
    eventually("its session is gone", lambda: not any(r.engine for r in service.processes()))


@pytest.mark.parametrize("order", list(permutations((SCHEDULER, *RANKS))))
def test_whoever_starts_first_they_find_one_session(
    service: Service, order: tuple[int, ...]
) -> None:
    seed = 1 + sum((rank + 2) * 10**place for place, rank in enumerate(order))
    with group(service, seed, order) as pair:
        assert len([r for r in service.processes("session") if r.engine]) == 1
        pair.save(1, seed)
        pair.holds(seed)


def test_what_one_rank_saved_alone_is_not_there_and_the_next_engine_saves_it(
    service: Service,
) -> None:
    with group(service, 2001) as pair:
        pair.save(1, 2001)
        pair.by_rank[0].tell("save", 2, 2002, COUNT)
        pair.by_rank[1].kill()
        status, saved = pair.by_rank[0].hear()
        assert status != "OK" and saved == 0
    with group(service, 2003) as pair:
        assert pair.by_rank[SCHEDULER].ask("lookup", 2002, COUNT) == [0, 0, 0]
        pair.holds(2001)
        pair.save(1, 2002)
        pair.holds(2002)
    service.settled()


def test_a_late_rank_of_a_superseded_engine_is_kept_out(service: Service) -> None:
    with ExitStack() as stack:
        old = Group(service, 3001, (SCHEDULER, *RANKS)).attached()
        stack.callback(old.kill)
        old.save(1, 3001)
        old.by_rank[SCHEDULER].kill()
        old.by_rank[0].kill()
        eventually("its session is gone", lambda: not any(r.engine for r in service.processes()))
        with group(service, 3002) as new:
            late = old.by_rank[1]
            assert "in another generation" in late.ask("refused")
            assert late.ask("lookup", 3001, COUNT) == [0, 0, 0]
            new.holds(3001)
