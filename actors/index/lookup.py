"""The half of the index that answers lookups, and waits for blocks that are in the log only.

A Find whose run of keys is in memory is answered at once.  If it goes on in the log, it becomes a
*wait*: the run's blocks in memory are held under a lease of our own, the others are fetched, each
by one Fetch whoever else waits for it.  A block that comes, from the flusher or from a session, is
held too; one that does not come ends the run before it.  The answer is due when nothing is missing
any more, or shortly before the question's deadline: then it is whatever run is in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import takewhile

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Reply, Sender
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.control import Hello, Welcome
from pegaflow.wire.flusher import FETCH_NS, Fetch, Fetched
from pegaflow.wire.index import Find, Held
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import LIST_MAX, SESSION, Address

from .recovery import LEASED_MAX, LEASES_MAX
from .write_back import Flushing, sayable

ANSWER_SHARE = 10
"""One part in so many of a lookup's patience is left for the answer's way back."""

ANSWER_NS = (2 * MS, 50 * MS)
"""That part at least, and at most."""

AWAITED_SHARE = 4
"""One engine awaits at most one part in so many of the pool, or others could not save."""

_Name = tuple[bytes, bytes]  # namespace and key


@dataclass(slots=True, eq=False)
class Wait:
    """A lookup that waits for blocks from the log."""

    sender: Sender
    namespace: bytes
    keys: tuple[bytes, ...]  # the run that it hopes for
    number: int
    answer_at: int
    missing: dict[bytes, int]  # key -> its position
    leases: list[int] = field(default_factory=list)  # our own, on what is in memory
    came: list[int] = field(default_factory=list)  # positions that were missing and have come
    over: bool = False


@dataclass(slots=True, eq=False)
class _Awaited:
    """A block that a Fetch has named."""

    number: int  # of the Fetch
    waits: list[Wait]


class Fetching(Flushing):
    """Lookups that wait, and what they wait for."""

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        open_ledger: Callable[[Welcome], Ledger],
    ) -> None:
        super().__init__(address, supervisor, hello, open_ledger)
        self.awaited_blocks: dict[_Name, _Awaited] = {}
        self.waits: dict[Address, dict[int, Wait]] = {}  # by session and number; none empty
        self._due: list[tuple[int, int, Wait]] = []  # heap: when, number; those over stay a while
        self._wait = 0  # newest number of a wait
        self._fetch = 0  # newest number of a Fetch
        self.clearing: tuple[int, int] | None = None  # an extent, and the page size it is to get
        self.on(Find, self._on_find, SESSION)

    def wake_at(self) -> int | None:
        """When the next wait is due, too."""
        at, due = super().wake_at(), self._due
        while due and due[0][2].over:
            heappop(due)
        if not due:
            return at
        return due[0][0] if at is None else min(at, due[0][0])

    def wake(self, now: int) -> list[Effect]:
        """Answer the waits that are due."""
        effects = super().wake(now)
        while self._due and (self._due[0][2].over or self._due[0][0] <= now):
            wait = heappop(self._due)[2]
            if not wait.over:
                self.counts["ssd_waits_cut"] += 1
                effects += self._answer_wait(wait, now)
        return effects

    def _on_find(self, sender: Sender, msg: Find, now: int) -> list[Effect]:
        blocks = sayable(self.blocks.find(msg.namespace, msg.keys))
        self.learn_parents(blocks)
        self.counts["blocks_asked"] += len(msg.keys)
        there = self.tier.prefetch and msg.namespace in self.stored
        if there and len(blocks) < len(msg.keys):
            effects = self._wait_for(sender, msg, blocks, now)
            if effects is not None:
                return effects
        return [self._answer(sender, blocks, (), now)]

    def _answer(
        self, sender: Sender, blocks: list[Block], fetched: tuple[int, ...], now: int
    ) -> Effect:
        """Lease this run, if there is any, and if the session has room for it."""
        leases, leased = self.leases.load(sender.address)
        blocks = self._outside(blocks)
        blocks, cut = self.pins.afford(sender.address, blocks)
        self.counts["blocks_unpinned"] += cut
        if not blocks or leases >= LEASES_MAX or leased + len(blocks) > LEASED_MAX:
            return Reply(sender, Held(0, 0, ()))
        self.counts["blocks_hit"] += len(blocks)
        fetched = tuple(at for at in fetched if at < len(blocks))
        self.counts["blocks_hit_ssd"] += len(fetched)
        self.asked_for(blocks)
        held = self.held(self.leases.grant(sender.address, blocks, now))
        return Reply(sender, replace(held, disk=fetched))

    def _outside(self, blocks: list[Block]) -> list[Block]:
        """The run as far as it keeps out of an extent that is being cleared."""
        if self.clearing is None or not blocks or blocks[0].page_size == self.clearing[1]:
            return blocks
        extent_of, clearing = self.geometry.extent_of, self.clearing[0]
        return list(takewhile(lambda b: clearing not in map(extent_of, b.pages), blocks))

    def held(self, lease: Lease) -> Held:
        """Hook: the answer that names this lease."""
        raise NotImplementedError

    # waiting

    def _wait_for(
        self, sender: Sender, msg: Find, blocks: list[Block], now: int
    ) -> list[Effect] | None:
        """Wait for the rest of the run, as far as it is in the log; None: nothing to wait for."""
        left = sender.deadline - now
        margin = min(max(left // ANSWER_SHARE, ANSWER_NS[0]), ANSWER_NS[1])
        if left <= 2 * margin:
            return None
        missing, found = self._run(sender.address, msg, len(blocks))
        if not missing:
            return None
        waits = self.waits.get(sender.address, {}).values()
        awaited = len(missing) + sum(len(wait.keys) for wait in waits)
        if not self.pins.has_room(
            sender.address, blocks + found, awaited * self._size(msg.namespace)
        ):
            return None
        keys = msg.keys[: len(blocks) + len(missing) + len(found)]
        self._wait += 1
        answer_at = sender.deadline - margin
        wait = Wait(sender, msg.namespace, keys, self._wait, answer_at, missing)
        self.waits.setdefault(sender.address, {})[wait.number] = wait
        heappush(self._due, (answer_at, wait.number, wait))
        self._hold(wait, blocks + found, now)
        return self._fetch_for(wait, now)

    def _run(self, session: Address, msg: Find, first: int) -> tuple[dict[bytes, int], list[Block]]:
        """From this position on: keys that are in the log only, with their positions, and the
        blocks between them that are in memory."""
        namespace, keys = msg.namespace, msg.keys
        stored, space = self.stored[namespace], self.spaces[namespace]
        waits = self.waits.get(session, {}).values()
        room = self._most_awaited(namespace) - sum(len(wait.missing) for wait in waits)
        missing: dict[bytes, int] = {}
        found: list[Block] = []
        for at in range(first, min(len(keys), LIST_MAX // space.shards)):
            key = keys[at]
            block = self.blocks.get(namespace, key)
            if block is not None:
                found.append(block)
            elif key not in stored or key in missing:  # no chain names a key twice
                break
            elif len(missing) >= room:
                beyond = sum(1 for later in keys[at:] if later in stored)
                self.counts["ssd_prefetch_backpressure_blocks"] += beyond
                break
            else:
                missing[key] = at
        return missing, found

    def _most_awaited(self, namespace: bytes) -> int:
        """Blocks that one engine may await."""
        most = self.geometry.pool_bytes // AWAITED_SHARE // self._size(namespace)
        return min(self.tier.prefetch, most)

    def _size(self, namespace: bytes) -> int:
        """Bytes of a block of this namespace that is in the log."""
        space = self.spaces[namespace]
        return -(-space.payload // PAGE_ALIGN) * PAGE_ALIGN * space.shards

    def _fetch_for(self, wait: Wait, now: int) -> list[Effect]:
        """Ask for what nobody has asked for yet; wait for all of it."""
        new: list[int] = []
        for key, at in wait.missing.items():
            name = (wait.namespace, key)
            awaited = self.awaited_blocks.get(name)
            if awaited is None:
                awaited = self.awaited_blocks[name] = _Awaited(self._fetch + 1, [])
                new.append(at)
            awaited.waits.append(wait)
        if not new:
            return []
        self._fetch += 1
        number, keys = self._fetch, wait.keys
        root = bytes(len(keys[0]))
        fetch = Fetch(
            number,
            wait.namespace,
            tuple(keys[at] for at in new),
            tuple(keys[at - 1] if at else root for at in new),
            wait.sender.address.incarnation,
        )

        def fetched(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, Fetched):
                absent = (fetch.keys[at] for at in answer.absent if at < len(fetch.keys))
                self.not_stored(fetch.namespace, absent)
            elif isinstance(answer, NoAnswer) and answer.status is Status.EXPIRED:
                self.counts["ssd_fetches_expired"] += 1
            return [e for key in fetch.keys for e in self._ended(number, fetch.namespace, key, now)]

        return [Ask(self.flusher, fetch, now + FETCH_NS, fetched)]

    def is_fetched(self, number: int, namespace: bytes, key: bytes) -> bool:
        """Whether the Fetch of this number is to bring this block."""
        awaited = self.awaited_blocks.get((namespace, key))
        return awaited is not None and awaited.number == number

    def _ended(self, number: int, namespace: bytes, key: bytes, now: int) -> list[Effect]:
        """A block of a Fetch that is over: who still waits for it waits in vain."""
        if not self.is_fetched(number, namespace, key):
            return []
        effects: list[Effect] = []
        for wait in self.awaited_blocks.pop((namespace, key)).waits:
            at = wait.missing.get(key)
            if wait.over or at is None:
                continue
            wait.keys = wait.keys[:at]
            wait.missing = {k: p for k, p in wait.missing.items() if p < at}
            if not wait.missing:
                effects += self._answer_wait(wait, now)
        return effects

    def arrived(self, blocks: Iterable[Block], now: int) -> list[Effect]:
        """These are in memory now, whoever has brought them."""
        came: dict[Wait, list[Block]] = {}
        for block in blocks:
            awaited = self.awaited_blocks.get((block.namespace, block.key))
            if awaited is None:
                continue
            for wait in awaited.waits:
                at = None if wait.over else wait.missing.pop(block.key, None)
                if at is not None:
                    wait.came.append(at)
                    came.setdefault(wait, []).append(block)
            awaited.waits.clear()
        effects: list[Effect] = []
        for wait, some in came.items():
            self._hold(wait, some, now)
            if not wait.missing:
                effects += self._answer_wait(wait, now)
        return effects

    def _hold(self, wait: Wait, blocks: list[Block], now: int) -> None:
        if blocks:
            wait.leases.append(self.leases.grant(self.address, blocks, now).number)

    def _answer_wait(self, wait: Wait, now: int) -> list[Effect]:
        """The run that is in memory is the answer."""
        blocks = sayable(self.blocks.find(wait.namespace, wait.keys))
        fetched = tuple(sorted(at for at in wait.came if at < len(blocks)))
        answer = self._answer(wait.sender, blocks, fetched, now)
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
            lease = self.leases.release(self.address, number)
            if lease is not None:
                self.order.touch(lease.blocks)

    def drop_waits(self, session: Address) -> None:
        """The session is proven dead."""
        for wait in list(self.waits.get(session, {}).values()):
            self._end(wait)

    def check_fetching(self) -> None:
        """Who waits is known to what it waits for, and due."""
        waits = [wait for some in self.waits.values() for wait in some.values()]
        due = {wait for _, _, wait in self._due}
        for wait in waits:
            assert wait.missing and not wait.over and wait in due
            for key, at in wait.missing.items():
                assert wait.keys[at] == key
                assert wait in self.awaited_blocks[wait.namespace, key].waits
        own = {lease.number for lease in self.leases.held(self.address)}
        assert own == {number for wait in waits for number in wait.leases}
        assert all(self.waits.values())
