"""Index and allocator in a later life: what they find, whom they wait for, what they are told."""

from dataclasses import replace

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.index.actor import Index
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.allocator import Freed, PagesHeld, Pressure, Reserve, Reserved, Return
from pegaflow.wire.control import Beat, Fenced, Gone, Members, Neighbour
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_GRANT,
    NO_LEASE,
    ClaimId,
    GrantId,
    Incarnation,
    Key,
    LeaseId,
    PageId,
)
from pegaflow.wire.index import (
    Claim,
    Claimed,
    Claiming,
    Corrupt,
    Find,
    Held,
    LeasesHeld,
    LeasesLost,
    Seal,
    Sealed,
)
from pegaflow.wire.jobs import GrowExtent, ReadRecords, RecordsRead, RecordsScanned, ScanRecords
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.index.test_index import KEYS, NS, OTHER_NS, ROOT, find, index, save, seal_of
from tests.actors.memory import IndexMemory
from tests.actors.rig import (
    ALLOC,
    BOSS,
    EXTENT,
    HELLO,
    IDX,
    MS,
    PAGE,
    POOL,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    one,
    pick,
    said,
)
from tests.actors.tier import FLUSHER_6
from tests.naming import as_claims, as_leases, as_pages, as_stamps

IDX_9, ALLOC_9 = Address("index", Incarnation(9)), Address("allocator", Incarnation(9))
BOTH = Members((SESSION_4, SESSION_5), ())


def heir(ledger: Ledger, members: Members = BOTH) -> tuple[Rig, Index]:
    """A later index on this ledger."""
    rig = Rig(Index(IDX_9, BOSS, HELLO, IndexMemory(ledger)))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, members)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    actor = rig.host.actor
    assert isinstance(actor, Index)
    return rig, actor


def left(keys: tuple[Key, ...] = KEYS[:4]) -> Ledger:
    """The ledger of an index that has sealed a chain."""
    rig, actor = index()
    save(rig, keys)
    return actor.residency.ledger


def press(rig: Rig, count: int = 9) -> tuple[int, ...]:
    return tuple(said(rig.ask(ALLOC, Pressure(PAGE, count, False)), Freed).pages)


def test_what_was_sealed_is_a_hit_and_questions_wait_until_it_is_known() -> None:
    rig, _ = heir(left())
    assert rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), NO_CLAIM, ())) == []
    assert rig.ask(SESSION_4, Find(NS, KEYS)) == []
    answers = rig.wait(0)
    assert said(answers, Held) == Held(LeaseId(1), 1, as_pages(0, 1, 2, 3))
    assert rig.count("blocks_adopted") == 4


def test_nothing_is_leased_to_a_holder_before_it_has_stated() -> None:
    rig, actor = heir(left())
    rig.wait(0)
    assert find(rig, KEYS[:1]) == Held(NO_LEASE, 0, ()), "1 may be the number of another lease"
    assert find(rig, KEYS[:1], Address("session", Incarnation(9))).number == 1, "it has come since"
    rig.tell(SESSION_4, Held(LeaseId(1), 1, as_pages(1, 2)))
    rig.tell(SESSION_4, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ()))
    assert find(rig, KEYS[:1]) == Held(LeaseId(2), 1, as_pages(0))


def test_it_beats_while_it_reads() -> None:
    rig, _ = heir(left())
    rig.now += 500 * MS
    assert pick(rig.wake(), Beat)


