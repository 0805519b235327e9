"""Numbered grants: the one way in which memory, leases and claims change hands between processes.

A granter gives a holder something under a number, 1, 2, ... per holder.  Any message may be lost,
so the holder says from time to time "up to number n I hold exactly these" (a *statement*): what is
omitted up to n was given back and the word was lost; what is later than n was granted and the grant
may have been lost, so it is sent again.  Time ends nothing.

`Grants` is the granter's book.  A granter that has died is followed by one with an empty book: then
the holders restate what they have (`adopt`), and numbers go on from the newest that each has heard
of (`go_on_from`), so that no number ever means two things.

`Holdings` is the holder's; `Heard` is that of a holder which keeps what it holds elsewhere: by the
number it knows whether a grant is new or was sent again.  `omitted` is the rule of a statement by
itself; the allocator, whose holders name pages and not the grants that they came by, has it once
more, of arrays, since a holder may have ten thousand (pool/owners.py).

This is a floor below the actors, like the tables of leases and claims (blocks/), which are made of
it and know no actor either: a book sends nothing.  When a holder speaks of its books is in
actors/roles/holder.py; the granters share no more than the book.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

N = TypeVar("N", bound=int)
T = TypeVar("T")


def omitted(granted: Mapping[T, N], upto: N, stated: Collection[T]) -> list[T]:
    """What its holder has given back, and the word was lost.

    Args:
        granted: what the holder has by our book -> the number under which it was granted.
        upto: the holder has heard of all grants up to this number.
        stated: what the holder says that it has.
    """
    kept = set(stated)
    return [one for one, number in granted.items() if number <= upto and one not in kept]


class Statement(NamedTuple, Generic[N, T]):
    """What a statement has brought to light."""

    dropped: list[tuple[N, T]]  # ended now: its holder has given it back, and the word was lost
    resend: list[tuple[N, T]]  # the holder may not have got it


class Grants(Generic[N, T]):
    """All grants of one kind that have not ended.

    Args:
        number: the type of their numbers.
    """

    def __init__(self, number: Callable[[int], N]) -> None:
        self._number = number
        self._open: dict[Hashable, dict[N, T]] = {}  # holder -> number -> grant; none empty
        self._last: dict[Hashable, N] = {}  # newest number of each unfenced holder

    def next(self, holder: Hashable) -> N:
        """The number of the next grant; it is used up."""
        number = self._last[holder] = self._number(self.last(holder) + 1)
        return number

    def add(self, holder: Hashable, number: N, grant: T) -> None:
        """A grant of a number that `next` has given, or that its holder restates."""
        self.go_on_from(holder, number)
        self._open.setdefault(holder, {})[number] = grant

    def go_on_from(self, holder: Hashable, number: N) -> None:
        """The holder has heard of grants up to this number."""
        self._last[holder] = max(self.last(holder), number)

    def last(self, holder: Hashable) -> N:
        """The newest number of this holder; 0: none."""
        return self._last.get(holder, self._number(0))

    def get(self, holder: Hashable, number: N) -> T | None:
        """The grant of this number; None: it has ended, or never was."""
        return self._open.get(holder, {}).get(number)

    def end(self, holder: Hashable, number: N) -> T | None:
        """End a grant.

        Returns:
            What was granted; None if there is none of that number, which a repeated word finds.
        """
        held = self._open.get(holder)
        grant = held.pop(number, None) if held else None
        if grant is not None and not held:
            del self._open[holder]
        return grant

    def statement(self, holder: Hashable, upto: N, numbers: Collection[N]) -> Statement[N, T]:
        """A holder says what it holds.

        Args:
            upto: it has heard of all grants up to this number.
            numbers: those of them that it holds.

        Returns:
            What it has given back unheard, which has ended now; and what it may not have got.
        """
        held = dict(self.held(holder))
        ended = omitted({number: number for number in held}, upto, numbers)
        for number in ended:
            self.end(holder, number)
        resend = [entry for entry in held.items() if entry[0] > upto]
        return Statement([(number, held[number]) for number in ended], resend)

    def fence(self, holder: Hashable) -> list[tuple[N, T]]:
        """The holder is proven dead: end all it had.  Its name is never heard again."""
        self._last.pop(holder, None)
        return list(self._open.pop(holder, {}).items())

    def held(self, holder: Hashable) -> list[tuple[N, T]]:
        """What the holder has, by number, in the order in which it was granted."""
        return list(self._open.get(holder, {}).items())

    def count(self, holder: Hashable) -> int:
        """How many grants the holder has."""
        return len(self._open.get(holder, ()))

    def holders(self) -> Collection[Hashable]:
        """Everybody who has anything."""
        return self._open.keys()

    def __iter__(self) -> Iterator[tuple[Hashable, N, T]]:
        for holder, held in self._open.items():
            for number, grant in held.items():
                yield holder, number, grant

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def check(self) -> None:
        """Numbers are known, and nobody is kept who has nothing."""
        for holder, held in self._open.items():
            assert held, "an empty holder stayed"
            assert max(held) <= self._last[holder]


class Heard(Generic[N]):
    """The newest number that a process has heard of from one granter.

    Args:
        number: the type of its numbers.
    """

    def __init__(self, number: Callable[[int], N]) -> None:
        self.upto = number(0)  # statements say it

    def hear(self, number: N) -> bool:
        """A grant of this number has come; False: it was sent again, and we had it."""
        new = number > self.upto
        self.upto = max(self.upto, number)
        return new


class Holdings(Heard[N], Generic[N, T]):
    """What a process holds of one granter, by number."""

    def __init__(self, number: Callable[[int], N]) -> None:
        super().__init__(number)
        self._held: dict[N, T] = {}

    def hold(self, number: N, grant: T) -> None:
        """It is ours from now on.

        Args:
            number: may be one that we have already: then the grant was sent again.
        """
        self.hear(number)
        self._held[number] = grant

    def end(self, number: N) -> T | None:
        """We hold it no longer; None if we did not."""
        return self._held.pop(number, None)

    def get(self, number: N) -> T | None:
        """What we hold under this number; None: nothing."""
        return self._held.get(number)

    def items(self) -> list[tuple[N, T]]:
        """All of it, in the order in which it came."""
        return list(self._held.items())

    def values(self) -> list[T]:
        """All of it, without the numbers."""
        return list(self._held.values())

    def numbers(self) -> tuple[N, ...]:
        """What a statement names."""
        return tuple(self._held)

    def __contains__(self, number: N) -> bool:
        return number in self._held

    def __len__(self) -> int:
        return len(self._held)
