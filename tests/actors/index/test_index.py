"""Which block is where: leases, claims, seals, statements, eviction."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.eviction import CLEARING_NS
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import BEAT_NS, Fenced, Gone, Members, Neighbour, Welcome
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_LEASE,
    ClaimId,
    Key,
    LeaseId,
    Namespace,
    PageId,
)
from pegaflow.wire.index import (
    CLAIM_NS,
    Claim,
    Claimed,
    EndClaim,
    Find,
    Held,
    LeasesHeld,
    Release,
    Seal,
    Sealed,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import (
    ALLOC,
    BOSS,
    EXTENT,
    HELLO,
    IDX,
    NOBODY_ELSE,
    PAGE,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    pick,
    said,
)
from tests.naming import as_leases, as_pages, as_stamps

NS, OTHER_NS = Namespace(bytes(16)), Namespace(b"\x01" * 16)
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 9))
ROOT = Key(bytes(32))
RECORDS = EXTENT // PAGE


def index() -> tuple[Rig, Index]:
    """An index that has dialled its allocator."""
    return index_of(new_ledger(WELCOME))


def index_of(ledger: Ledger) -> tuple[Rig, Index]:
    """The same, with what an earlier one has left."""
    return index_in(IndexMemory(ledger))


def index_in(
    memory: IndexMemory,
    members: Members = NOBODY_ELSE,
    address: Address = IDX,
    welcome: Welcome = WELCOME,
) -> tuple[Rig, Index]:
    """The same, in this memory and among these holders."""
    actor = Index(address, BOSS, HELLO, memory)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, welcome)
    rig.tell(BOSS, members)
    assert said(rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1)), Freed, ALLOC) == Freed(())
    rig.wait(0)
    return rig, actor


def claim(rig: Rig, keys: tuple[Key, ...], holder: Address = SESSION_4) -> Claimed:
    return said(rig.ask(holder, Claim(NS, keys)), Claimed)


def seal_of(number: int, keys: tuple[Key, ...], first_page: int = 0, page: int = PAGE) -> Seal:
    """A Seal of a chain from its root, in pages from `first_page` on."""
    pages = tuple(range(first_page, first_page + len(keys)))
    stamps = tuple(900 + p for p in pages)
    return Seal(
        ClaimId(number),
        NS,
        page,
        PAGE,
        shards=1,
        keys=keys,
        parents=(ROOT, *keys[:-1]),
        pages=as_pages(*pages),
        stamps=as_stamps(*stamps),
    )


def save(rig: Rig, keys: tuple[Key, ...], first_page: int = 0) -> Seal:
    """Claim and seal these keys."""
    msg = seal_of(claim(rig, keys).number, keys, first_page)
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    rig.tell(SESSION_4, EndClaim(msg.claim))
    return msg


def find(rig: Rig, keys: tuple[Key, ...], holder: Address = SESSION_4) -> Held:
    return said(rig.ask(holder, Find(NS, keys)), Held)


def press(
    rig: Rig, count: int, page: int = PAGE, reassign: bool = False, *, ahead: bool = False
) -> tuple[int, ...]:
    return tuple(said(rig.ask(ALLOC, Pressure(page, count, reassign, ahead)), Freed).pages)


def test_a_sealed_block_is_found_by_everyone_in_its_namespace() -> None:
    rig, actor = index()
    save(rig, KEYS[:3])
    assert find(rig, KEYS[:5], SESSION_5) == Held(LeaseId(1), 1, as_pages(0, 1, 2))
    assert find(rig, KEYS[1:2]).pages == (1,)
    assert find(rig, KEYS[4:5]) == Held(NO_LEASE, 0, ())
    other = said(rig.ask(SESSION_4, Find(OTHER_NS, KEYS[:3])), Held)
    assert other == Held(NO_LEASE, 0, ())
    record = actor.residency.ledger.read(PageId(1))
    assert record is not None and (record.key, record.stamp, record.depth) == (KEYS[1], 901, 1)


def test_a_second_claim_of_a_key_gets_nothing() -> None:
    rig, _ = index()
    assert claim(rig, KEYS[:3]).positions == (0, 1, 2)
    assert claim(rig, KEYS[:4], SESSION_5).positions == (3,)


def test_resident_keys_are_not_claimed_again() -> None:
    rig, _ = index()
    save(rig, KEYS[:2])
    assert claim(rig, KEYS[:3]).positions == (2,)


def test_a_seal_needs_a_live_claim_of_its_sender() -> None:
    rig, actor = index()
    refused = Sealed(Status.STALE_CLAIM, ())
    mine = claim(rig, KEYS[:2]).number
    assert said(rig.ask(SESSION_4, seal_of(mine + 1, KEYS[:2])), Sealed) == refused
    assert said(rig.ask(SESSION_5, seal_of(mine, KEYS[:2])), Sealed) == refused
    rig.tell(SESSION_4, EndClaim(mine))
    assert said(rig.ask(SESSION_4, seal_of(mine, KEYS[:2])), Sealed) == refused
    assert len(actor.residency.blocks) == 0 and actor.residency.ledger.are_void([PageId(0)]) == [
        True
    ]


def test_an_expired_claim_seals_nothing_and_the_next_one_does() -> None:
    rig, _ = index()
    mine = claim(rig, KEYS[:1]).number
    rig.wait(CLAIM_NS)
    theirs = claim(rig, KEYS[:1], SESSION_5)
    assert theirs.positions == (0,)
    sent = rig.ask(SESSION_4, seal_of(mine, KEYS[:1]))
    assert said(sent, Sealed) == Sealed(Status.STALE_CLAIM, ())
    sent = rig.ask(SESSION_5, seal_of(theirs.number, KEYS[:1], 4))
    assert said(sent, Sealed) == Sealed(Status.OK, (0,))


def test_a_seal_is_judged_block_by_block() -> None:
    rig, _ = index()
    mine = claim(rig, KEYS[:1]).number
    claim(rig, KEYS[1:2], SESSION_5)
    sent = rig.ask(SESSION_4, seal_of(mine, KEYS[:2]))
    assert said(sent, Sealed) == Sealed(Status.STALE_CLAIM, (0,))


def test_the_same_stamps_are_acked_again_and_others_refused() -> None:
    rig, _ = index()
    msg = save(rig, KEYS[:2])
    assert said(rig.ask(SESSION_4, msg), Sealed) == Sealed(Status.OK, (0, 1))
    other = seal_of(msg.claim, KEYS[:2], first_page=4)
    assert said(rig.ask(SESSION_4, other), Sealed) == Sealed(Status.OK, (), known=2)
    assert find(rig, KEYS[:2]).pages == msg.pages


def test_without_a_claim_all_is_published_that_is_not_here() -> None:
    rig, actor = index()
    first = seal_of(NO_CLAIM, KEYS[:2])
    assert said(rig.ask(SESSION_4, first), Sealed) == Sealed(Status.OK, (0, 1))
    claimed = claim(rig, KEYS[2:3], SESSION_5)
    more = seal_of(NO_CLAIM, KEYS[:4], first_page=4)
    assert said(rig.ask(SESSION_4, more), Sealed) == Sealed(Status.OK, (2, 3), known=2)
    assert said(rig.ask(SESSION_4, more), Sealed) == Sealed(Status.OK, (2, 3), known=2), "again"
    assert find(rig, KEYS[:4]).pages == (*first.pages, *more.pages[2:])
    late = seal_of(claimed.number, KEYS[2:3], first_page=2)
    assert said(rig.ask(SESSION_5, late), Sealed) == Sealed(Status.OK, (), known=1)
    assert len(actor.residency.blocks) == 4


def test_of_two_blocks_with_one_key_in_a_seal_the_second_is_known() -> None:
    rig, _ = index()
    both = seal_of(NO_CLAIM, (*KEYS[:2], *KEYS[:2]))
    assert said(rig.ask(SESSION_4, both), Sealed) == Sealed(Status.OK, (0, 1), known=2)
    assert find(rig, KEYS[:2]).pages == (0, 1)


def test_chains_that_are_sealed_together_go_each_tail_first() -> None:
    rig, _ = index()
    first = seal_of(NO_CLAIM, (KEYS[0], KEYS[4]))
    roots = replace(first, parents=(ROOT, ROOT))
    assert said(rig.ask(SESSION_4, roots), Sealed).positions == (0, 1)
    more = seal_of(NO_CLAIM, (KEYS[1], KEYS[2], KEYS[5]), first_page=2)
    more = replace(more, parents=(KEYS[0], KEYS[1], KEYS[4]))
    assert said(rig.ask(SESSION_4, more), Sealed).positions == (0, 1, 2)
    assert press(rig, 2) == (3, 2), "of the first chain, of which the head stays"
    assert press(rig, 3) == (0, 4, 1)


def test_malformed_seals() -> None:
    rig, actor = index()
    number = claim(rig, KEYS[:2]).number
    good = seal_of(number, KEYS[:2])
    for bad in (
        replace(good, shards=0, pages=(), stamps=()),
        replace(good, parents=good.parents[:1]),
        replace(good, pages=good.pages[:1], stamps=good.stamps[:1]),
        replace(good, pages=as_pages(3, 3)),
    ):
        assert said(rig.ask(SESSION_4, bad), Sealed) == Sealed(Status.BAD_REQUEST, ())
    beyond = replace(good, pages=as_pages(2 * RECORDS, 1 << 50))
    assert said(rig.ask(SESSION_4, beyond), Sealed).positions == ()
    assert len(actor.residency.blocks) == 0


def test_a_page_of_another_block_is_refused() -> None:
    rig, _ = index()
    save(rig, KEYS[:2])
    number = claim(rig, KEYS[2:3]).number
    sent = rig.ask(SESSION_4, seal_of(number, KEYS[2:3], first_page=1))
    assert said(sent, Sealed).positions == ()
    assert find(rig, KEYS[1:3]).pages == (1,)


def test_a_seal_of_two_chains_can_be_evicted_whole() -> None:
    rig, _ = index()
    msg = seal_of(claim(rig, KEYS[:4]).number, KEYS[:4])
    msg = replace(msg, parents=(ROOT, KEYS[0], ROOT, KEYS[2]))
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    assert press(rig, 9) == (3, 2, 1, 0)


def test_pressure_takes_the_tail_first_and_voids_before_it_says_so() -> None:
    rig, actor = index()
    save(rig, KEYS[:4])
    assert press(rig, 1) == (3,)
    assert actor.residency.ledger.are_void([PageId(3), PageId(2)]) == [True, False]
    assert press(rig, 9) == (2, 1, 0)
    assert press(rig, 1) == ()


def test_no_more_blocks_go_than_have_the_pages_that_are_asked_for() -> None:
    rig, _ = index()
    msg = seal_of(claim(rig, KEYS[:3]).number, KEYS[:3])
    pages, stamps = tuple(range(6)), tuple(range(900, 906))
    msg = replace(msg, shards=2, pages=as_pages(*pages), stamps=as_stamps(*stamps))
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    assert set(press(rig, 3)) == {2, 3, 4, 5}
    assert set(press(rig, 2)) == {0, 1}


def test_nobody_who_does_not_wait_has_an_extent_of_another_size_emptied() -> None:
    rig, actor = index()
    save(rig, KEYS[:4])
    assert press(rig, 1, EXTENT, ahead=True) == ()
    assert len(actor.residency.blocks) == 4
    assert press(rig, 1, ahead=True) == (3,)
    assert len(press(rig, 1, EXTENT)) == 3


def test_leases_pin_against_pressure_until_the_last_is_released() -> None:
    rig, actor = index()
    save(rig, KEYS[:4])
    mine, theirs = find(rig, KEYS[:2]), find(rig, KEYS[:1], SESSION_5)
    assert press(rig, 9) == (3, 2)
    assert press(rig, 9) == press(rig, 1, EXTENT, reassign=True) == ()
    rig.tell(SESSION_4, Release(mine.number))
    rig.tell(SESSION_4, Release(mine.number))
    assert press(rig, 9) == (1,)
    rig.tell(SESSION_5, Release(theirs.number))
    assert press(rig, 9) == (0,)
    assert all(actor.residency.ledger.are_void(as_pages(*range(actor.residency.ledger.records))))


def test_a_lease_is_released_by_its_holder_only() -> None:
    rig, _ = index()
    save(rig, KEYS[:1])
    rig.tell(SESSION_5, Release(find(rig, KEYS[:1]).number))
    assert press(rig, 1) == ()


def test_an_extent_without_leases_is_reassigned_first() -> None:
    rig, _ = index()
    save(rig, KEYS[: 2 * RECORDS])
    find(rig, KEYS[RECORDS : RECORDS + 1])
    assert set(press(rig, 1, EXTENT, reassign=True)) == {0, 1, 2, 3}, "it is not the coldest"
    assert len(find(rig, KEYS[RECORDS:]).pages) == RECORDS, "nothing is cleared"


def test_an_extent_is_cleared_if_there_are_leases_in_all() -> None:
    rig, actor = index()
    save(rig, KEYS[: 2 * RECORDS])
    find(rig, KEYS[:1])
    mine = find(rig, KEYS[RECORDS : RECORDS + 1])
    assert set(press(rig, 1, EXTENT, reassign=True)) == {5, 6, 7}
    assert press(rig, 1, EXTENT, reassign=True) == (), "no other one is emptied in vain"
    assert not find(rig, KEYS[RECORDS : RECORDS + 1], SESSION_5).pages, "or it would never end"
    assert find(rig, KEYS[:2], SESSION_5).pages == (0, 1)
    rig.tell(SESSION_4, Release(mine.number))
    assert press(rig, 1, EXTENT, reassign=True) == (4,)
    assert actor.eviction.clearing is None


def test_an_extent_is_not_cleared_for_somebody_who_has_gone() -> None:
    rig, _ = index()
    save(rig, KEYS[: 2 * RECORDS])
    find(rig, KEYS[:1])
    find(rig, KEYS[RECORDS : RECORDS + 1])
    press(rig, 1, EXTENT, reassign=True)
    rig.wait(CLEARING_NS + 2 * BEAT_NS)
    assert find(rig, KEYS[RECORDS : RECORDS + 1], SESSION_5).pages == (4,)


def test_holding_drops_omitted_leases_and_sends_later_ones_again() -> None:
    rig, _ = index()
    save(rig, KEYS[:3])
    first, second = find(rig, KEYS[2:3]), find(rig, KEYS[:2])
    assert (first.number, second.number) == (1, 2)
    sent = rig.tell(SESSION_4, LeasesHeld(LeaseId(1), (), NO_CLAIM, ()))
    assert said(sent, Held, SESSION_4) == second
    assert press(rig, 9) == (2,)
    assert rig.tell(SESSION_4, LeasesHeld(LeaseId(2), as_leases(2), NO_CLAIM, ())) == []
    assert press(rig, 9) == ()
    rig.tell(SESSION_4, LeasesHeld(LeaseId(2), (), NO_CLAIM, ()))
    assert len(press(rig, 9)) == 2


def test_holding_ends_omitted_claims() -> None:
    rig, _ = index()
    first, second = claim(rig, KEYS[:1]).number, claim(rig, KEYS[1:2]).number
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), second, (second,)))
    assert claim(rig, KEYS[:2], SESSION_5).positions == (0,)
    assert said(rig.ask(SESSION_4, seal_of(first, KEYS[:1])), Sealed).positions == ()
    later = claim(rig, KEYS[2:3]).number
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), second, ()))
    assert said(rig.ask(SESSION_4, seal_of(later, KEYS[2:3])), Sealed).positions == (0,)


def test_a_gone_session_is_fenced() -> None:
    rig, _ = index()
    save(rig, KEYS[:1])
    find(rig, KEYS[:1])
    number = claim(rig, KEYS[1:2]).number
    assert said(rig.tell(BOSS, Gone(SESSION_4)), Fenced, ALLOC) == Fenced(SESSION_4)
    assert not pick(rig.ask(SESSION_4, seal_of(number, KEYS[1:2], 1)), Sealed), "a queued Seal"
    assert rig.count("frames_of_other_lives") == 1
    assert claim(rig, KEYS[1:2], SESSION_5).positions == (0,)
    assert press(rig, 9) == (0,)


def test_nothing_new_is_no_claim() -> None:
    rig, _ = index()
    save(rig, KEYS[:2])
    assert claim(rig, KEYS[:2]) == Claimed(NO_CLAIM, ())
