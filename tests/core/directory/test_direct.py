"""The direct backing, hosts that tell each other, passes the suite of all backings."""

from collections import deque

import numpy as np
import pytest

from pegaflow.core.directory import journal
from pegaflow.core.directory.copies import ASK_AGAIN_NS, HIDDEN_NS, Copies
from pegaflow.core.directory.journal import Ask, Publisher, Said
from pegaflow.core.pool.fingerprints import U64
from tests.core.directory.conformance import HOSTS, Conformance, Fleet, Owners

MOST = 2000


class Direct(Fleet):
    """A publisher and the copies of all others at each host, and a network that loses what goes to
    or from a host that is cut off."""

    def __init__(self) -> None:
        self.now, self.lives = 0, 0
        self.blocks = [set[int]() for _ in range(HOSTS)]
        self.publishers = [self._publisher(host) for host in range(HOSTS)]
        self.copies = [Copies(HOSTS, MOST) for _ in range(HOSTS)]
        self.off = set[int]()
        self.way = deque[tuple[int, int, Said | Ask]]()  # who says what to whom

    def _publisher(self, host: int) -> Publisher:
        self.lives += 1
        publisher = Publisher(self.lives, MOST)
        publisher.add(np.array(sorted(self.blocks[host]), np.uint64))
        return publisher

    def put(self, host: int, names: U64) -> None:
        self.blocks[host] |= set(names.tolist())
        self.publishers[host].add(names)

    def take(self, host: int, names: U64) -> None:
        self.blocks[host] -= set(names.tolist())
        self.publishers[host].remove(names)

    def _say(self, host: int, to: int, what: Said | Ask | None) -> None:
        if what is not None and host != to and not {host, to} & self.off:
            self.way.append((host, to, what))

    def _arrive(self) -> None:
        while self.way:
            host, to, what = self.way.popleft()
            if isinstance(what, Ask):
                for said in self.publishers[to].answer(what):
                    self._say(to, host, said)
            else:
                self._say(to, host, self.copies[to].receive(host, what, self.now))

    def settle(self) -> None:
        for _ in range(3):
            self.now += ASK_AGAIN_NS // 2
            for host, publisher in enumerate(self.publishers):
                told: list[Said] = []
                while change := publisher.changes():
                    told.append(change)
                for said in [*told, publisher.standing]:
                    for to in range(HOSTS):
                        self._say(host, to, said)
            self._arrive()
            for host, copies in enumerate(self.copies):
                for to, ask in copies.wake(self.now):
                    self._say(host, to, ask)
            self._arrive()

    def owners(self, asking: int, names: U64) -> Owners:
        masks = self.copies[asking].owners_of(names, self.now).tolist()
        return [{host for host in range(HOSTS) if mask >> host & 1} for mask in masks]

    def refuse(self, asking: int, host: int, names: U64) -> None:
        as_of = self.publishers[host].standing
        self._say(asking, host, self.copies[asking].missing(host, names, as_of, self.now))

    def restart(self, host: int) -> None:
        self.publishers[host] = self._publisher(host)
        self.copies[host] = Copies(HOSTS, MOST)

    def cut(self, host: int, cut_off: bool) -> None:
        (self.off.add if cut_off else self.off.discard)(host)

    def wait_until_hidden(self) -> None:
        self.now += HIDDEN_NS - ASK_AGAIN_NS
        self.settle()


class TestDirect(Conformance):
    @pytest.fixture(autouse=True)
    def small_messages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal, "CHUNK_BLOCKS", 16)
        monkeypatch.setattr(journal, "JOURNAL_BLOCKS", 100)
        monkeypatch.setattr(journal, "ANSWER_BLOCKS", 32)

    def fleet(self) -> Fleet:
        return Direct()
