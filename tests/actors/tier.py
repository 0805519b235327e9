"""An index of a host with an SSD tier, and the flusher's part of the conversation."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.ssd.tier import SsdTier
from pegaflow.wire.control import Members, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Flush, Flushed, Manifest, Noted, Tier
from pegaflow.wire.identities import Incarnation, Key
from pegaflow.wire.index import Find, Seal
from pegaflow.wire.values import FLUSHER, Address
from tests.actors.index.test_index import KEYS, NS, claim, seal_of
from tests.naming import as_pages, as_stamps

from .memory import IndexMemory, new_ledger
from .rig import ALLOC, BOSS, EXTENT, HELLO, IDX, MS, PAGE, SESSION_4, WELCOME, Rig, said

FLUSHER_6 = Address(FLUSHER, Incarnation(6))
FLUSHER_9 = Address(FLUSHER, Incarnation(9))
TIER = Tier(True, 2, 1 << 20, 4, batch_bytes=4 * PAGE, block_bytes=1 << 20, prefetch=100)
PATIENCE = 1000 * MS
EXTENTS = 16
BIG = replace(WELCOME, pool_bytes=EXTENTS * EXTENT, ssd=True)  # a flush holds 8 blocks at most


def big() -> IndexMemory:
    """The memory of such a host."""
    return IndexMemory(new_ledger(BIG))


def ssd_of(actor: Index) -> SsdTier:
    """The SSD tier of an index."""
    tier = actor.tiers.served_by(FLUSHER)
    assert isinstance(tier, SsdTier)
    return tier


def index(
    tier: Tier | None = TIER,
    members: tuple[Address, ...] = (),
    memory: IndexMemory | None = None,
) -> tuple[Rig, Index]:
    """An index of a host with an SSD tier, perhaps with what an earlier one has left."""
    actor = Index(IDX, BOSS, HELLO, memory or big())
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, BIG)
    rig.tell(BOSS, Members(members, ()))
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    if tier is not None:
        rig.tell(FLUSHER_6, tier)
    return rig, actor


def saving(rig: Rig, keys: tuple[Key, ...], first_page: int = 0) -> list[Envelope]:
    """Claim and seal; what that led to."""
    return rig.ask(SESSION_4, seal_of(claim(rig, keys).number, keys, first_page))


def flushed(rig: Rig, flush: Flush, count: int | None = None) -> list[Envelope]:
    """The flusher has written the first few blocks of a Flush."""
    keys = flush.keys[:count]
    return rig.tell(FLUSHER_6, Flushed(flush.number, NS, PAGE, 1, keys=keys))


def in_log(rig: Rig, keys: tuple[Key, ...]) -> None:
    assert said(rig.ask(FLUSHER_6, Manifest(NS, PAGE, 1, keys)), Noted) == Noted()


def look_up(
    rig: Rig, keys: tuple[Key, ...], holder: Address = SESSION_4, patience: int = PATIENCE
) -> list[Envelope]:
    return rig.ask(holder, Find(NS, keys), rig.now + patience)


def fetched_seal(
    fetch: Fetch, first_page: int, at: slice = slice(None), depths: tuple[int, ...] | None = None
) -> Seal:
    """The flusher's word that it has read these blocks of a Fetch."""
    keys, parents = fetch.keys[at], fetch.parents[at]
    pages = tuple(range(first_page, first_page + len(keys)))
    places = depths if depths is not None else tuple(KEYS.index(key) for key in keys)
    stamps = tuple(500 + page for page in pages)
    return Seal(
        fetch.number,
        NS,
        PAGE,
        PAGE,
        shards=1,
        keys=keys,
        parents=parents,
        pages=as_pages(*pages),
        stamps=as_stamps(*stamps),
        depths=places,
    )