def test_nothing_is_evicted_before_all_have_stated() -> None:
    rig, _ = heir(left())
    rig.wait(0)
    assert press(rig) == ()
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    assert press(rig) == ()
    rig.tell(SESSION_5, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    assert press(rig) == (3, 2, 1, 0), "the tail of a chain goes first"


def test_a_dead_session_is_not_waited_for() -> None:
    rig, _ = heir(left())
    rig.wait(0)
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    assert said(rig.tell(BOSS, Gone(SESSION_5)), Fenced, ALLOC) == Fenced(SESSION_5)
    assert len(press(rig)) == 4


def test_leases_go_on_under_their_numbers() -> None:
    rig, _ = heir(left(), Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, Held(LeaseId(7), 1, as_pages(0, 1)))
    assert rig.tell(SESSION_4, LeasesHeld(LeaseId(8), as_leases(7), NO_CLAIM, ())) == []
    assert press(rig) == (3, 2)
    assert said(rig.ask(SESSION_4, Find(NS, KEYS[:1])), Held).number == 9
    rig.tell(SESSION_4, LeasesHeld(LeaseId(9), as_leases(9), NO_CLAIM, ()))
    assert press(rig) == (1,)


def test_a_lease_that_cannot_be_honoured_is_said_and_holds_eviction_up() -> None:
    rig, _ = heir(left(), Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, Held(LeaseId(7), 1, as_pages(0, 5)))
    told = rig.tell(SESSION_4, LeasesHeld(LeaseId(7), as_leases(7), NO_CLAIM, ()))
    assert said(told, LeasesLost, SESSION_4) == LeasesLost(as_leases(7))
    assert press(rig) == (), "a copy may still run"
    assert rig.tell(SESSION_4, LeasesHeld(LeaseId(7), (), NO_CLAIM, ())) == []
    assert len(press(rig)) == 4


def test_a_lease_of_blocks_of_two_namespaces_was_never_granted() -> None:
    first, actor = index()
    save(first, KEYS[:1])
    number = said(first.ask(SESSION_4, Claim(OTHER_NS, KEYS[:1])), Claimed).number
    first.ask(SESSION_4, replace(seal_of(number, KEYS[:1], first_page=1), namespace=OTHER_NS))
    rig, _ = heir(actor.residency.ledger, Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, Held(LeaseId(7), 1, as_pages(0, 1)))
    told = rig.tell(SESSION_4, LeasesHeld(LeaseId(7), as_leases(7), NO_CLAIM, ()))
    assert said(told, LeasesLost, SESSION_4) == LeasesLost(as_leases(7))
    assert rig.count("leases_unknown") == 1


def test_a_lease_cannot_be_invented_later() -> None:
    rig, _ = heir(left(), Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    rig.tell(SESSION_4, Held(LeaseId(1), 1, as_pages(0)))
    assert len(press(rig)) == 4


def test_claims_go_on_and_an_unanswered_seal_is_accepted() -> None:
    rig, actor = heir(left(KEYS[:1]), Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, Claiming(ClaimId(3), NS, KEYS[:3]))
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), ClaimId(3), as_claims(3)))
    assert said(rig.ask(SESSION_5, Claim(NS, KEYS[:4])), Claimed).positions == (3,)
    again = said(rig.ask(SESSION_4, seal_of(3, KEYS[:3])), Sealed)
    assert again == Sealed(Status.OK, (0, 1, 2)), "one was carried out by the earlier index"
    assert actor.counts["blocks_sealed"] == 3 and len(actor.residency.blocks) == 3


def test_a_block_evicted_before_its_seal_is_repeated_is_sealed_again() -> None:
    rig, actor = heir(left(KEYS[:1]), Members((SESSION_4,), ()))
    rig.wait(0)
    rig.tell(SESSION_4, Claiming(ClaimId(3), NS, KEYS[:1]))
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), ClaimId(3), as_claims(3)))
    assert press(rig) == (0,)
    assert said(rig.ask(SESSION_4, seal_of(3, KEYS[:1])), Sealed).status is Status.OK
    assert len(actor.residency.blocks) == 1


