"""Blocks that the session finds and keeps by itself: hits under hazards, their loads, their end."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.hazards import NOTED_NS
from pegaflow.actors.session.leases import OWN_FIRST
from pegaflow.core.pool.table import TierWord
from pegaflow.wire import index as to_index
from pegaflow.wire.control import BEAT_NS, Beat, Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, NO_LEASE, ClaimId, Incarnation, LeaseId
from pegaflow.wire.index import (
    Claim,
    Claimed,
    Claiming,
    Corrupt,
    Find,
    HazardFile,
    HazardsNoted,
    Held,
    LeasesHeld,
)
from pegaflow.wire.jobs import (
    BounceOpened,
    OpenBounce,
    PagesDiffer,
    PagesSummed,
    SumPages,
    WriteBlocks,
)
from pegaflow.wire.session import (
    LEASE_IDLE_NS,
    Confirmed,
    Copied,
    Found,
    Load,
    Loaded,
    Lookup,
    Pages,
    Release,
    Save,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.rig import (
    BOSS,
    CLIENT_7,
    CLIENT_8,
    EXTENT,
    HELLO,
    IDX,
    PAGE,
    SESSION_4,
    WELCOME,
    Rig,
    one,
    pick,
    said,
)
from tests.actors.session.test_ranks import BOSS_CLIENT, DIRECT, RANKS, direct, pair
from tests.actors.sessions import ATTACH, KEYS, LAYOUT, attached, note, reading, serving
from tests.actors.shared import Shared
from tests.naming import as_claims, as_leases, as_pages

NEXT = Address(IDX.name, Incarnation(30))
VERIFY = replace(WELCOME, verify=True)


def look(rig: Rig, count: int) -> Found:
    """The answer to a lookup that asks nobody."""
    sent = rig.ask(CLIENT_7, Lookup(KEYS[:count]))
    assert [e.receiver for e in sent] == [CLIENT_7]
    return said(sent, Found)


def load(rig: Rig, found: Found) -> Pages:
    return said(rig.ask(CLIENT_7, Load(found.lease, 0, 0, found.blocks)), Pages)


def stated(sent: list[Envelope]) -> bool:
    """Whether the index is told that hazards may stand."""
    msg = pick(sent, LeasesHeld)[-1].message
    assert isinstance(msg, LeasesHeld)
    return msg.hazards


def gone(rig: Rig) -> list[Envelope]:
    """The index is proven dead."""
    return rig.tell(BOSS, Gone(IDX))


def note_late(rig: Rig) -> None:
    """The index has not answered yet: it is told again, and notes the file."""
    note(rig, pick(rig.wait(NOTED_NS + 2 * BEAT_NS), HazardFile)[-1:])


def test_a_run_in_memory_is_found_kept_loaded_and_let_go_without_a_message() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 3)
    assert found == Found(Status.OK, LeaseId(OWN_FIRST), 3) and shared.named == [0, 1, 2]
    pages = load(rig, found)
    assert (pages.status, pages.offsets) == (Status.OK, (0, PAGE, 2 * PAGE))
    sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert said(sent, Confirmed).status is Status.OK and len(sent) == 1
    assert shared.named == [] and not actor.leases.own
    sent = rig.wait(BEAT_NS)
    assert said(sent, to_index.Touched, IDX).pages == (0, 1, 2)
    assert said(sent, LeasesHeld, IDX) == LeasesHeld(NO_LEASE, (), NO_CLAIM, (), hazards=True)
    counted = ("lookups_local", "blocks_asked_local", "blocks_hit_local", "lookups_by_message")
    assert [actor.counts[name] for name in counted] == [1, 3, 3, 0]


def test_a_hit_needs_a_noted_file() -> None:
    shared = Shared()
    rig, actor, _ = attached(shared)
    shared.seal(actor, KEYS[:4], (0, 1, 2, 3))
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:2])), Find, IDX)
    assert said(rig.answer(find, Held(LeaseId(1), 1, as_pages(0, 1))), Found).lease == 1
    assert shared.named == [] and actor.counts["lookups_by_message"] == 1
    assert not said(rig.wait(BEAT_NS), LeasesHeld).hazards
    note_late(rig)
    assert look(rig, 2).blocks == 2


def test_who_does_not_answer_is_told_again_and_one_answer_is_enough() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, ATTACH)
    first = one(rig.done(OpenBounce, BounceOpened("bounce", ())), HazardFile, IDX)
    assert not pick(rig.wait(NOTED_NS - 1), HazardFile), "the first may still be answered"
    assert pick(rig.wait(2 * BEAT_NS), HazardFile)
    rig.answer(first, HazardsNoted(Status.OK))
    assert rig.host.actor.gauges()["session_hazards"] == 0
    assert not pick(rig.wait(9 * BEAT_NS), HazardFile), "late, and good"
    assert said(rig.ask(CLIENT_7, Lookup(KEYS)), Found) == Found(Status.OK, NO_LEASE, 0)


def test_hits_go_on_without_an_index() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    before = look(rig, 2)
    gone(rig)
    after = look(rig, 4)
    assert after.blocks == 4 and shared.named == [0, 0, 1, 1, 2, 3]
    assert look(rig, 6).blocks == 4, "what is there is the answer"
    assert said(rig.ask(CLIENT_7, Lookup(KEYS[5:])), Found) == Found(Status.PEER_GONE, NO_LEASE, 0)
    for found in (before, after):
        pages = load(rig, found)
        sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
        assert said(sent, Confirmed).status is Status.OK
    assert len(actor.leases.own) == 1 and actor.counts["blocks_asked_local"] == 12


def test_a_run_that_may_go_on_in_a_tier_is_the_indexs() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    assert look(rig, 6).blocks == 4, "there is no tier"
    shared.table.set_tiers(TierWord.ASK)
    assert look(rig, 4).blocks == 4, "it is whole"
    standing = shared.named
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:6])), Find, IDX)
    assert shared.named == standing, "what the index will lease needs no hazard"
    found = said(
        rig.answer(find, Held(LeaseId(1), 1, as_pages(0, 1, 2, 3, 4, 5), (), disk=(4, 5))), Found
    )
    assert (found.lease, found.blocks, found.disk) == (1, 6, (4, 5))
    assert actor.counts["blocks_asked_local"] == 10, "the index has counted this one"
    assert said(rig.wait(BEAT_NS), LeasesHeld).leases == (1,), "ours are not stated"


def test_what_is_in_memory_is_the_answer_if_the_index_dies_meanwhile() -> None:
    shared = Shared()
    shared.table.set_tiers(TierWord.ASK)
    rig, _ = reading(shared)
    one(rig.ask(CLIENT_7, Lookup(KEYS[:6])), Find)
    found = said(gone(rig), Found, CLIENT_7)
    assert found.blocks == 4 and shared.named == [0, 1, 2, 3]


def test_nothing_is_found_by_ourselves_while_too_much_is_pinned() -> None:
    shared = Shared()
    rig, _ = reading(shared)
    shared.table.set_closed(True)
    one(rig.ask(CLIENT_7, Lookup(KEYS[:2])), Find)
    shared.table.set_closed(False)
    assert look(rig, 2).blocks == 2


def test_without_a_row_left_the_index_is_asked() -> None:
    shared = Shared(rows=3)
    rig, _ = reading(shared)
    found = look(rig, 2)
    one(rig.ask(CLIENT_7, Lookup(KEYS[:2])), Find)
    assert shared.named == [0, 1]
    rig.tell(CLIENT_7, Release(found.lease))
    assert look(rig, 3).blocks == 3


# loads


@pytest.mark.parametrize("moment", ["evicted", "filled anew"])
def test_a_block_that_is_gone_before_its_load_fails_it(moment: str) -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 3)
    shared.evict(1)
    if moment == "filled anew":
        shared.seal(actor, KEYS[1:2], (1,))
    assert load(rig, found).status is Status.NO_SUCH_LEASE
    assert shared.named == [] and not actor.leases.own
    assert actor.counts["leases_lost"] == 1 and actor.counts["loads_refused"] == 1


@pytest.mark.parametrize("moment", ["evicted", "filled anew"])
def test_a_staged_copy_of_a_page_that_changed_hands_is_worth_nothing(moment: str) -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 3)
    pages = load(rig, found)
    shared.evict(1)
    if moment == "filled anew":
        shared.seal(actor, KEYS[1:2], (1,))
    sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert said(sent, Confirmed).status is Status.NO_SUCH_LEASE
    assert shared.named == [] and actor.counts["loads_failed"] == 1


@pytest.mark.parametrize("ended", [Status.OK, PagesDiffer((PAGE,))])
def test_a_write_of_a_page_that_changed_hands_is_worth_nothing(ended: Status | PagesDiffer) -> None:
    """With checksums too: that it is another block's page says nothing of its bytes."""
    shared = Shared()
    rig, actor = direct(begun=serving(shared, VERIFY))
    note_late(rig)
    shared.seal(actor, KEYS[:3], (0, 1, 2), (7, 8, 9))
    found = look(rig, 3)
    assert rig.ask(CLIENT_7, Load(found.lease, 0, 0, 3, blocks=(9, 8, 7))) == []
    assert rig.wanted(WriteBlocks)[0].checksums == (7, 8, 9)
    shared.evict(1)
    shared.seal(actor, KEYS[1:2], (1,))
    sent = rig.done(WriteBlocks, ended)
    assert said(sent, Loaded).status is Status.NO_SUCH_LEASE and not pick(sent, Corrupt)
    assert shared.named == [] and not actor.leases.own


