"""The pool in our page tables, before an engine needs it there.

A session copies into pages of the pool and out of them.  Whichever of them its process has never
touched, the kernel has to enter into its page tables first, in the middle of the copy, so that the
first saves and loads of an engine would take half as long again as later ones.  So a session has
the pages entered in advance, from its first moment on, slice by slice, in a thread that gives way
to engines: while it is a spare, and if it is taken before that is over, while it serves.  Only what
is in memory already is entered; the pool grows, low extents first, and what is not there yet is
looked for with each beat.

Where the kernel refuses, the first touch enters a page, as before.

Once an engine on a GPU is served, what has been entered is registered with the driver, too, so that
the device reads and writes it by itself: again in the background, extent by extent (no page lies in
two), and what is not yet goes through a ring of pinned memory (pegaflow/device/engine/ring.py).
Where that is refused (`ulimit -l`) it goes there for good, and one line says so.
"""

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.gpujobs import PinPages
from pegaflow.wire.jobs import Done, EnterPages, PagesEntered
from pegaflow.wire.units import Bytes

SLICE_BYTES: Bytes = 16 << 20
"""Entered at a time: about a millisecond, for which a copy of this session may have to wait."""

ADVANCE_MAX: Bytes = 64 << 30
"""Of the pool, at most: each GiB costs 2 MiB of page tables, and a killed process is proven dead
only when they are taken apart, 45 to 50 ms for each GiB.  Who adopts a pool waits 5 s for an orphan
(device/locks.py).  The rest comes with its use."""

PIN_BYTES: Bytes = 256 << 20
"""Registered at a time: some tens of milliseconds, for which the driver may keep a copy waiting."""


class PageTables(Part):
    """Has the pool entered into our page tables, and registered for the devices in use."""

    def __init__(self) -> None:
        self._entered_bytes = 0  # from the beginning of the pool
        self._most_bytes = 0  # of it; 0: not told yet
        self._entering = False  # a slice is
        self._extent_bytes = 0
        self._pins = False  # an engine on a GPU is served, and the driver has refused nothing
        self._pinned_bytes = 0  # from the beginning of the pool, whole extents
        self._pinning = False

    def gauges(self) -> dict[str, int]:
        """How far that has come."""
        return {
            "session_entered_bytes": self._entered_bytes,
            "session_registered_bytes": self._pinned_bytes,
        }

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """It is known which pool."""
        self._most_bytes = min(welcome.pool_bytes, ADVANCE_MAX)
        self._extent_bytes = welcome.extent_bytes
        return self._go_on()

    def beat(self, now: int) -> list[Effect]:
        """There may be more of it now."""
        return self._go_on()

    def pin(self) -> list[Effect]:
        """An engine on a GPU is served: register what is there, and what comes."""
        self._pins = True
        return self._pin_on()

    def check(self) -> None:
        """Nothing is entered twice, nor registered before it is there."""
        assert self._pinned_bytes <= self._entered_bytes <= self._most_bytes

    def _pin_on(self) -> list[Effect]:
        ready = min(self._entered_bytes - self._pinned_bytes, max(PIN_BYTES, self._extent_bytes))
        length = ready // self._extent_bytes * self._extent_bytes
        if self._pinning or not self._pins or not length:
            return []

        def pinned(done: Done, now: int) -> list[Effect]:
            self._pinning = False
            if done.ok:
                self._pinned_bytes += length
                return self._pin_on()
            self._pins = False
            facts = (("bytes", self._pinned_bytes), ("why", done.note))
            return [Note("pool_not_pinned", facts, LogLevel.WARNING)]

        self._pinning = True
        return [Do(PinPages(self._pinned_bytes, length), pinned)]

    def _go_on(self) -> list[Effect]:
        length = min(SLICE_BYTES, self._most_bytes - self._entered_bytes)
        if self._entering or not length:
            return []

        def entered(result: PagesEntered | Done, now: int) -> list[Effect]:
            self._entering = False
            if isinstance(result, Done):
                self._most_bytes = self._entered_bytes
                facts = (("bytes", self._entered_bytes), ("why", result.note))
                return [Note("pages_not_entered", facts, LogLevel.DEBUG)]
            self._entered_bytes += result.length
            pins = self._pin_on()
            return pins + (self._go_on() if result.length == length else [])

        self._entering = True
        return [Do(EnterPages(self._entered_bytes, length), entered)]