def test_half_a_seal_is_voided_and_sealed_again() -> None:
    rig, actor = index()
    claimed = said(rig.ask(SESSION_4, Claim(NS, KEYS[:1])), Claimed)
    whole = Seal(
        claimed.number,
        NS,
        PAGE,
        PAGE,
        shards=2,
        keys=KEYS[:1],
        parents=(ROOT,),
        pages=as_pages(0, 1),
        stamps=as_stamps(900, 901),
    )
    rig.ask(SESSION_4, whole)
    actor.residency.ledger.void([PageId(1)])
    rig, actor = heir(actor.residency.ledger, Members((SESSION_4,), ()))
    rig.ask(SESSION_4, Find(NS, KEYS))
    told = rig.wait(0)
    assert said(told, Held).number == 0 and said(told, Freed, ALLOC) == Freed(as_pages(0))
    rig.tell(SESSION_4, Claiming(ClaimId(1), NS, KEYS[:1]))
    rig.tell(SESSION_4, LeasesHeld(NO_LEASE, (), ClaimId(1), as_claims(1)))
    assert said(rig.ask(SESSION_4, whole), Sealed).status is Status.OK
    assert said(rig.ask(SESSION_4, Find(NS, KEYS)), Held).pages == (0, 1)


def test_what_the_dead_had_asked_is_forgotten() -> None:
    rig, actor = heir(index()[1].residency.ledger, Members((SESSION_4,), ()))
    rig.tell(SESSION_4, Claiming(ClaimId(1), NS, KEYS[:1]))
    rig.ask(SESSION_4, seal_of(1, KEYS[:1]))
    rig.tell(BOSS, Gone(SESSION_4))
    rig.wait(0)
    assert len(actor.residency.blocks) == 0 and len(actor.claims.table) == 0


def test_a_new_allocator_hears_of_all_the_dead() -> None:
    rig, _ = heir(left(), Members((SESSION_4,), (SESSION_5,)))
    rig.wait(0)
    rig.tell(BOSS, Gone(SESSION_4))
    rig.tell(BOSS, Gone(ALLOC))
    told = rig.tell(BOSS, Neighbour(ALLOC_9, "ipc://a9", 1))
    fenced = {e.message for e in pick(told, Fenced, ALLOC_9)}
    assert fenced == {Fenced(SESSION_4), Fenced(SESSION_5)}
    assert told[-1].message == Freed(())


def test_the_lookup_of_a_chain_makes_adopted_blocks_young_as_a_whole() -> None:
    rig, _ = heir(left(), Members((), ()))
    rig.wait(0)
    for _ in range(2):
        number = said(rig.ask(SESSION_4, Find(NS, KEYS[:4])), Held).number
        rig.tell(SESSION_4, LeasesHeld(number, (), NO_CLAIM, ()))
    claimed = said(rig.ask(SESSION_4, Claim(NS, KEYS[4:5])), Claimed)
    seal = Seal(
        claimed.number,
        NS,
        PAGE,
        PAGE,
        shards=1,
        keys=KEYS[4:5],
        parents=KEYS[3:4],
        pages=as_pages(4),
        stamps=as_stamps(904),
    )
    assert said(rig.ask(SESSION_4, seal), Sealed).status is Status.OK
    assert press(rig, 2) == (4, 3)


def test_a_corrupt_block_is_no_hit_and_its_page_nobodys_even_after_a_restart() -> None:
    rig, actor = index()
    save(rig, KEYS[:3])
    lease = said(rig.ask(SESSION_5, Find(NS, KEYS[:3])), Held)
    rig.tell(SESSION_4, Corrupt(as_pages(1, 1, 99)))
    assert rig.count("blocks_corrupt") == 1
    assert said(rig.ask(SESSION_4, Find(NS, KEYS[:3])), Held).pages == (0,)
    assert (
        actor.residency.ledger.is_quarantined(PageId(1))
        and actor.gauges()["quarantined_pages"] == 1
    )
    rig.tell(SESSION_5, LeasesHeld(lease.number, (), NO_CLAIM, ()))
    rig, actor = heir(actor.residency.ledger, Members((), ()))
    rig.wait(0)
    assert actor.gauges()["quarantined_pages"] == 1
    claimed = said(rig.ask(SESSION_4, Claim(NS, KEYS[1:2])), Claimed)
    refused = said(rig.ask(SESSION_4, seal_of(claimed.number, KEYS[1:2], 1)), Sealed)
    assert refused.positions == ()


