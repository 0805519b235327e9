"""The pool, registered with the driver of a GPU, so that devices read and write it by themselves.

It is done in the background, by a few threads that give way, in chunks of whole extents (no page
lies in two).  What is not registered yet, or never, goes through a ring of pinned memory
(pegaflow/device/engine/ring.py).  First come the extents in which this session has just copied, for
it will copy there again; then the others from the beginning of the pool, as they are filled.
Only what has been entered into our page tables is registered: the rest is not in memory yet, and a
driver that touches it would make it real.  Nothing is ever unregistered.  A spare that is given an
engine which it serves on no device registers no more.

Where the driver refuses, or `ulimit -l` does, we ask for no more, and one line says what was met
and what to set.

All of the pool is registered, however large it is, though a process dies the more slowly for it:
the driver gives each page back before the process is proven dead, 0.1 s for each GiB
(pegaflow/device/gpuusers.py has the figure).  The other way would be to register so little that
nobody notices; but then most loads of a large pool would go through the ring for as long as an
engine lives, and a session that is killed is rare: its requests wait for that proof, its engine
computes until then, and a new service waits for it with one line.  A pool of huge pages dies
hundreds of times faster.
"""

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part
from pegaflow.core.pool.columns import column
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.gpujobs import PinPages
from pegaflow.wire.jobs import Done
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import U64s

from .pagetables import PageTables

PIN_BYTES: Bytes = 256 << 20
"""Registered at a time: some tens of milliseconds, for which the driver may keep a copy waiting."""

AT_ONCE_SPARE: Count = 4
"""Chunks that a spare registers at once: the driver looks up page by page, which keeps a core
busy."""

AT_ONCE_SERVING: Count = 1
"""And a session with an engine: its copies ask the same driver."""


class Registration(Part):
    """Has the pool registered for the devices in use."""

    def __init__(self, tables: PageTables) -> None:
        self._tables = tables
        tables.listener = self
        self._at_once = 0  # 0: there is no context yet, none is used, or the driver has refused
        self._refused = False
        self._extent_bytes = 0
        self._entered_bytes = 0  # of the pool, from its beginning
        self._asked = bytearray()  # by extent: 1 once it is registered, or was to be
        self._soon: dict[int, None] = {}  # extents in which we have copied, the oldest first
        self._low = 0  # the lowest extent that may not be asked for yet
        self._running = 0
        self._registered_bytes = 0

    def gauges(self) -> dict[str, int]:
        """How far that has come."""
        return {"session_registered_bytes": self._registered_bytes}

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """It is known which pool."""
        self._extent_bytes = welcome.extent_bytes
        self._asked = bytearray(welcome.pool_bytes // welcome.extent_bytes)
        return []

    def begin(self, *, serving: bool) -> list[Effect]:
        """There is a context: register what is there, and what comes.

        Args:
            serving: an engine waits for copies from now on.
        """
        if self._refused:
            return []
        first, self._at_once = not self._at_once, AT_ONCE_SERVING if serving else AT_ONCE_SPARE
        return (self._tables.enter_all() if first else []) + self._go_on()

    def serve(self) -> None:
        """There is an engine, though nobody knows yet on which device."""
        self._at_once = min(self._at_once, AT_ONCE_SERVING)

    def rest(self) -> None:
        """No device is to copy: begin no more, until there is one."""
        self._at_once = 0
        self._soon.clear()

    def entered(self, upto: int) -> list[Effect]:
        """So many bytes of the pool, from its beginning, are in our page tables."""
        self._entered_bytes = upto
        return self._go_on()

    def used(self, offsets: U64s) -> None:
        """We copy pages that begin at these bytes of the pool."""
        if self._at_once and self._registered_bytes < len(self._asked) * self._extent_bytes:
            for extent in set((column(offsets) // self._extent_bytes).tolist()):
                if not self._asked[extent]:
                    self._soon[extent] = None

    def check(self) -> None:
        """Nothing is registered before it is there."""
        assert self._registered_bytes <= self._entered_bytes

    def _go_on(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._running < self._at_once:
            first, count = self._chunk()
            if not count:
                break
            self._asked[first : first + count] = b"\1" * count
            self._running += 1
            effects.append(self._pin(first * self._extent_bytes, count * self._extent_bytes))
        return effects

    def _chunk(self) -> tuple[int, int]:
        """The next extents: the first, and how many; 0: none."""
        there, asked = self._entered_bytes // self._extent_bytes, self._asked
        self._soon = {extent: None for extent in self._soon if not asked[extent]}
        while self._low < there and asked[self._low]:
            self._low += 1
        first = next((extent for extent in self._soon if extent < there), self._low)
        end = min(there, first + max(1, PIN_BYTES // self._extent_bytes))
        taken = asked.find(1, first, max(first, end))
        return first, max(0, (end if taken < 0 else taken) - first)

    def _pin(self, offset: int, length: int) -> Effect:
        def pinned(done: Done, now: int) -> list[Effect]:
            self._running -= 1
            if done.ok:
                self._registered_bytes += length
                return self._go_on()
            if self._refused:
                return []
            self._refused, self._at_once = True, 0
            facts = (("bytes", self._registered_bytes), ("why", done.note))
            return [Note("pool_not_pinned", facts, LogLevel.WARNING)]

        return Do(PinPages(offset, length), pinned)