def test_a_page_that_the_index_only_looks_at_is_loaded() -> None:
    """It leaves until the index has read our hazard, and then it stays."""
    shared = Shared()
    rig, _ = reading(shared)
    found = look(rig, 3)
    shared.ledger.leave(as_pages(1))
    pages = load(rig, found)
    assert pages.status is Status.OK
    sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert said(sent, Confirmed).status is Status.OK


def test_pages_are_compared_with_the_checksums_of_the_ledger() -> None:
    shared = Shared()
    rig, actor = reading(shared, 3, VERIFY, sums=(7, 8, 9))
    found = look(rig, 3)
    assert rig.ask(CLIENT_7, Load(found.lease, 0, 1, 2)) == []
    sent = rig.done(SumPages, PagesSummed((8, 1)))
    assert said(sent, Pages).status is Status.CORRUPT
    assert said(sent, Corrupt, IDX) == Corrupt(as_pages(2))
    assert shared.named == [] and actor.counts["pages_corrupt"] == 1
    found = look(rig, 2)
    rig.ask(CLIENT_7, Load(found.lease, 0, 0, 2))
    shared.evict(1)
    sent = rig.done(SumPages, PagesSummed((7, 1)))
    assert said(sent, Pages).status is Status.NO_SUCH_LEASE and not pick(sent, Corrupt)