# the allocator


def keeper(members: Members) -> tuple[Rig, Allocator]:
    """A later allocator that has got this Members."""
    rig = Rig(Allocator(ALLOC_9, BOSS, HELLO))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, members)
    actor = rig.host.actor
    assert isinstance(actor, Allocator)
    return rig, actor


def grown(rig: Rig) -> None:
    while rig.wanted(GrowExtent):
        rig.done(GrowExtent)


def scanned(*pages: int) -> RecordsScanned:
    return RecordsScanned(as_pages(*pages), (PAGE,) * len(pages))


def test_it_waits_for_every_holder_and_for_an_index() -> None:
    rig, actor = keeper(BOTH)
    rig.ask(SESSION_4, Reserve(PAGE, 1))
    rig.tell(SESSION_4, PagesHeld(GrantId(3), as_pages(0, 1), PAGE))
    rig.tell(IDX, Freed(()))
    assert not rig.wanted(ScanRecords) and actor.pages.slab is None
    rig.tell(SESSION_5, PagesHeld(NO_GRANT, ()))
    sent = rig.done(ScanRecords, scanned(1, 2))
    sent += rig.done(GrowExtent)
    grant = said(sent, Reserved, SESSION_4)
    assert grant.number == 4, "numbers go on from what was stated"
    assert not {0, 1, 2} & set(grant.pages)
    gauges = actor.gauges()
    assert (gauges["pool_held_bytes"], gauges["pool_sealed_bytes"]) == (3 * PAGE, PAGE)
    assert {stamp >> 40 for stamp in grant.stamps} == {ALLOC_9.incarnation}


def test_without_an_index_it_waits_too() -> None:
    rig, _ = keeper(Members((), ()))
    assert not rig.wanted(ScanRecords)
    rig.tell(IDX, Freed(()))
    assert rig.wanted(ScanRecords)


def test_the_dead_are_waited_for_until_they_are_fenced() -> None:
    rig, _ = keeper(Members((SESSION_4,), ()))
    rig.tell(IDX, Freed(()))
    rig.tell(BOSS, Gone(SESSION_4))
    assert not rig.wanted(ScanRecords), "a Seal of it may still be on its way into the ledger"
    rig.tell(IDX, Fenced(SESSION_4))
    assert rig.wanted(ScanRecords)


def test_fenced_before_the_members_are_known() -> None:
    rig = Rig(Allocator(ALLOC_9, BOSS, HELLO))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(IDX, Fenced(SESSION_4))
    rig.tell(IDX, Freed(()))
    rig.tell(BOSS, Members((SESSION_4,), ()))
    assert rig.wanted(ScanRecords)


def test_a_page_sealed_and_given_back_while_the_ledger_is_read_has_one_owner() -> None:
    rig, actor = keeper(Members((SESSION_4,), ()))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), as_pages(0), PAGE))
    rig.tell(IDX, Freed(()))
    rig.tell(SESSION_4, Return(as_pages(0)))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), (), PAGE))
    rig.done(ScanRecords, RecordsScanned((), ()))  # it was void when it was read
    assert actor.gauges()["pool_held_bytes"] == PAGE
    rig.done(ReadRecords, RecordsRead(as_pages(0)))  # and is sealed now
    grown(rig)
    assert actor.gauges()["pool_sealed_bytes"] == PAGE


def test_an_early_return_does_not_take_a_later_grant_away() -> None:
    """Seed 243: the Return was of a page that an earlier allocator had granted."""
    rig, actor = keeper(Members((SESSION_4,), ()))
    rig.ask(SESSION_4, Reserve(PAGE, POOL // PAGE))
    rig.tell(SESSION_4, Return(as_pages(0)))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), (), PAGE))
    rig.tell(IDX, Freed(()))
    sent = rig.done(ScanRecords, RecordsScanned((), ()))
    while rig.wanted(GrowExtent):
        sent += rig.done(GrowExtent)
    assert said(sent, Reserved, SESSION_4).number == 2
    assert not rig.wanted(ReadRecords) and actor.gauges()["pool_held_bytes"] == POOL


