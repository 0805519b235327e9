"""Who may use which blocks: leases, and how much of the pool they may keep from eviction."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.leases import Lease, LeaseTable
from pegaflow.core.blocks.pins import Pins
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.scan import slot_bytes
from pegaflow.wire.control import Welcome
from pegaflow.wire.index import Held, Pinned, Release
from pegaflow.wire.units import Count
from pegaflow.wire.values import PEER, SESSION, Address

from .hazards import Hazards
from .residency import Residency

LEASES_MAX: Count = 16384
"""Leases of one session: an engine has a few hundred requests at a time."""

LEASED_MAX: Count = 1 << 22
"""Blocks in all leases of one session, each counted as often as it is leased: some 100 MB here."""


class Leasing(Part):
    """The leases of everybody: sessions, tiers, and our own."""

    def __init__(
        self, member: Member, residency: Residency, hazards: Hazards, counts: Counter[str]
    ) -> None:
        self._member, self._residency, self._counts = member, residency, counts
        self.leases = LeaseTable()
        self.pins = Pins(self.leases, measure=lambda: slot_bytes(residency.ledger, hazards.pages()))
        self.loaded_ns: int | None = None  # when a lease of a session ended last; None: none has

    def handlers(self) -> Iterable[On]:
        """Leases come back."""
        return (on(Release, self._on_release, SESSION, PEER),)

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """How much may be pinned."""
        self.pins.bound(welcome.max_pinned_bytes, welcome.pool_bytes)
        return []

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Its leases end."""
        for lease in self.leases.fence(dead):
            self._residency.policy.touch(lease.blocks)
        self.pins.fence(dead)
        return []

    def gauges(self) -> dict[str, int]:
        """How many, and what they pin."""
        return {"leases": len(self.leases), "pinned_bytes": self.leases.pinned_bytes}

    def has_room(self, holder: Address, blocks: list[Block]) -> bool:
        """Whether the holder may get one lease more, of so many blocks."""
        leases, leased = self.leases.load(holder)
        return leases < LEASES_MAX and leased + len(blocks) <= LEASED_MAX

    def afford(self, holder: Address, run: list[Block]) -> list[Block]:
        """Cut a run to what its holder may pin; what that leaves out is counted."""
        run, cut = self.pins.afford(holder, run)
        self._counts["blocks_unpinned"] += cut
        return run

    def held(self, lease: Lease) -> Held:
        """The answer that names this lease."""
        blocks, welcome = lease.blocks, self._member.welcome
        pages = tuple(chain.from_iterable([b.pages for b in blocks]))
        assert welcome is not None
        sums: tuple[int, ...] = ()
        if welcome.verify:
            sums = tuple(chain.from_iterable([b.checksums for b in blocks]))
        return Held(lease.number, len(blocks[0].pages), pages, sums)

    def stated(
        self, session: Address, dropped: list[Lease], resend: list[Lease], now: int
    ) -> list[Effect]:
        """A session has said what it holds.

        Args:
            dropped: leases that have ended now.
            resend: leases that it may not have heard of.

        Returns:
            Those leases again, and what it pins, if that has changed.
        """
        for lease in dropped:
            self.used(lease.blocks, now)
        again: list[Effect] = [Send(session, self.held(lease)) for lease in resend]
        news = self.pins.news(session)
        if news:
            again.append(Send(session, Pinned(news[0], self.pins.most_bytes, news[1])))
        return again

    def used(self, blocks: Sequence[Block], now: int) -> None:
        """A session needs these no longer: they are the youngest now."""
        self.loaded_ns = now
        self._residency.policy.touch(blocks)

    def used_pages(self, first: Pages, now: int) -> None:
        """The same of blocks by their first pages."""
        self.loaded_ns = now
        self._residency.use(first)

    def check(self) -> None:
        """The leases' books."""
        self.leases.check()

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        lease = self.leases.release(sender.address, msg.number)
        if lease is not None:
            self.used(lease.blocks, now)
        return []
