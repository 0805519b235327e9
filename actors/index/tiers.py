"""The tiers below the pool: a list, each entry an object with the words of `Tier`.

The index knows of a tier what every tier has: it may have a block (`has`), it is offered what is in
memory (`offer`, `write`), it brings blocks into memory (`fetch`), it hears what goes (`evicted`,
`removed`), and it ends (`stop`).  How it does that, with which process and which messages, it alone
knows: it is a part of the index and handles the messages of its process itself.

A process that serves a tier does three things as a session does: it holds leases, on blocks that it
copies out of the pool; it publishes blocks that it has filled; it finds corrupt pages.  The parts
that handle those messages ask the tier of that process what is its own to say (`lease_restated`,
`leases_stated`, `owns`).

The order of the list is the order of preference: a block is fetched from the first tier that has
it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Effect, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.wire.identities import ClaimId, Incarnation, Key, Namespace
from pegaflow.wire.index import Held
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.values import Address

from .leasing import Leasing
from .residency import Residency


@dataclass(frozen=True, slots=True)
class Space:
    """How the blocks of a namespace are cut."""

    payload_bytes: int  # bytes of a page that mean something
    shards: int

    @property
    def block_bytes(self) -> int:
        """Of its pages."""
        return -(-self.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN * self.shards


@dataclass(frozen=True, slots=True)
class Wanted:
    """Blocks of one chain that a tier is to bring."""

    namespace: Namespace
    keys: tuple[Key, ...]
    parents: tuple[Key, ...]  # the key before each in its chain; zeros: none
    engine: Incarnation  # for whom


Ended = Callable[[Namespace, Key, int], list[Effect]]
"""Told of each block of a `fetch`, by namespace and key, that nobody brings it any more."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What a tier is given: the memory above it, and who uses that."""

    member: Member
    recovery: Recovery
    residency: Residency
    leasing: Leasing
    counts: Counter[str]


class Tier(Part, ABC):
    """A tier below the pool: what the index asks of each of them.

    Args:
        name: of the tier, by which the lookup counts what comes from it (`blocks_hit_NAME`).
        actor: name of the process that serves it.
        stored: the blocks that it has.
        minds: whether it wants to hear of blocks in memory at all, by `offer`, `before_eviction`,
            `evicted` and `removed`; as long as no tier does, no block is an object.
        loses: whether this block is not here yet and still to come, so that it does not go before
            somebody waits for its pages.
    """

    counted = False  # the listing is told of each block that it has, and has no more
    near = True  # it is of this host

    def __init__(
        self,
        name: str,
        actor: str,
        stored: Sized,
        minds: Callable[[], bool] = lambda: True,
        *,
        loses: Callable[[Block], bool] = lambda block: False,
    ) -> None:
        self.name, self.actor, self.minds, self.loses = name, actor, minds, loses
        self._stored = stored

    def parts(self) -> tuple[Part, ...]:
        """The parts of the index that it brings."""
        return (self,)

    # what it has

    @abstractmethod
    def space(self, namespace: Namespace) -> Space | None:
        """How the blocks of this namespace are cut; None: none can be fetched from here."""

    def goes_on(self) -> bool:
        """Whether a run of blocks that ends in memory may go on here."""
        return self.most_awaited() > 0 and len(self._stored) > 0

    @abstractmethod
    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether it has this block, as far as we know."""

    def having(self, namespace: Namespace, keys: Sequence[Key]) -> Callable[[int], bool]:
        """Whether it has the key at a place, for places that only grow: nothing is looked at before
        it is asked for, or far behind it."""
        return lambda at: self.has(namespace, keys[at])

    @abstractmethod
    def most_awaited(self) -> int:
        """Blocks that one engine may await at a time."""

    # what it is given

    @abstractmethod
    def offer(self, blocks: Sequence[Block], asked: bool) -> None:
        """Blocks in memory that may be worth having.

        Args:
            asked: somebody wants them, which makes them worth more; else a session has saved them
                just now.
        """

    @abstractmethod
    def write(self, now: int) -> list[Effect]:
        """What has been offered may go, as much as the tier takes."""

    def spare(self, victims: list[Block] | None = None) -> int:
        """How many blocks more than these it would look at, to write some of them before they are
        evicted; 0: it has no need to or no room.

        Args:
            victims: None: they are not chosen yet, so the most that it would say.
        """
        return 0

    def before_eviction(
        self, victims: list[Block], count: int, now: int
    ) -> tuple[list[Block], list[Effect]]:
        """Choose what goes now; others are written first, and go after that.

        Args:
            victims: in the order in which they should go; as many more than `count` as `spare` has
                said.
            count: blocks that are to go.

        Returns:
            Up to `count` of them, to be evicted by the caller; and what has to be sent.
        """
        return victims[:count], []

    def evicted(self, blocks: list[Block], now: int) -> None:
        """These go, whether they are here or not; said before their records are void."""
        for block in blocks:
            self.removed(block)

    def removed(self, block: Block) -> None:
        """It is not in memory any more, and is not to be written."""

    # what it brings

    @abstractmethod
    def fetch(self, wanted: Wanted, ended: Ended, now: int) -> list[Effect]:
        """Bring blocks into memory.

        Args:
            wanted: of one namespace; none of them is being fetched already.
            ended: told of each block exactly once, whether it came or not.
        """

    @abstractmethod
    def owns(self, number: ClaimId, namespace: Namespace, key: Key) -> bool:
        """Whether our process may publish this block under this claim.

        Args:
            number: what the Seal quotes as its claim.
        """

    def delivered(self, held: Held, places: tuple[int, ...]) -> Held:
        """Complete the answer of a lookup.

        Args:
            held: the answer so far.
            places: in the run, of the blocks that were fetched from here for it; at least one.
        """
        return held

    def held_up(self, namespace: Namespace, keys: Sequence[Key]) -> None:
        """An engine awaits as many blocks as it may: these are not fetched for it.

        Args:
            keys: of the rest of its run; also some that are not here.
        """

    def cut_short(self) -> None:
        """A lookup's time is over before all of it has come."""

    # its process

    def hears(self, process: Address, now: int) -> bool:
        """Whether this life of our process is the one that lives; a later life than the one that we
        knew becomes it.
        """
        return True

    def lease_restated(self, lease: Lease) -> None:
        """Our process holds it since an earlier life of the index."""

    def leases_stated(
        self, process: Address, dropped: list[Lease], resend: list[Lease], now: int
    ) -> list[Effect]:
        """Our process has said what it holds.

        Args:
            dropped: leases that have ended now.
            resend: leases that it may not have heard of.

        Returns:
            Those leases, said again.
        """
        return []

    @abstractmethod
    def stop(self, now: int) -> list[Effect]:
        """The index ends."""


