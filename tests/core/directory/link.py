"""A publisher, a follower, and a network between them that does what a test says."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pegaflow.core.directory import journal
from pegaflow.core.directory.copies import ASK_AGAIN_NS, Copies
from pegaflow.core.directory.journal import Ask, Changes, Chunk, Publisher, Said, Standing
from pegaflow.core.pool.fingerprints import U64
from tests.core.directory.test_held import has, spread

MOST = 1000
HOST = 1


@dataclass
class Refusal:
    """The answer to a fetch."""

    names: U64
    as_of: Standing


@dataclass
class Link:
    """A publisher, a follower, and what is on the way between them."""

    copies: Copies = field(default_factory=lambda: Copies(2, MOST))
    publisher: Publisher = field(default_factory=lambda: Publisher(1, MOST))
    now: int = 0
    owned: set[int] = field(default_factory=set)
    there: list[Said | Refusal] = field(default_factory=list)
    back: list[Ask] = field(default_factory=list)

    def put(self, names: U64) -> None:
        self.publisher.add(names)
        self.owned |= set(names.tolist())

    def take(self, names: U64) -> None:
        self.publisher.remove(names)
        self.owned -= set(names.tolist())

    def tell(self) -> None:
        while change := self.publisher.changes():
            assert len(change.removed) + len(change.added) <= journal.CHUNK_BLOCKS
            self.there.append(change)

    def fetch(self, names: U64) -> None:
        """Ask the publisher for what the copy says it has."""
        said = names[self.copies.owners_of(names, self.now) != 0]
        lost = [name for name in said.tolist() if name not in self.owned]
        self.there.append(Refusal(np.array(lost, np.uint64), self.publisher.standing))

    def arrive(self, what: Said | Refusal) -> None:
        if isinstance(what, Refusal):
            ask = self.copies.missing(HOST, what.names, what.as_of, self.now)
        else:
            ask = self.copies.receive(HOST, what, self.now)
        self.back += [ask] if ask else []

    def asked(self, ask: Ask) -> None:
        said = self.publisher.answer(ask)
        size = sum(len(s.added) + len(s.removed) for s in said if isinstance(s, Changes))
        assert size <= journal.ANSWER_BLOCKS + journal.CHUNK_BLOCKS
        self.there += said

    def wake(self) -> None:
        self.back += [ask for _, ask in self.copies.wake(self.now)]

    def settle(self) -> None:
        """Nothing is lost from now on."""
        for _ in range(3):
            self.tell()
            self.there.append(self.publisher.standing)
            turns = 0
            while self.there or self.back or self.copies.wake_at() == 0:
                if self.there:
                    self.arrive(self.there.pop(0))
                elif self.back:
                    self.asked(self.back.pop(0))
                else:
                    self.wake()
                turns += 1
                assert turns < 2000
            self.now += ASK_AGAIN_NS
            self.wake()

    @property
    def known(self) -> set[int]:
        return has(self.copies._held, HOST)

    def restart_publisher(self) -> None:
        """The same blocks, in another life."""
        self.publisher = Publisher(self.publisher.incarnation + 1, MOST)
        self.publisher.add(np.array(sorted(self.owned), np.uint64))

    def check(self) -> None:
        self.copies.check()
        self.publisher.check()


def settled(count: int) -> tuple[Link, U64]:
    """A copy of so many blocks, whole."""
    link, names = Link(), spread(count)
    link.put(names)
    link.settle()
    assert link.copies.of(HOST).whole and link.known == set(names.tolist())
    return link, names


def chunks(link: Link) -> Iterator[Chunk]:
    """A snapshot, chunk by chunk; the caller may change things in between."""
    while link.there or link.back:
        if link.back:
            link.asked(link.back.pop(0))
        said = link.there.pop(0)
        link.arrive(said)
        if isinstance(said, Chunk):
            yield said
