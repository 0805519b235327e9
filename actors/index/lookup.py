"""Answers lookups, and waits for blocks that only a tier has.

A Find whose run of keys is in memory is answered at once.  If it goes on in a tier, it becomes a
*wait*: the run's blocks in memory are held under a lease of our own, the others are fetched, each
once, whoever else waits for it.  A block that comes, from a tier or from a session, is held too;
one that does not come ends the run before it.  The answer is due when nothing is missing any more,
or shortly before the question's deadline: then it is whatever run is in memory.

What sessions find by themselves we hear of afterwards (Touched).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.columns import column
from pegaflow.wire.identities import NO_LEASE, Key, LeaseId, Namespace
from pegaflow.wire.index import Find, Held, Touched
from pegaflow.wire.units import Nanoseconds, Share
from pegaflow.wire.values import LIST_MAX, PEER, SESSION, Address

from .eviction import Eviction
from .leasing import Leasing
from .residency import Residency, sayable
from .tiers import Space, Tier, Tiers, Wanted

ANSWER_SHARE: Share = 0.1
"""Of a lookup's patience: left for the answer's way back."""

ANSWER_NS: tuple[Nanoseconds, ...] = (2 * MS, 50 * MS)
"""That part at least, and at most."""

AWAITED_SHARE: Share = 1 / 4
"""Of the pool: one engine awaits no more, or others could not save."""

_Name = tuple[Namespace, Key]  # namespace and key


class Missing(NamedTuple):
    """A block that a lookup waits for."""

    at: int  # its position in the run
    tier: Tier  # that is asked for it


@dataclass(slots=True, eq=False)
class Wait:
    """A lookup that waits for blocks from the tiers."""

    sender: Sender
    namespace: Namespace
    keys: tuple[Key, ...]  # the run that it hopes for
    number: int
    answer_ns: int
    missing: dict[Key, Missing]
    tiers: frozenset[Tier]  # those that are asked
    leases: list[LeaseId] = field(default_factory=list)  # our own, on what is in memory
    came: list[Missing] = field(default_factory=list)  # what was missing and has come
    over: bool = False


class Lookup(Part):
    """Lookups, those that wait, and what they wait for.

    Args:
        own: our own address, in whose name blocks are held for those who wait.
    """

    def __init__(
        self,
        own: Address,
        *,
        recovery: Recovery,
        residency: Residency,
        leasing: Leasing,
        tiers: Tiers,
        eviction: Eviction,
        counts: Counter[str],
    ) -> None:
        self._own, self._recovery = own, recovery
        self._residency, self._leasing = residency, leasing
        self._tiers, self._eviction, self._counts = tiers, eviction, counts
        self.awaited: dict[_Name, list[Wait]] = {}  # what is being fetched, and for whom
        self.waits: dict[Address, dict[int, Wait]] = {}  # by session and number; none empty
        self._due: list[tuple[int, int, Wait]] = []  # heap: when, number; those over stay a while
        self._newest = 0  # number of a wait

    def handlers(self) -> Iterable[On]:
        """Questions of sessions, and what they did not need to ask."""
        return on(Find, self._on_find, SESSION, PEER), on(Touched, self._on_touched, SESSION)

    def gauges(self) -> dict[str, int]:
        """Lookups that wait for blocks of each tier."""
        waits = [wait for some in self.waits.values() for wait in some.values()]
        return {f"{t.name}_waits": sum(t in wait.tiers for wait in waits) for t in self._tiers}

    def wake_at(self) -> int | None:
        """When the next wait is due."""
        due = self._due
        while due and due[0][2].over:
            heappop(due)
        return due[0][0] if due else None

    def wake(self, now: int) -> list[Effect]:
        """Answer the waits that are due."""
        effects: list[Effect] = []
        while self._due and (self._due[0][2].over or self._due[0][0] <= now):
            wait = heappop(self._due)[2]
            if not wait.over:
                for tier in {missing.tier for missing in wait.missing.values()}:
                    tier.cut_short()
                effects += self._answer_wait(wait, now)
        return effects

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """A dead session waits no more."""
        for wait in list(self.waits.get(dead, {}).values()):
            self._end(wait)
        return []

    def _on_find(self, sender: Sender, msg: Find, now: int) -> list[Effect]:
        blocks = sayable(self._residency.blocks.find(msg.namespace, msg.keys))
        self._residency.learn_parents(blocks)
        if not msg.near:  # another host counts what its engines ask for
            self._counts["blocks_asked"] += len(msg.keys)
        if len(blocks) < len(msg.keys):
            tiers = self._tiers.of(msg.namespace, msg.near)
            effects = self._wait_for(sender, msg, blocks, tiers, now=now) if tiers else None
            if effects is not None:
                return effects
        return [self._answer(sender, blocks, [], now)]

    def _on_touched(self, sender: Sender, msg: Touched, now: int) -> list[Effect]:
        """A session has used these; what is gone by now, or was never there, is passed over."""
        here = self._residency
        pages = column(msg.pages)
        first = here.blocks.heads(pages[pages < here.ledger.records].astype(np.int64))
        first = first[first >= 0]
        first = first[np.sort(np.unique(first, return_index=True)[1])]
        self._counts["blocks_touched"] += len(first)
        self._leasing.used_pages(first, now)
        if self._tiers.mind:
            self._tiers.offer(list(map(here.blocks.handles.of, first.tolist())), asked=True)
        return []

    def _answer(self, sender: Sender, blocks: list[Block], came: list[Missing], now: int) -> Effect:
        """Lease this run, if there is any, and if the session may have it."""
        blocks = self._eviction.outside(blocks)
        blocks = self._leasing.afford(sender.address, blocks)
        room = self._leasing.has_room(sender.address, blocks)
        if not blocks or not room or not self._recovery.may_grant(sender.address):
            return Reply(sender, Held(NO_LEASE, 0, ()))
        if sender.address.name != PEER:
            self._counts["blocks_hit"] += len(blocks)
        self._tiers.offer(blocks, asked=True)
        held = self._leasing.held(self._leasing.leases.grant(sender.address, blocks, now))
        for tier in self._tiers:
            places = tuple(sorted(c.at for c in came if c.tier is tier and c.at < len(blocks)))
            if places:
                if sender.address.name != PEER:
                    self._counts[f"blocks_hit_{tier.name}"] += len(places)
                held = tier.delivered(held, places)
        return Reply(sender, held)

    # waiting

    def _wait_for(
        self,
        sender: Sender,
        msg: Find,
        blocks: list[Block],
        tiers: list[tuple[Tier, Space]],
        *,
        now: int,
    ) -> list[Effect] | None:
        """Wait for the rest of the run, as far as a tier has it; None: nothing to wait for."""
        left = sender.deadline - now
        margin = min(max(int(left * ANSWER_SHARE), ANSWER_NS[0]), ANSWER_NS[1])
        if left <= 2 * margin:
            return None
        missing, found = self._run(sender.address, msg, len(blocks), tiers)
        if not missing:
            return None
        waits = self.waits.get(sender.address, {}).values()
        awaited = len(missing) + sum(len(wait.keys) for wait in waits)
        more = awaited * tiers[0][1].block_bytes
        if not self._leasing.pins.has_room(sender.address, blocks + found, more):
            return None
        keys = msg.keys[: len(blocks) + len(missing) + len(found)]
        self._newest += 1
        answer_ns = sender.deadline - margin
        wait = Wait(
            sender=sender,
            namespace=msg.namespace,
            keys=keys,
            number=self._newest,
            answer_ns=answer_ns,
            missing=missing,
            tiers=frozenset(place.tier for place in missing.values()),
        )
        self.waits.setdefault(sender.address, {})[wait.number] = wait
        heappush(self._due, (answer_ns, wait.number, wait))
        self._hold(wait, blocks + found, now)
        return self._fetch_for(wait, now)

    def _run(
        self, session: Address, msg: Find, first: int, tiers: list[tuple[Tier, Space]]
    ) -> tuple[dict[Key, Missing], list[Block]]:
        """From this position on: keys that only a tier has, and the blocks between them that are in
        memory."""
        namespace, keys, space = msg.namespace, msg.keys, tiers[0][1]
        waits = self.waits.get(session, {}).values()
        awaited = sum(len(wait.missing) for wait in waits)
        share = int(self._residency.geometry.pool_bytes * AWAITED_SHARE) // space.block_bytes
        missing: dict[Key, Missing] = {}
        found: list[Block] = []
        here, end = self._residency.blocks, min(len(keys), LIST_MAX // space.shards)
        pages = here.known(namespace, keys[first:end]).tolist()
        there = [(tier, tier.having(namespace, keys[first:end])) for tier, _ in tiers]
        for at, page in enumerate(pages, first):
            key = keys[at]
            if page >= 0:
                found.append(here.handles.of(page))
                continue
            tier = next((tier for tier, has in there if has(at - first)), None)
            if tier is None or key in missing:  # no chain names a key twice
                break
            if awaited + len(missing) >= min(tier.most_awaited(), share):
                tier.held_up(namespace, keys[at:])
                break
            missing[key] = Missing(at, tier)
        return missing, found

    def _fetch_for(self, wait: Wait, now: int) -> list[Effect]:
        """Ask for what nobody has asked for yet; wait for all of it."""
        new: dict[Tier, list[int]] = {}
        for key, (at, tier) in wait.missing.items():
            name = (wait.namespace, key)
            if name not in self.awaited:
                self.awaited[name] = []
                new.setdefault(tier, []).append(at)
            self.awaited[name].append(wait)
        keys, root = wait.keys, Key(bytes(len(wait.keys[0])))
        effects: list[Effect] = []
        for tier, places in new.items():
            wanted = Wanted(
                wait.namespace,
                tuple(keys[at] for at in places),
                tuple(keys[at - 1] if at else root for at in places),
                wait.sender.address.incarnation,
            )
            effects += tier.fetch(wanted, self._ended, now)
        return effects

    def _ended(self, namespace: Namespace, key: Key, now: int) -> list[Effect]:
        """Nobody fetches this block any more: who still waits for it waits in vain."""
        effects: list[Effect] = []
        for wait in self.awaited.pop((namespace, key)):
            missing = wait.missing.get(key)
            if wait.over or missing is None:
                continue
            wait.keys = wait.keys[: missing.at]
            wait.missing = {k: m for k, m in wait.missing.items() if m.at < missing.at}
            if not wait.missing:
                effects += self._answer_wait(wait, now)
        return effects

    def arrived(self, blocks: Iterable[Block], now: int) -> list[Effect]:
        """Blocks are in memory now, whoever has brought them: they are held for those who wait.

        Returns:
            Answers to the lookups that miss nothing any more.
        """
        came: dict[Wait, list[Block]] = {}
        for block in blocks:
            waiting = self.awaited.get((block.namespace, block.key))
            if waiting is None:
                continue
            for wait in waiting:
                missing = None if wait.over else wait.missing.pop(block.key, None)
                if missing is not None:
                    wait.came.append(missing)
                    came.setdefault(wait, []).append(block)
            waiting.clear()
        effects: list[Effect] = []
        for wait, some in came.items():
            self._hold(wait, some, now)
            if not wait.missing:
                effects += self._answer_wait(wait, now)
        return effects

    def _hold(self, wait: Wait, blocks: list[Block], now: int) -> None:
        if blocks:
            wait.leases.append(self._leasing.leases.grant(self._own, blocks, now).number)

    def _answer_wait(self, wait: Wait, now: int) -> list[Effect]:
        """The run that is in memory is the answer."""
        blocks = sayable(self._residency.blocks.find(wait.namespace, wait.keys))
        answer = self._answer(wait.sender, blocks, wait.came, now)
        self._end(wait)
        return [answer]

    def _end(self, wait: Wait) -> None:
        """Nobody waits any more."""
        wait.over = True
        waits = self.waits[wait.sender.address]
        del waits[wait.number]
        if not waits:
            del self.waits[wait.sender.address]
        for number in wait.leases:
            lease = self._leasing.leases.release(self._own, number)
            if lease is not None:
                self._residency.policy.touch(lease.blocks)

    def check(self) -> None:
        """Who waits is known to what it waits for, and due."""
        waits = [wait for some in self.waits.values() for wait in some.values()]
        due = {wait for _, _, wait in self._due}
        for wait in waits:
            assert wait.missing and not wait.over and wait in due
            for key, missing in wait.missing.items():
                assert wait.keys[missing.at] == key
                assert wait in self.awaited[wait.namespace, key]
        own = {lease.number for lease in self._leasing.leases.held(self._own)}
        assert own == {number for wait in waits for number in wait.leases}
        assert all(self.waits.values())