class Tiers:
    """The list."""

    def __init__(self, tiers: Iterable[Tier]) -> None:
        self._tiers = tuple(tiers)
        self._by_actor = {tier.actor: tier for tier in self._tiers}
        assert len(self._by_actor) == len(self._tiers)

    def __iter__(self) -> Iterator[Tier]:
        return iter(self._tiers)

    @property
    def actors(self) -> tuple[str, ...]:
        """Names of the processes that serve them."""
        return tuple(self._by_actor)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of all of them."""
        return tuple(part for tier in self._tiers for part in tier.parts())

    def served_by(self, actor: str) -> Tier | None:
        """The tier of the process of this name; None: it serves none."""
        return self._by_actor.get(actor)

    def of(self, namespace: Namespace, near: bool) -> list[tuple[Tier, Space]]:
        """Those from which blocks of this namespace can be fetched.

        Args:
            near: only those of this host.
        """
        tiers = [tier for tier in self._tiers if tier.near or not near]
        return [(t, space) for t in tiers if (space := t.space(namespace)) is not None]

    @property
    def mind(self) -> bool:
        """Whether one of them wants to hear of blocks in memory."""
        return any([tier.minds() for tier in self._tiers])

    def going_on(self) -> list[Tier]:
        """Those in which a run of blocks that ends in memory may go on."""
        return [tier for tier in self._tiers if tier.goes_on()]

    def offer(self, blocks: Sequence[Block], asked: bool = False) -> None:
        """To all of them."""
        for tier in self._tiers:
            tier.offer(blocks, asked)

    def write(self, now: int) -> list[Effect]:
        """All of them, as much as they take."""
        return [effect for tier in self._tiers for effect in tier.write(now)]

    def most_spare(self) -> int:
        """How many blocks more than are to go `before_eviction` looks at."""
        return max([tier.spare() for tier in self._tiers if tier.minds()], default=0)

    def before_eviction(
        self, candidates: Callable[[slice], list[Block]], count: int, now: int
    ) -> tuple[list[Block], list[Effect]]:
        """Choose victims, once the first tier that would lose some of them has kept those that it
        writes first.

        Args:
            candidates: some of `count` and `most_spare` blocks together, in the order in which they
                should go; fewer if there are no more.
            count: blocks that are to go.

        Returns:
            Up to `count` blocks that go now, and what has to be sent.
        """
        victims = candidates(slice(count))
        for tier in self._tiers:
            spare = tier.spare(victims)
            if spare:
                more = candidates(slice(count, count + spare))
                return tier.before_eviction(victims + more, count, now)
        return victims, []

    def loses(self, block: Block) -> bool:
        """Whether one of them does."""
        return any(tier.loses(block) for tier in self._tiers)

    def evicted(self, blocks: list[Block], now: int) -> None:
        """Said to all."""
        for tier in self._tiers:
            tier.evicted(blocks, now)

    def removed(self, block: Block) -> None:
        """Said to all."""
        for tier in self._tiers:
            tier.removed(block)

    def stop(self, now: int) -> list[Effect]:
        """All of them."""
        return [effect for tier in self._tiers for effect in tier.stop(now)]