def test_impossible_loads_of_our_own_leases() -> None:
    rig, _ = reading(Shared())
    found = look(rig, 2)
    assert load(rig, replace(found, blocks=3)).status is Status.BAD_REQUEST
    assert load(rig, replace(found, lease=LeaseId(found.lease + 1))).status is Status.NO_SUCH_LEASE
    assert load(rig, found).status is Status.OK


# the end of a lease


def test_hazards_stand_until_the_last_rank_has_loaded() -> None:
    shared = Shared()
    rig, actor = pair(DIRECT, serving(shared))
    note_late(rig)
    shared.seal(actor, KEYS[:2], (0, 1, 4, 5))
    found = said(rig.ask(BOSS_CLIENT, Lookup(KEYS[:2])), Found)
    assert found.blocks == 2 and shared.named == [0, 4], "a block's first page stands for all"
    for rank, offsets in ((1, (PAGE, 5 * PAGE)), (0, (0, 4 * PAGE))):
        assert shared.named == [0, 4]
        rig.ask(RANKS[rank], Load(found.lease, rank, 0, 2, blocks=(3, 4)))
        assert rig.wanted(WriteBlocks)[0].offsets == offsets
        assert said(rig.done(WriteBlocks), Loaded, RANKS[rank]).status is Status.OK
    assert shared.named == [] and not actor.leases.own
    assert said(rig.wait(BEAT_NS), to_index.Touched).pages == (0, 4)


def test_hazards_stand_while_a_copy_runs_whoever_has_given_the_lease_back() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 2)
    pages = load(rig, found)
    assert rig.tell(CLIENT_7, Release(found.lease)) == []
    assert shared.named == [0, 1] and load(rig, found).status is Status.NO_SUCH_LEASE
    rig.ask(CLIENT_7, Copied(pages.copy, False))
    assert shared.named == [] and not actor.leases.own


def test_a_lease_that_is_given_back_ends_at_once_and_one_of_two_keeps_the_block() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    first, second = look(rig, 2), look(rig, 3)
    assert actor.gauges()["session_pinned_bytes"] == 3 * PAGE
    assert rig.tell(CLIENT_7, Release(first.lease)) == [] and shared.named == [0, 1, 2]
    rig.tell(CLIENT_7, Release(second.lease))
    rig.tell(CLIENT_7, Release(second.lease))
    assert shared.named == [] and actor.gauges()["session_pinned_bytes"] == 0


def test_an_idle_lease_of_our_own_ends_unless_a_copy_of_it_runs() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 2)
    look(rig, 1)
    pages = load(rig, found)
    rig.wait(LEASE_IDLE_NS + 2 * BEAT_NS)
    assert shared.named == [0, 1] and actor.counts["leases_idle"] == 1
    rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert shared.named == []


def test_leases_of_our_own_end_with_the_layout_that_they_were_found_under() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    look(rig, 3)
    rig.ask(CLIENT_7, replace(ATTACH, layout=replace(LAYOUT, dtype="other")))
    rig.done(OpenBounce, BounceOpened("other", ()))
    assert shared.named == [] and not actor.leases.own
    assert look(rig, 3).blocks == 0, "a key is nothing without its namespace"


