"""What a client looks up by itself, in shared memory: see wire/session.py.

    asked      the session is asked for a section of its hazards (Borrow), once somebody looks up
    lent       the files are mapped; lookups are answered here, as long as the section allows it
    a lease    is ours alone until it is passed on (Took), and ends by our own store until then

It begins anew with each session, and with each time that the machine has lost it: what was lent is
forgotten, and what stands in it ends first.

Pure, but for the memory: `lend` maps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.errors import UserError
from pegaflow.core.pool.columns import column, offsets_of, said
from pegaflow.core.pool.finder import Finder, Run
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import Hazards, Pages
from pegaflow.wire.identities import Key, LeaseId
from pegaflow.wire.message import Message
from pegaflow.wire.session import SHARE_NS, Borrow, Lent, Looked, Took
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import KEY_BYTES_MAX, LIST_MAX, PackedU64s, U64s

from .effects import Effect
from .machine import Machine, State
from .patience import OPEN_NS
from .results import Lease, LookupDone, Seen

AGAIN_NS: tuple[Nanoseconds, ...] = (20_000_000, 100_000_000, 500_000_000, 5_000_000_000)
"""From one Borrow to the next, longer each time: the index notes hazards within milliseconds, and
what else is in the way may be so for long."""

LOOKED_NS: Nanoseconds = 500_000_000
"""From one Looked to the next: metrics are read every few seconds."""

USED_MAX: Count = 4096
"""Used blocks that are told of at once, those of the latest uses, and of a use the leading ones: a
tail that is told of without its head would outlive it."""

OpenLent = Callable[[Lent], tuple[Finder, Hazards]]
"""Maps what was lent; raises UserError if it cannot."""


class _Section(NamedTuple):
    """What the session has lent us."""

    lent: Lent
    finder: Finder
    hazards: Hazards


class _Own(NamedTuple):
    """A lease that nobody else knows of."""

    run: Run
    since_ns: int  # when it was found


class Finding:
    """Looks up without a message, where it can."""

    def __init__(self, machine: Machine, lend: OpenLent) -> None:
        self._machine, self._lend = machine, lend
        self._life = 0  # of the machine's, in which a section was asked for
        self._section: _Section | None = None
        self._own: dict[int, _Own] = {}  # leases by number, the oldest first
        self._copying: dict[int, Run] = {}  # leases that are copied from, by number
        self._next = 0  # number of the next lease
        self.why = "nobody has looked up yet"  # each lookup costs a message; '': it does not
        self._fault = ""  # why what was lent is of no use to us
        self._asked = False  # a Borrow has no answer yet
        self._tries, self._ask_at_ns = 0, 0
        self._looked = 0, 0, 0  # lookups, blocks asked and hit, not told of
        self._used: list[Pages] = []  # first pages, use by use, not told of
        self._told_ns = 0  # when it was told last

    # lookups

    def find(self, keys: Sequence[Key], now: int) -> LookupDone | None:
        """Find the leading blocks that are in memory, and keep them.

        Args:
            keys: of blocks, in chain order.
            now: CLOCK_MONOTONIC in nanoseconds, here and everywhere.

        Returns:
            None: the session has to be asked.
        """
        section = self._section
        if section is None or not self._current:
            return None
        lent, finder, hazards = section
        room = hazards.allowed - len(hazards) * lent.block_bytes
        if room < len(keys) * lent.block_bytes:
            hazards.take_back()
            room = hazards.allowed - len(hazards) * lent.block_bytes
        if room <= 0:
            return None
        run = finder.find(lent.namespace, keys, hazards, shards=lent.world, most_bytes=room)
        if run is None:
            return None
        blocks = run.blocks
        if blocks < len(keys) and (run.cut or run.goes_on):
            hazards.clear(run.rows)
            return None
        lookups, asked, hit = self._looked
        self._looked = lookups + 1, asked + len(keys), hit + blocks
        ticket = self._machine.link.number()
        if not blocks:
            return LookupDone(ticket, Status.OK, None, 0)
        number, self._next = self._next, self._next + 1
        self._own[number] = _Own(run, now)
        lease = Lease(self._machine.link.session.incarnation, number, blocks)
        return LookupDone(ticket, Status.OK, lease, blocks)

    def see(self, keys: Sequence[Key]) -> Seen | None:
        """Look at blocks without keeping them; None: it cannot be known here."""
        section = self._section
        if section is None or not self._current:
            return None
        lent, finder, _ = section
        sight = finder.see(lent.namespace, keys, shards=lent.world)
        if sight is None:
            return None
        below = None if sight.below is None else tuple(sight.below.tolist())
        return Seen(tuple(sight.here.tolist()), below)

    def share(self, lease: Lease) -> list[Effect]:
        """Pass a lease on to the session; nothing if it has it."""
        return self._pass_on(lease.number) if self._is_own(lease) else []

    def release(self, lease: Lease) -> bool:
        """End a lease that nobody else knows of; whether it was one."""
        if not self._is_own(lease):
            return False
        self._end(self._own.pop(lease.number).run)
        return True

    def copy(self, lease: Lease, first: int, count: int) -> tuple[U64s, Callable[[], bool]] | None:
        """Copy these blocks of a lease that nobody else knows of.

        Returns:
            Where they are in the pool, and what to ask once they are copied: whether they were
            there all the while; that ends the lease.  None: the session has to do it.
        """
        section = self._section
        if section is None or not self._is_own(lease):
            return None
        lent, finder, _ = section
        if lent.world > 1 or lent.verify:
            return None
        number, part = lease.number, slice(first, first + count)
        run = self._copying[number] = self._own.pop(number).run
        pages, stamps = run.pages[part], run.stamps[part]
        geometry = Geometry(lent.pool_bytes, lent.extent_bytes)

        def stands() -> bool:
            if self._copying.pop(number, None) is not run:
                return False
            good = finder.sealed(pages, stamps)
            self._end(run)
            return good

        return said(offsets_of(geometry, column(pages), lent.page_size)), stands

    # the section

    def wish(self, now: int) -> list[Effect]:
        """Somebody has to look up by message: have a section lent, if it is time to ask."""
        machine = self._machine
        if machine.state is not State.READY:
            return []
        if not self._current:
            self._forget()
            self._life, self._asked, self._tries, self._ask_at_ns = machine.lives, False, 0, 0
        if not machine.visible:
            self.why = "the session is on TCP or in another pid namespace"
            return []
        useful = self._section is not None and self._section.hazards.allowed
        if useful or self._asked or now < self._ask_at_ns:
            return []
        self._asked = True
        life = self._life

        def answered(answer: Message | None, now: int) -> list[Effect]:
            return self._answered(answer, now) if life == self._life else []

        return [machine.link.ask(Borrow(self._fault), now + OPEN_NS, answered)]

    def leave(self, now: int) -> list[Effect]:
        """The session is about to be left: nothing of ours stands there any more."""
        self._forget()
        told = self._tell(now) if self._machine.state is State.READY else []
        self._life = 0
        return told

    def wake_at(self) -> int | None:
        """When `wake` wants to be called."""
        if not self._current:
            return None
        times = [own.since_ns + SHARE_NS for own in [*self._own.values()][:1]]
        if self._looked[0] or self._used:
            times.append(self._told_ns + LOOKED_NS)
        return min(times, default=None)

    def wake(self, now: int) -> list[Effect]:
        """Pass on what has waited for long, and say what was looked up."""
        if not self._current:
            return []
        old = [number for number, own in self._own.items() if own.since_ns + SHARE_NS <= now]
        effects = [effect for number in old for effect in self._pass_on(number)]
        return effects + (self._tell(now) if now >= self._told_ns + LOOKED_NS else [])

    def tell_used(self, now: int) -> list[Effect]:
        """Say which blocks were used, before something is saved that is younger than this use."""
        return self._tell(now) if self._used and self._current else []

    # inside

    @property
    def _current(self) -> bool:
        """Whether the session is the one that was asked, and we have not been without it since."""
        machine = self._machine
        return machine.state is State.READY and machine.lives == self._life

    def _is_own(self, lease: Lease) -> bool:
        mine = lease.session == self._machine.link.session.incarnation
        return mine and lease.number in self._own and self._current

    def _pass_on(self, number: int) -> list[Effect]:
        assert self._section is not None
        run, lent = self._own.pop(number).run, self._section.lent
        self._section.hazards.give(run.rows)
        stamps, rows = _packed(run.stamps), _packed(run.rows)
        pages = _packed(run.pages)
        return [
            self._machine.link.tell(Took(LeaseId(number), lent.namespace, pages, stamps, rows=rows))
        ]

    def _end(self, run: Run) -> None:
        assert self._section is not None
        self._section.hazards.clear(run.rows)
        self._used.append(run.pages[:: self._section.lent.world])
        del self._used[:-USED_MAX]

    def _forget(self) -> None:
        for run in [*(own.run for own in self._own.values()), *self._copying.values()]:
            self._end(run)
        self._own, self._copying, self._section = {}, {}, None

    def _answered(self, answer: Message | None, now: int) -> list[Effect]:
        """The session lends us a section, or not."""
        self._asked = False
        self._ask_at_ns = now + AGAIN_NS[min(self._tries, len(AGAIN_NS) - 1)]
        self._tries += 1
        if not isinstance(answer, Lent):
            return []
        if answer.status is not Status.OK:
            self.why = answer.note or answer.status.words
            return []
        self._forget()
        try:
            self._section = _Section(answer, *self._lend(answer))
        except UserError as err:
            self.why = self._fault = str(err)
            return []
        self.why = self._fault = ""
        self._next, self._tries = answer.first, 0
        return []

    def _tell(self, now: int) -> list[Effect]:
        self._told_ns, (lookups, asked, hit) = now, self._looked
        used = np.concatenate([*self._used[::-1], np.zeros(0, np.int64)])[:USED_MAX]
        self._looked, self._used = (0, 0, 0), []
        if not (lookups or len(used)):
            return []
        return [self._machine.link.tell(Looked(lookups, asked, hit, _packed(used)))]


def _packed(numbers: npt.NDArray[Any]) -> Any:
    """A list of the wire, of whatever these are the numbers of."""
    return PackedU64s(numbers.astype("<u8").tobytes()) if len(numbers) else ()


def as_keys(keys: Sequence[bytes]) -> tuple[Key, ...]:
    """Keys as the wire wants them: at least one, 8..64 bytes, all of one length."""
    lengths = set(map(len, keys))
    if len(lengths) != 1 or not 8 <= min(lengths) <= KEY_BYTES_MAX or len(keys) > LIST_MAX:
        raise ValueError(f"1..{LIST_MAX} keys of one length of 8..{KEY_BYTES_MAX} bytes are needed")
    known: Sequence[Any] = keys
    return tuple(known)