def test_a_holder_that_dies_while_the_ledger_is_read_loses_nothing_sealed() -> None:
    rig, actor = keeper(Members((SESSION_4,), ()))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), as_pages(0, 1), PAGE))
    rig.tell(IDX, Freed(()))
    rig.tell(IDX, Fenced(SESSION_4))
    rig.done(ScanRecords, RecordsScanned((), ()))
    rig.done(ReadRecords, RecordsRead(as_pages(1)))
    grown(rig)
    gauges = actor.gauges()
    assert (gauges["pool_sealed_bytes"], gauges["pool_free_bytes"]) == (PAGE, POOL - PAGE)


def test_a_ledger_that_cannot_be_read_is_not_taken_for_an_empty_one() -> None:
    rig, actor = keeper(Members((), ()))
    rig.ask(SESSION_4, Reserve(PAGE, 1))
    rig.tell(IDX, Freed(()))
    sent = rig.done(ScanRecords, Status.COPY_FAILED, "Cannot allocate memory")
    assert not sent and actor.pages.slab is None, "a page was given away"
    assert rig.stop == "the ledger cannot be read: Cannot allocate memory"


def test_what_was_there_need_not_be_grown() -> None:
    rig, _ = keeper(Members((), ()))
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, scanned(0))
    assert [job.extent for job in rig.wanted(GrowExtent)] == [1]
    grown(rig)
    assert said(rig.ask(SESSION_4, Reserve(EXTENT, 1)), Reserved).pages == (EXTENT // PAGE,)


def test_nonsense_that_is_stated_is_nobodys() -> None:
    rig, actor = keeper(Members((SESSION_4, SESSION_5), ()))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), as_pages(0, 1 << 40), PAGE))
    rig.tell(SESSION_5, PagesHeld(GrantId(1), as_pages(0, 1), 4097))
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, RecordsScanned((), ()))
    grown(rig)
    assert actor.gauges()["pool_held_bytes"] == PAGE and rig.count("pages_not_held") == 3


def test_a_flusher_states_pages_of_several_sizes() -> None:
    rig, actor = keeper(Members((FLUSHER_6,), ()))
    first = EXTENT // PAGE
    rig.tell(FLUSHER_6, PagesHeld(GrantId(2), as_pages(0, 1, first), 0, (PAGE, PAGE, 2 * PAGE)))
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, RecordsScanned((), ()))
    grown(rig)
    assert actor.gauges()["pool_held_bytes"] == 4 * PAGE
    other = said(rig.ask(SESSION_4, Reserve(2 * PAGE, 1)), Reserved)
    assert other.pages == (first + 1,), "the rest of an extent of this size"
    rig.tell(IDX, Fenced(FLUSHER_6))
    rig.done(ReadRecords, RecordsRead(()))
    assert actor.gauges()["pool_held_bytes"] == 2 * PAGE, "of the dead flusher nothing is left"


def test_sizes_that_do_not_fit_the_pages_are_nobodys() -> None:
    rig, actor = keeper(Members((FLUSHER_6,), ()))
    rig.tell(FLUSHER_6, PagesHeld(GrantId(2), as_pages(0, 1), 0, (PAGE,)))
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, RecordsScanned((), ()))
    grown(rig)
    assert actor.gauges()["pool_held_bytes"] == PAGE


def test_without_an_index_reservations_wait() -> None:
    rig, _ = keeper(Members((), ()))
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, RecordsScanned((), ()))
    grown(rig)
    rig.ask(SESSION_4, Reserve(PAGE, POOL // PAGE))
    rig.tell(BOSS, Gone(IDX))
    assert rig.ask(SESSION_4, Reserve(PAGE, 1)) == []
    assert one(rig.tell(IDX_9, Freed(())), Pressure, IDX_9)
