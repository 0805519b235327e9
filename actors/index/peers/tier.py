"""The tier of other hosts: what the peer process tells and is asked.  See wire/peer.py.

Which host has which block is known by the word of the peer process that lives, as fingerprints
(core/directory/held.py): a hint, which costs a fetch in vain if it is old.  Blocks are brought by
Fetch, each of which quotes a number, as from the log of the SSD tier; it says which hosts may have
each.  Nothing is written to other hosts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pegaflow.actors.index.tiers import Ended, Pool, Space, Tier, Wanted
from pegaflow.actors.runtime.contract import Ask, Effect, NoAnswer, On, Part, Sender, on
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.wire.control import Welcome
from pegaflow.wire.flusher import FETCH_NS, Fetch
from pegaflow.wire.identities import NO_CLAIM, ClaimId, Key, Namespace
from pegaflow.wire.index import Held
from pegaflow.wire.message import Message
from pegaflow.wire.peer import HOSTS_MAX, Around, Cut, Elsewhere
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import NOBODY, PEER, Address

from .elsewhere import Elsewheres
from .holding import HoldingNews

LOOK_KEYS: Count = 256
"""Keys of a run that are looked up together: most runs end before, and a table that is asked for
fewer costs as much."""

CUTS_MAX: Count = 4096
"""Namespaces of other hosts whose cut is known: far more than a fleet serves at a time."""


class PeersTier(Tier):
    """The peer process's side of the index."""

    counted = True
    near = False

    def __init__(self, pool: Pool) -> None:
        self.elsewhere = Elsewheres(pool)
        self.news = HoldingNews(pool.recovery, pool.residency)
        super().__init__("rdma", PEER, self.elsewhere, lambda: False)
        self._pool, self._counts = pool, pool.counts
        self.peer = NOBODY  # the peer process whose word this is
        self._prefetch = 0  # blocks that one engine may await
        self._spaces: dict[Namespace, Space] = {}  # how blocks of other hosts are cut
        self.fetching: dict[tuple[Namespace, Key], ClaimId] = {}  # namespace, key -> Fetch
        self._fetches = NO_CLAIM  # newest number of a Fetch

    def handlers(self) -> Iterable[On]:
        """The peer process's word."""
        return on(Around, self._on_around, PEER), on(Elsewhere, self._on_elsewhere, PEER)

    def parts(self) -> tuple[Part, ...]:
        """What our host has is told by another part."""
        return self, self.news

    def gauges(self) -> dict[str, int]:
        """How much is elsewhere."""
        return {"rdma_stored_blocks": len(self.elsewhere)}

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Readers' filter counts what we know when another tier has been taken out of it."""
        self._pool.residency.listing.besides = self.elsewhere.every
        return []

    def wake_at(self) -> int | None:
        """At once while something is being taken in, or forgotten."""
        return 0 if self.elsewhere.busy else None

    def wake(self, now: int) -> list[Effect]:
        """Go on with it."""
        self.elsewhere.step()
        return []

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Nothing is known of other hosts."""
        if dead == self.peer:
            self._clear()
        return []

    # what the index asks of every tier

    def space(self, namespace: Namespace) -> Space | None:
        """How other hosts' blocks of this namespace are cut."""
        return self._spaces.get(namespace) if self._prefetch else None

    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether some host may have it."""
        return bool(self.elsewhere.owners_of(fingerprints(namespace, (key,)))[0])

    def having(self, namespace: Namespace, keys: Sequence[Key]) -> Callable[[int], bool]:
        """Looked up some at a time."""
        known: list[int] = []

        def has(at: int) -> bool:
            while at >= len(known):
                some = keys[len(known) : len(known) + LOOK_KEYS]
                known.extend(self.elsewhere.owners_of(fingerprints(namespace, some)).tolist())
            return known[at] != 0

        return has

    def most_awaited(self) -> int:
        """As many as the peer process says."""
        return self._prefetch

    def offer(self, blocks: Sequence[Block], asked: bool) -> None:
        """Nothing is written there."""

    def write(self, now: int) -> list[Effect]:
        """Nothing."""
        return []

    def fetch(self, wanted: Wanted, ended: Ended, now: int) -> list[Effect]:
        """Ask the peer process for them."""
        self._fetches = ClaimId(self._fetches + 1)
        number, namespace = self._fetches, wanted.namespace
        self.fetching.update(((namespace, key), number) for key in wanted.keys)
        hosts = self.elsewhere.owners_of(fingerprints(namespace, wanted.keys))

        def fetched(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer) and answer.status is Status.EXPIRED:
                self._counts["rdma_fetches_expired"] += 1
            for key in wanted.keys:
                del self.fetching[namespace, key]
            return [effect for key in wanted.keys for effect in ended(namespace, key, now)]

        fetch = Fetch(
            number,
            namespace,
            wanted.keys,
            wanted.parents,
            engine=wanted.engine,
            hosts=tuple(hosts.tolist()),
        )
        return [Ask(self.peer, fetch, now + FETCH_NS, fetched)]

    def owns(self, number: ClaimId, namespace: Namespace, key: Key) -> bool:
        """Whether the Fetch of this number is to bring this block."""
        return self.fetching.get((namespace, key)) == number

    def delivered(self, held: Held, places: tuple[int, ...]) -> Held:
        """Say which they were."""
        return replace(held, peers=places)

    def hears(self, process: Address, now: int) -> bool:
        """Whether this is the peer process that lives; a new one is, before its forerunner's death
        has reached us."""
        if process.incarnation > self.peer.incarnation:
            self._clear()
            self.peer = process
        return process == self.peer

    def leases_stated(
        self, process: Address, dropped: list[Lease], resend: list[Lease], now: int
    ) -> list[Effect]:
        """It holds leases for other hosts as a session does for its engine."""
        return self._pool.leasing.stated(process, dropped, resend, now)

    def stop(self, now: int) -> list[Effect]:
        """Nobody waits."""
        return []

    def check(self) -> None:
        """Who can be fetched from is said by somebody."""
        assert self.peer != NOBODY or not (self._prefetch or len(self.elsewhere))

    # the peer process's word

    def _on_around(self, sender: Sender, msg: Around, now: int) -> list[Effect]:
        if self.hears(sender.address, now):
            self._prefetch = msg.prefetch
            self.elsewhere.begin(min(msg.hosts, HOSTS_MAX))
            self.news.listen(sender.address, msg.anew)
        return []

    def _on_elsewhere(self, sender: Sender, msg: Elsewhere, now: int) -> list[Effect]:
        if self.hears(sender.address, now):
            self._learn(msg.cuts)
            self.elsewhere.told(msg)
        return []

    def _learn(self, cuts: tuple[Cut, ...]) -> None:
        """What two hosts say of one namespace is the same, or else a fetch fails."""
        for cut in cuts:
            if len(self._spaces) < CUTS_MAX and cut.payload_bytes and cut.shards:
                self._spaces.setdefault(cut.namespace, Space(cut.payload_bytes, cut.shards))

    def _clear(self) -> None:
        self.peer, self._prefetch = NOBODY, 0
        self.elsewhere.clear()
        self._spaces.clear()
