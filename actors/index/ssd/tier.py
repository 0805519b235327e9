"""The SSD tier: what the flusher tells and is asked.  See wire/flusher.py.

What the log has is known by the word of the flusher that lives (log.py).  Blocks are brought by
Fetch, each of which quotes a number; the flusher's Seals quote it as their claim.  Blocks are
written by Flush (write_back.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pegaflow.actors.index.tiers import Ended, Pool, Space, Tier, Wanted
from pegaflow.actors.runtime.contract import Ask, Effect, NoAnswer, On, Part, Reply, Sender, on
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.wire.flusher import (
    FETCH_NS,
    Fetch,
    Fetched,
    Flushed,
    Forget,
    Manifest,
    Noted,
    WriteAll,
)
from pegaflow.wire.flusher import Tier as TierState
from pegaflow.wire.identities import NO_CLAIM, ClaimId, Key, Namespace
from pegaflow.wire.index import Held
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import FLUSHER, Address

from .log import SsdLog
from .write_back import WriteBack


class SsdTier(Tier):
    """The flusher's side of the index."""

    counted = True

    def __init__(self, pool: Pool) -> None:
        self.log = SsdLog(pool.residency)
        self.writes = writes = WriteBack(pool, self.log)
        super().__init__(
            "ssd",
            FLUSHER,
            self.log,
            lambda: writes.writes,
            loses=lambda block: self.log.tier.writable and writes.is_lost(block),
        )
        self._pool = pool
        self._counts = pool.counts
        self.fetching: dict[tuple[Namespace, Key], ClaimId] = {}  # namespace, key -> Fetch
        self._fetches = NO_CLAIM  # newest number of a Fetch

    def handlers(self) -> Iterable[On]:
        """The flusher's word."""
        return (
            on(TierState, self._on_tier, FLUSHER),
            on(Manifest, self._on_manifest, FLUSHER),
            on(Forget, self._on_forget, FLUSHER),
            on(Flushed, self._on_flushed, FLUSHER),
            on(WriteAll, self._on_write_all, FLUSHER),
        )

    def gauges(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "ssd_stored_blocks": len(self.log),
            "ssd_backlog_blocks": len(self.writes.backlog),
            "ssd_in_flight_blocks": len(self.writes.in_flight),
        }

    def parts(self) -> tuple[Part, ...]:
        """What is written has a clock of its own."""
        return self, self.writes

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Nothing is known of the log, and nothing is on its way there."""
        if dead.name == FLUSHER:
            self._flusher_gone(dead)
        return []

    # what the index asks of every tier

    def space(self, namespace: Namespace) -> Space | None:
        """How the log's blocks of this namespace are cut."""
        return self.log.spaces.get(namespace) if self.log.tier.prefetch else None

    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether it is in the log."""
        return self.log.has(namespace, key)

    def most_awaited(self) -> int:
        """As many as the flusher says."""
        return self.log.tier.prefetch

    def offer(self, blocks: Sequence[Block], asked: bool) -> None:
        """They may be worth writing."""
        (self.writes.asked_for if asked else self.writes.saved)(blocks)

    def write(self, now: int) -> list[Effect]:
        """Send what the flusher takes."""
        return self.writes.pump(now)

    def spare(self, victims: list[Block] | None = None) -> int:
        """So many as Flushes can name, if there is room for one."""
        return self.writes.spare(victims)

    def before_eviction(
        self, victims: list[Block], count: int, now: int
    ) -> tuple[list[Block], list[Effect]]:
        """Write those first that are not in the log."""
        return self.writes.flush_before_eviction(victims, count, now)

    def evicted(self, blocks: list[Block], now: int) -> None:
        """Those that are not in the log are lost."""
        self.writes.count_dropped(blocks, now)
        super().evicted(blocks, now)

    def removed(self, block: Block) -> None:
        """There is nothing to write any more."""
        self.writes.backlog.discard(block)

    def fetch(self, wanted: Wanted, ended: Ended, now: int) -> list[Effect]:
        """Ask the flusher to read them."""
        self._fetches = ClaimId(self._fetches + 1)
        number, namespace = self._fetches, wanted.namespace
        self.fetching.update(((namespace, key), number) for key in wanted.keys)

        def fetched(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, Fetched):
                absent = (wanted.keys[at] for at in answer.absent if at < len(wanted.keys))
                self.log.forget(namespace, absent)
            elif isinstance(answer, NoAnswer) and answer.status is Status.EXPIRED:
                self._counts["ssd_fetches_expired"] += 1
            for key in wanted.keys:
                del self.fetching[namespace, key]
            return [effect for key in wanted.keys for effect in ended(namespace, key, now)]

        fetch = Fetch(number, namespace, wanted.keys, wanted.parents, engine=wanted.engine)
        return [Ask(self.log.flusher, fetch, now + FETCH_NS, fetched)]

    def owns(self, number: ClaimId, namespace: Namespace, key: Key) -> bool:
        """Whether the Fetch of this number is to bring this block."""
        return self.fetching.get((namespace, key)) == number

    def delivered(self, held: Held, places: tuple[int, ...]) -> Held:
        """Say which they were."""
        return replace(held, disk=places)

    def held_up(self, namespace: Namespace, keys: Sequence[Key]) -> None:
        """Counted."""
        beyond = sum(self.log.has(namespace, key) for key in keys)
        self._counts["ssd_prefetch_backpressure_blocks"] += beyond

    def cut_short(self) -> None:
        """Counted."""
        self._counts["ssd_waits_cut"] += 1

    def hears(self, process: Address, now: int) -> bool:
        """Whether this is the flusher that lives; a new one is, before its forerunner's death has
        reached us."""
        if process.incarnation > self.log.flusher.incarnation:
            self._flusher_gone(self.log.flusher)
            self.log.flusher = process
        return process == self.log.flusher

    def lease_restated(self, lease: Lease) -> None:
        """Its blocks are on their way."""
        self.writes.restated(lease)

    def leases_stated(
        self, process: Address, dropped: list[Lease], resend: list[Lease], now: int
    ) -> list[Effect]:
        """A Flushed was lost, or a Flush."""
        if process != self.log.flusher:
            return []
        for lease in dropped:
            self.writes.flush_ended(lease, True)
        return [effect for lease in resend for effect in self.writes.flush_of(lease, now)]

    def stop(self, now: int) -> list[Effect]:
        """Whoever waits for everything to be written waits no longer."""
        return self.writes.answer_write_all()

    def check(self) -> None:
        """The book of what is in the log."""
        self.log.check()

    # the flusher's word

    def _on_tier(self, sender: Sender, msg: TierState, now: int) -> list[Effect]:
        if not self.hears(sender.address, now):
            return []
        self.log.tier = msg
        self.writes.backlog.reused_only = msg.reused_only
        return self.writes.pump(now)

    def _on_manifest(self, sender: Sender, msg: Manifest, now: int) -> list[Effect]:
        if not self.hears(sender.address, now):
            return []
        if msg.last:
            self.writes.look_again()
        else:
            self.log.store(msg)
        return [Reply(sender, Noted())]

    def _on_forget(self, sender: Sender, msg: Forget, now: int) -> list[Effect]:
        if self.hears(sender.address, now):
            self.log.forget(msg.namespace, msg.keys)
        return []

    def _on_flushed(self, sender: Sender, msg: Flushed, now: int) -> list[Effect]:
        if not self.hears(sender.address, now):
            return []
        self.log.store(msg)
        lease = self._pool.leasing.leases.release(self.log.flusher, msg.number)
        if lease is not None:
            self.writes.flush_ended(lease, not self.log.tier.writable)
        return self.writes.pump(now)

    def _on_write_all(self, sender: Sender, msg: WriteAll, now: int) -> list[Effect]:
        return self.writes.write_all(sender, now) if self.hears(sender.address, now) else []

    def _flusher_gone(self, dead: Address) -> None:
        for lease in self._pool.leasing.leases.fence(dead):
            self.writes.flush_ended(lease, True)
        if dead == self.log.flusher:
            self.log.clear()
            self.writes.clear()
