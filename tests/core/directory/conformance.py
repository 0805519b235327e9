"""What every backing of the directory must do, whatever is between the hosts.

A backing is shown to the suite as a Fleet: hosts 0, 1, ... that have blocks, know something of
each other, and can be cut off and restarted.  Whoever brings a backing derives a Fleet from it, and
a class from `Conformance` that makes one (test_direct.py).
"""

from abc import ABC, abstractmethod

import numpy as np

from pegaflow.core.pool.fingerprints import U64
from tests.core.directory.test_held import spread

Owners = list[set[int]]
"""Of each block."""

HOSTS = 4


class Fleet(ABC):
    """Some hosts, and the directory between them."""

    @abstractmethod
    def put(self, host: int, names: U64) -> None:
        """A host has these blocks from now on."""

    @abstractmethod
    def take(self, host: int, names: U64) -> None:
        """A host has not got these blocks any more."""

    @abstractmethod
    def settle(self) -> None:
        """Let everything arrive that is on its way between hosts that are not cut off."""

    @abstractmethod
    def owners(self, asking: int, names: U64) -> Owners:
        """Who has these blocks, as far as a host knows; it does not count itself."""

    @abstractmethod
    def refuse(self, asking: int, host: int, names: U64) -> None:
        """A host was asked for blocks that it has not, and says so to the asking one."""

    @abstractmethod
    def restart(self, host: int) -> None:
        """What a host runs of the directory begins anew; the blocks are the same."""

    @abstractmethod
    def cut(self, host: int, cut_off: bool) -> None:
        """Nothing comes from a host or to it, or everything again."""

    @abstractmethod
    def wait_until_hidden(self) -> None:
        """As long as a silent host may be named."""


def lists(names: U64, *owners: int) -> Owners:
    return [set(owners) for _ in names]


class Conformance(ABC):
    """The suite."""

    @abstractmethod
    def fleet(self) -> Fleet:
        """A new one, of HOSTS hosts without blocks."""

    def test_what_a_host_has_everybody_else_finds(self) -> None:
        fleet, names = self.fleet(), spread(300)
        fleet.put(0, names)
        fleet.settle()
        for asking in range(1, HOSTS):
            assert fleet.owners(asking, names) == lists(names, 0)
        assert fleet.owners(0, names) == lists(names)

    def test_nobody_has_what_nobody_has(self) -> None:
        fleet, names = self.fleet(), spread(20)
        fleet.put(0, spread(20, seed=2))
        fleet.settle()
        assert fleet.owners(1, names) == lists(names)

    def test_all_owners_are_named(self) -> None:
        fleet, names = self.fleet(), spread(30)
        fleet.put(0, names)
        fleet.put(1, names[:20])
        fleet.put(2, names[10:])
        fleet.settle()
        assert fleet.owners(3, names) == [{0, 1}] * 10 + [{0, 1, 2}] * 10 + [{0, 2}] * 10

    def test_what_has_gone_is_not_found_and_others_keep_it(self) -> None:
        fleet, names = self.fleet(), spread(40)
        fleet.put(0, names)
        fleet.put(1, names)
        fleet.settle()
        fleet.take(0, names[:25])
        fleet.settle()
        assert fleet.owners(2, names) == [{1}] * 25 + [{0, 1}] * 15

    def test_what_comes_again_is_found_again(self) -> None:
        fleet, names = self.fleet(), spread(10)
        for _ in range(3):
            fleet.put(0, names)
            fleet.settle()
            assert fleet.owners(1, names) == lists(names, 0)
            fleet.take(0, names)
            fleet.settle()
            assert fleet.owners(1, names) == lists(names)

    def test_a_stale_owner_costs_one_failed_fetch(self) -> None:
        fleet, names = self.fleet(), spread(10)
        fleet.put(0, names)
        fleet.settle()
        fleet.take(0, names[:4])
        fleet.refuse(1, 0, names[:4])
        assert fleet.owners(1, names) == [set()] * 4 + [{0}] * 6
        fleet.settle()
        assert fleet.owners(1, names) == [set()] * 4 + [{0}] * 6

    def test_what_was_refused_and_came_again_is_found(self) -> None:
        fleet, names = self.fleet(), spread(10)
        fleet.put(0, names)
        fleet.settle()
        fleet.take(0, names)
        fleet.refuse(1, 0, names)
        fleet.put(0, names)
        fleet.settle()
        assert fleet.owners(1, names) == lists(names, 0)

    def test_a_restarted_host_has_what_it_had_and_knows_what_it_knew(self) -> None:
        fleet, names = self.fleet(), spread(50)
        fleet.put(0, names[:30])
        fleet.put(1, names[20:])
        fleet.settle()
        fleet.restart(0)
        fleet.settle()
        assert fleet.owners(2, names) == [{0}] * 20 + [{0, 1}] * 10 + [{1}] * 20
        assert fleet.owners(0, names) == [set()] * 20 + [{1}] * 30

    def test_what_goes_with_a_restart_is_not_found_later(self) -> None:
        fleet, names = self.fleet(), spread(50)
        fleet.put(0, names)
        fleet.settle()
        fleet.cut(0, True)
        fleet.take(0, names[:30])
        fleet.restart(0)
        fleet.cut(0, False)
        fleet.settle()
        assert fleet.owners(1, names) == [set()] * 30 + [{0}] * 20

    def test_a_host_that_is_cut_off_is_hidden_and_comes_back(self) -> None:
        fleet, names = self.fleet(), spread(20)
        fleet.put(0, names)
        fleet.put(1, names[:10])
        fleet.settle()
        fleet.cut(0, True)
        fleet.take(0, names[:5])
        fleet.wait_until_hidden()
        assert fleet.owners(2, names) == [{1}] * 10 + [set()] * 10
        fleet.cut(0, False)
        fleet.settle()
        assert fleet.owners(2, names) == [{1}] * 5 + [{0, 1}] * 5 + [{0}] * 10

    def test_whom_nothing_reaches_catches_up(self) -> None:
        fleet, names = self.fleet(), spread(400)
        fleet.put(0, names)
        fleet.settle()
        fleet.cut(3, True)
        for first in range(0, 400, 50):
            fleet.take(0, names[first : first + 25])
            fleet.settle()
        fleet.cut(3, False)
        fleet.settle()
        left = np.arange(400) % 50 >= 25
        assert fleet.owners(3, names) == [{0} if there else set() for there in left.tolist()]

    def test_equal_questions_have_equal_answers(self) -> None:
        fleet, names = self.fleet(), spread(10)
        fleet.put(0, names)
        fleet.settle()
        twice = np.concatenate((names, names[::-1]))
        assert fleet.owners(1, twice) == lists(twice, 0)
        assert fleet.owners(1, names[:0]) == []