# the index


def test_who_waits_for_a_slow_supervisor_beats_before_it_knows_the_pool() -> None:
    shared = Shared()
    rig = Rig(
        Session(
            SESSION_4,
            BOSS,
            HELLO,
            open_hazards=shared.open_hazards,
            open_finder=shared.open_finder,
        )
    )
    rig.start()
    assert len(pick(rig.wait(5 * BEAT_NS), Beat)) == 5


def test_a_new_index_hears_of_our_hazards_before_all_else() -> None:
    shared = Shared()
    rig, _ = reading(shared)
    look(rig, 2)
    shared.table.set_tiers(TierWord.ASK)
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:6])), Find)
    rig.answer(find, Held(LeaseId(7), 1, as_pages(0, 1, 2)))
    rig.answer(
        one(rig.ask(CLIENT_7, Save(1, 0, KEYS[6:7], NO_KEY)), Claim), Claimed(ClaimId(3), (0,))
    )
    gone(rig)
    sent = [e for e in rig.tell(BOSS, Neighbour(NEXT, "ipc://n", 3)) if e.receiver == NEXT]
    assert [type(e.message) for e in sent[:4]] == [HazardFile, Claiming, Held, LeasesHeld]
    assert sent[3].message == LeasesHeld(
        LeaseId(7), as_leases(7), ClaimId(3), as_claims(3), hazards=True
    )
    assert look(rig, 3).blocks == 3, "nobody evicts before we have stated"
    rig.answer(sent[0], HazardsNoted(Status.OK))
    assert not pick(rig.wait(9 * BEAT_NS), HazardFile)


def test_an_index_that_cannot_read_our_hazards_is_asked() -> None:
    shared = Shared()
    rig, actor = reading(shared)
    found = look(rig, 2)
    gone(rig)
    told = one(rig.tell(BOSS, Neighbour(NEXT, "ipc://n", 3)), HazardFile)
    assert actor.remarks() == ()
    rig.answer(told, HazardsNoted(Status.NO_SPACE, "it cannot be mapped"))
    one(rig.ask(CLIENT_7, Lookup(KEYS[:2])), Find, NEXT)
    assert actor.remarks() == ("engine engine looks up by message: it cannot be mapped",)
    sent = rig.wait(3 * BEAT_NS)
    assert not pick(sent, HazardFile), "it would say the same"
    assert stated(sent), "it evicts nothing while some are left"
    pages = load(rig, found)
    assert said(rig.ask(CLIENT_7, Copied(pages.copy, True)), Confirmed).status is Status.OK
    assert shared.named == [] and not stated(rig.wait(BEAT_NS))
    rig.tell(BOSS, Gone(NEXT))
    note(rig, rig.tell(BOSS, Neighbour(Address(IDX.name, Incarnation(31)), "ipc://m", 4)))
    assert look(rig, 2).blocks == 2 and actor.remarks() == ()
    assert [n.event for n in rig.notes].count("lookups_by_message") == 1


def test_without_hazards_everything_is_as_before() -> None:
    rig, actor, _ = attached(Shared(refusal="no memory barrier"))
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:4])), Find, IDX)
    found = said(rig.answer(find, Held(LeaseId(5), 1, as_pages(0, 1, 4))), Found)
    pages = load(rig, found)
    sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert said(sent, to_index.Release, IDX).number == 5
    assert not pick(rig.wait(9 * BEAT_NS), HazardFile)
    gone(rig)
    assert said(rig.ask(CLIENT_7, Lookup(KEYS)), Found).status is Status.PEER_GONE
    (line,) = [n for n in rig.notes if n.event == "lookups_by_message"]
    assert ("why", "no memory barrier") in line.facts
    assert actor.remarks() == ("engine engine looks up by message: no memory barrier",)


def test_hazards_are_made_once_however_often_the_engine_attaches() -> None:
    shared = Shared()
    rig, _ = reading(shared)
    rig.ask(CLIENT_7, ATTACH)
    assert not pick(rig.done(OpenBounce, BounceOpened("b", ())), HazardFile)
    assert shared.opened == 1


def test_a_hazard_that_is_cleared_is_free_for_the_next() -> None:
    shared = Shared(rows=4)
    rig, _ = reading(shared)
    for _ in range(5):
        found = look(rig, 4)
        assert found.blocks == 4 and shared.named == [0, 1, 2, 3]
        rig.tell(CLIENT_8, Release(found.lease))


def test_an_extent_that_is_cleared_ends_a_run() -> None:
    shared = Shared()
    rig, _ = reading(shared, 8)
    shared.table.set_clearing(1)
    assert look(rig, 8).blocks == EXTENT // PAGE
