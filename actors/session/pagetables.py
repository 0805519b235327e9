"""The pool in our page tables, before an engine needs it there.

A session copies into pages of the pool and out of them.  Whichever of them its process has never
touched, the kernel has to enter into its page tables first, in the middle of the copy, so that the
first saves and loads of an engine would take half as long again as later ones.  So a session has
the pages entered in advance, from its first moment on, slice by slice, in a thread that gives way
to engines: while it is a spare, and if it is taken before that is over, while it serves.  Only what
is in memory already is entered; the pool grows, low extents first, and what is not there yet is
looked for with each beat.

Where the kernel refuses, the first touch enters a page, as before.

Of a very large pool only the low part is entered, unless a GPU is to reach it all
(registration.py), which nothing but what has been entered is registered for.
"""

from typing import Protocol

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.jobs import Done, EnterPages, PagesEntered
from pegaflow.wire.units import Bytes

SLICE_BYTES: Bytes = 16 << 20
"""Entered at a time: about a millisecond, for which a copy of this session may have to wait."""

ADVANCE_MAX: Bytes = 64 << 30
"""Of the pool, at most: each GiB costs 2 MiB of page tables, and a killed process is proven dead
only when they are taken apart, 45 to 50 ms for each GiB; whoever waits for that waits as long.  The
rest comes with its use."""


class EntryListener(Protocol):
    """Who has to know what is entered."""

    def entered(self, upto: int) -> list[Effect]:
        """So many bytes of the pool, from its beginning, are."""


class PageTables(Part):
    """Has the pool entered into our page tables."""

    def __init__(self) -> None:
        self._entered_bytes = 0  # from the beginning of the pool
        self._most_bytes = 0  # of it; 0: not told yet
        self._entering = False  # a slice is
        self._pool_bytes = 0
        self._enters = True  # the kernel has refused nothing
        self.listener: EntryListener | None = None  # set once, by whoever is made of us

    def gauges(self) -> dict[str, int]:
        """How far that has come."""
        return {"session_entered_bytes": self._entered_bytes}

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """It is known which pool."""
        self._most_bytes = min(welcome.pool_bytes, ADVANCE_MAX)
        self._pool_bytes = welcome.pool_bytes
        return self._go_on()

    def beat(self, now: int) -> list[Effect]:
        """There may be more of it now."""
        return self._go_on()

    def enter_all(self) -> list[Effect]:
        """A GPU is to reach all of the pool."""
        self._most_bytes = self._pool_bytes if self._enters else self._most_bytes
        return self._go_on()

    def check(self) -> None:
        """Nothing is entered twice."""
        assert self._entered_bytes <= self._most_bytes

    def _go_on(self) -> list[Effect]:
        length = min(SLICE_BYTES, self._most_bytes - self._entered_bytes)
        if self._entering or not length:
            return []

        def entered(result: PagesEntered | Done, now: int) -> list[Effect]:
            self._entering = False
            if isinstance(result, Done):
                self._most_bytes, self._enters = self._entered_bytes, False
                facts = (("bytes", self._entered_bytes), ("why", result.note))
                return [Note("pages_not_entered", facts, LogLevel.DEBUG)]
            self._entered_bytes += result.length
            heard = self.listener.entered(self._entered_bytes) if self.listener is not None else []
            return heard + (self._go_on() if result.length == length else [])

        self._entering = True
        return [Do(EnterPages(self._entered_bytes, length), entered)]
