"""What the index has written to the log: order, bounds, pressure, who dies."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.ssd.write_back import (
    GENTLE_SHARE,
    PRESSED_NS,
    PRESSED_SHARE,
    WRITTEN_NS,
)
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import BEAT_NS, Fenced, Gone, Members, Neighbour
from pegaflow.wire.flusher import Flush, Forget, Manifest, Noted, WriteAll, Written
from pegaflow.wire.identities import NO_CLAIM, NO_LEASE, NO_NAMESPACE, LeaseId
from pegaflow.wire.index import Corrupt, Held, LeasesHeld, LeasesLost
from tests.actors.index.test_index import KEYS, NS, find, press, save
from tests.actors.memory import IndexMemory
from tests.actors.rig import ALLOC, BOSS, HELLO, IDX, PAGE, SESSION_4, Rig, pick, said
from tests.actors.tier import (
    BIG,
    FLUSHER_6,
    FLUSHER_9,
    PATIENCE,
    TIER,
    big,
    flushed,
    in_log,
    index,
    saving,
    ssd_of,
)
from tests.naming import as_leases, as_pages

GENTLE, PRESSED = (round(100 * share) for share in (GENTLE_SHARE, PRESSED_SHARE))  # as in Flush


def test_a_saved_block_is_flushed_under_a_lease() -> None:
    rig, actor = index()
    flush = said(saving(rig, KEYS[:2]), Flush, FLUSHER_6)
    assert (flush.number, flush.keys, flush.pages) == (1, KEYS[:2], (0, 1))
    assert (flush.page_size, flush.payload_bytes, flush.shards, flush.depths) == (
        PAGE,
        PAGE,
        1,
        (0, 1),
    )
    assert press(rig, 9) == (), "its pages stay what they are"
    flushed(rig, flush)
    assert ssd_of(actor).log.stored == {NS: set(KEYS[:2])}
    assert press(rig, 9) == (1, 0)


def test_no_more_flushes_than_the_tier_takes() -> None:
    rig, actor = index()
    first = said(saving(rig, KEYS[:1]), Flush)
    second = said(saving(rig, KEYS[1:2], 1), Flush)
    for at in range(2, 8):
        assert not pick(saving(rig, KEYS[at : at + 1], at), Flush)
    third = said(flushed(rig, first), Flush)
    assert third.keys == KEYS[2:6], "a batch, in the order in which they were saved"
    assert said(flushed(rig, second), Flush).keys == KEYS[6:8]
    assert len(ssd_of(actor).writes.backlog) == 0


def test_without_a_tier_or_a_writable_one_nothing_is_flushed() -> None:
    rig, actor = index(None)
    assert not pick(saving(rig, KEYS[:1]), Flush)
    assert not pick(rig.tell(FLUSHER_6, replace(TIER, writable=False)), Flush)
    assert said(rig.tell(FLUSHER_6, TIER), Flush).keys == KEYS[:1]
    plain = Rig(Index(IDX, BOSS, HELLO, big()))
    plain.start()
    for msg in (replace(BIG, ssd=False), Members((), ())):
        plain.tell(BOSS, msg)
    plain.wait(0)
    save(plain, KEYS[:1])
    assert isinstance(plain.host.actor, Index) and not ssd_of(plain.host.actor).writes.backlog


def test_what_was_not_written_goes_back_if_the_tier_failed_and_not_if_the_block_did() -> None:
    rig, actor = index()
    flush = said(saving(rig, KEYS[:2]), Flush)
    assert not pick(flushed(rig, flush, 1), Flush), "the block's own fault"
    again = said(saving(rig, KEYS[2:4], 2), Flush)
    rig.tell(FLUSHER_6, replace(TIER, writable=False))
    flushed(rig, again, 0)
    assert len(ssd_of(actor).writes.backlog) == 2
    assert said(rig.tell(FLUSHER_6, TIER), Flush).keys == KEYS[2:4]


def test_what_is_stored_is_not_flushed_again() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:2])
    assert not pick(saving(rig, KEYS[:2]), Flush)


def test_blocks_that_were_asked_for_go_first() -> None:
    rig, _ = index(replace(TIER, depth=1, batch_blocks=1))
    first = said(saving(rig, KEYS[:1]), Flush)
    for at in (1, 2):
        saving(rig, KEYS[at : at + 1], at)
    find(rig, KEYS[2:3])
    second = said(flushed(rig, first), Flush)
    assert second.keys == KEYS[2:3] and (first.share_percent, second.share_percent) == (100, GENTLE)


def test_with_reused_only_a_block_waits_until_somebody_asks_for_it() -> None:
    rig, _ = index(replace(TIER, reused_only=True))
    assert not pick(saving(rig, KEYS[:2]), Flush)
    assert press(rig, 1) == (1,), "it was not worth anything"
    find(rig, KEYS[:1])
    assert said(saving(rig, KEYS[2:3], 2), Flush).keys == KEYS[:1]


def test_a_block_too_large_for_a_segment_is_not_flushed() -> None:
    rig, actor = index(replace(TIER, block_bytes=PAGE - 1))
    assert not pick(saving(rig, KEYS[:1]), Flush) and not ssd_of(actor).writes.backlog


def test_corrupt_pages_that_the_flusher_finds_are_no_hit() -> None:
    rig, _ = index()
    flush = said(saving(rig, KEYS[:2]), Flush)
    rig.tell(FLUSHER_6, Corrupt((flush.pages[1],)))
    flushed(rig, flush, 1)
    assert find(rig, KEYS[:2]).pages == (0,)


# pressure


def test_a_victim_that_is_not_in_the_log_is_written_first_if_another_can_go() -> None:
    rig, actor = index(replace(TIER, depth=1))
    first = said(saving(rig, KEYS[:4]), Flush)
    saving(rig, KEYS[4:8], 4)
    flushed(rig, first, 2)  # two are in the log, two are not; the last four are on their way
    waiting = next(iter(actor.leasing.leases.held(FLUSHER_6)))
    flushed(rig, replace(first, number=waiting.number, keys=KEYS[4:8]), 4)
    sent = rig.ask(ALLOC, Pressure(PAGE, 1, False))
    written = said(sent, Flush)
    assert said(sent, Freed).pages == (1,), "the next one, which is in the log"
    assert written.keys == (KEYS[3], KEYS[2])
    flushed(rig, written)
    assert press(rig, 2) == (3, 2)
    assert rig.count("ssd_blocks_dropped") == 0


def test_without_room_a_victim_goes_at_once_and_is_counted() -> None:
    rig, _ = index(replace(TIER, depth=1, batch_blocks=1))
    said(saving(rig, KEYS[:1]), Flush)
    saving(rig, KEYS[1:4], 1)
    assert press(rig, 9) == (3, 2, 1)
    assert rig.count("ssd_write_queue_full") == rig.count("ssd_blocks_dropped") == 3


def test_ahead_of_need_nothing_goes_that_the_log_is_to_have() -> None:
    """Not without room either: whoever waits for pages has them at its expense, nobody else."""
    rig, _ = index(replace(TIER, depth=1, batch_blocks=1))
    flush = said(saving(rig, KEYS[:1]), Flush)
    saving(rig, KEYS[1:4], 1)
    assert press(rig, 9, ahead=True) == ()
    while flush.keys != KEYS[3:4]:
        flush = said(flushed(rig, flush), Flush)
    assert press(rig, 9, ahead=True) == (2, 1, 0), "the last is on its way"
    assert rig.count("ssd_blocks_dropped") == 0


def test_ahead_of_need_it_is_written_and_goes_after_that() -> None:
    rig, _ = index(replace(TIER, depth=1))
    first = said(saving(rig, KEYS[:4]), Flush)
    flushed(rig, first, 0)
    sent = rig.ask(ALLOC, Pressure(PAGE, 2, False, ahead=True))
    written = said(sent, Flush)
    assert said(sent, Freed).pages == ()
    flushed(rig, written)
    assert press(rig, 2, ahead=True) == tuple(range(3, 1, -1))


def test_what_cannot_be_written_is_no_reason_to_keep_it() -> None:
    rig, _ = index(replace(TIER, writable=False))
    saving(rig, KEYS[:4])
    assert press(rig, 2, ahead=True) == (3, 2)


def test_the_share_of_the_log_while_somebody_loads_is_larger_while_blocks_are_lost() -> None:
    rig, _ = index(replace(TIER, depth=1, batch_blocks=1))
    flush = said(saving(rig, KEYS[:1]), Flush)
    saving(rig, KEYS[1:6], 1)
    find(rig, KEYS[1:2])
    flush = said(flushed(rig, flush), Flush)
    assert flush.share_percent == GENTLE
    assert press(rig, 2) and rig.count("ssd_blocks_dropped") == 1
    flush = said(flushed(rig, flush), Flush)
    assert flush.share_percent == PRESSED
    rig.wait(PRESSED_NS)
    assert said(flushed(rig, flush), Flush).share_percent == GENTLE


def test_a_victim_that_nothing_can_replace_is_not_written_first() -> None:
    rig, _ = index()
    flush = said(saving(rig, KEYS[:2]), Flush)
    flushed(rig, flush, 0)
    sent = rig.ask(ALLOC, Pressure(PAGE, 2, False))
    assert said(sent, Freed).pages == (1, 0) and not pick(sent, Flush)


def test_the_backlog_forgets_what_is_evicted() -> None:
    rig, actor = index(None)
    save(rig, KEYS[:3])
    assert len(ssd_of(actor).writes.backlog) == 3
    press(rig, 1)
    assert len(ssd_of(actor).writes.backlog) == 2
    assert rig.count("ssd_blocks_dropped") == 1 and rig.count("ssd_write_queue_full") == 0


# who dies


def test_a_dead_flushers_leases_end_and_its_blocks_are_flushed_by_the_next() -> None:
    rig, actor = index()
    flush = said(saving(rig, KEYS[:2]), Flush)
    in_log(rig, KEYS[4:6])
    assert said(rig.tell(BOSS, Gone(FLUSHER_6)), Fenced, ALLOC) == Fenced(FLUSHER_6)
    assert ssd_of(actor).log.stored == {} and len(actor.leasing.leases) == 0
    assert said(rig.tell(FLUSHER_9, TIER), Flush, FLUSHER_9).keys == flush.keys


def test_a_new_flusher_is_heard_before_the_word_of_the_old_ones_death() -> None:
    rig, actor = index()
    said(saving(rig, KEYS[:1]), Flush)
    sent = rig.tell(FLUSHER_9, TIER)
    assert said(sent, Flush, FLUSHER_9).keys == KEYS[:1]
    assert rig.tell(FLUSHER_6, TIER) == [] and rig.tell(FLUSHER_6, Forget(NS, KEYS[:1])) == []
    assert said(rig.tell(BOSS, Gone(FLUSHER_6)), Fenced) == Fenced(FLUSHER_6)
    assert len(actor.leasing.leases.held(FLUSHER_9)) == 1


def test_a_lost_flush_is_sent_again_and_a_lost_flushed_ends_with_the_next_statement() -> None:
    rig, actor = index()
    first = said(saving(rig, KEYS[:1]), Flush)
    assert said(rig.tell(FLUSHER_6, LeasesHeld(NO_LEASE, (), NO_CLAIM, ())), Flush) == first
    assert rig.tell(FLUSHER_6, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ())) == []
    rig.tell(FLUSHER_6, LeasesHeld(LeaseId(1), (), NO_CLAIM, ()))
    assert len(ssd_of(actor).writes.backlog) == 1, "it may be in the log or not: it is sent again"
    assert said(rig.tell(FLUSHER_6, TIER), Flush).keys == KEYS[:1]


def test_a_flush_that_is_sent_again_lacks_what_was_found_corrupt() -> None:
    rig, actor = index()
    first = said(saving(rig, KEYS[:2]), Flush)
    rig.tell(SESSION_4, Corrupt((first.pages[0],)))
    assert (
        said(rig.tell(FLUSHER_6, LeasesHeld(NO_LEASE, (), NO_CLAIM, ())), Flush).keys == KEYS[1:2]
    )
    rig.tell(SESSION_4, Corrupt((first.pages[1],)))
    assert not pick(rig.tell(FLUSHER_6, LeasesHeld(NO_LEASE, (), NO_CLAIM, ())), Flush)
    assert not ssd_of(actor).writes.in_flight and len(actor.leasing.leases) == 0


def test_a_new_index_takes_the_flushers_leases_and_waits_for_its_statement() -> None:
    old, _ = index()
    save(old, KEYS[:2])
    ledger = old.host.actor.residency.ledger  # type: ignore[attr-defined]
    actor = Index(IDX, BOSS, HELLO, IndexMemory(ledger))
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, BIG)
    rig.tell(BOSS, Members((FLUSHER_6,), ()))
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    assert press(rig, 9) == (), "nothing before everybody has stated"
    rig.tell(FLUSHER_6, replace(TIER, depth=1))
    rig.tell(FLUSHER_6, Held(LeaseId(7), 1, as_pages(0)))
    assert rig.tell(FLUSHER_6, LeasesHeld(LeaseId(7), as_leases(7), NO_CLAIM, ())) == []
    assert press(rig, 9) == (1,)
    flush = Flush(
        LeaseId(7), NS, PAGE, PAGE, shards=1, keys=KEYS[:1], pages=as_pages(0), depths=(0,)
    )
    flushed(rig, flush)
    assert press(rig, 9) == (0,)


def test_nothing_is_flushed_before_the_flusher_has_stated() -> None:
    old, before = index()
    save(old, KEYS[:2])
    memory = IndexMemory(before.residency.ledger)
    rig, actor = index(None, (FLUSHER_6,), memory)
    save(rig, KEYS[4:5], 4)
    assert not rig.tell(FLUSHER_6, TIER), "1 is the number of a lease that it has"
    rig.tell(FLUSHER_6, Held(LeaseId(1), 1, as_pages(0, 1)))
    rig.tell(FLUSHER_6, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ()))
    assert said(rig.tell(FLUSHER_6, TIER), Flush).number == 2
    held = actor.leasing.leases.held(FLUSHER_6)
    assert [block.pages for lease in held for block in lease.blocks] == [(0,), (1,), (4,)]
    assert press(rig, 9) == ()


def test_a_lease_that_was_not_restated_is_lost() -> None:
    rig, _ = index(members=(FLUSHER_6,))
    save(rig, KEYS[:1])
    assert said(
        rig.tell(FLUSHER_6, LeasesHeld(LeaseId(3), as_leases(3), NO_CLAIM, ())), LeasesLost
    ) == LeasesLost(as_leases(3))
    assert press(rig, 9) == ()


def test_what_an_earlier_life_saved_and_did_not_write_is_written_once_the_log_is_known() -> None:
    old, _ = index()
    save(old, KEYS[:4])
    ledger = old.host.actor.residency.ledger  # type: ignore[attr-defined]
    rig = Rig(Index(IDX, BOSS, HELLO, IndexMemory(ledger)))
    rig.start()
    for msg in (BIG, Members((), ())):
        rig.tell(BOSS, msg)
    rig.wait(0)
    rig.tell(FLUSHER_6, TIER)
    in_log(rig, KEYS[:2])
    assert not pick(rig.wait(BEAT_NS), Flush)
    said(rig.ask(FLUSHER_6, Manifest(NO_NAMESPACE, 0, 0, (), last=True)), Noted)
    assert set(said(rig.wait(BEAT_NS), Flush).keys) == set(KEYS[2:4])


# draining


def test_write_all_is_answered_when_nothing_is_left() -> None:
    rig, _ = index(replace(TIER, batch_blocks=1, depth=1))
    assert said(rig.ask(FLUSHER_6, WriteAll(), rig.now + PATIENCE), Written) == Written(0)
    first = said(saving(rig, KEYS[:2]), Flush)
    assert not pick(rig.ask(FLUSHER_6, WriteAll(), rig.now + PATIENCE), Written)
    second = said(flushed(rig, first), Flush)
    assert said(flushed(rig, second), Written) == Written(0)


def test_in_the_end_nobody_who_loads_is_spared() -> None:
    rig, _ = index(replace(TIER, batch_blocks=1, depth=1))
    first = said(saving(rig, KEYS[:3]), Flush)
    find(rig, KEYS[:1])
    second = said(flushed(rig, first), Flush)
    rig.ask(FLUSHER_6, WriteAll(), rig.now + PATIENCE)
    assert (second.share_percent, said(flushed(rig, second), Flush).share_percent) == (GENTLE, 100)


def test_write_all_is_answered_in_time_with_what_is_left() -> None:
    rig, _ = index(replace(TIER, batch_blocks=1, depth=1))
    saving(rig, KEYS[:3])
    rig.ask(FLUSHER_6, WriteAll(), rig.now + PATIENCE)
    assert not pick(rig.wait(PATIENCE - WRITTEN_NS - 1), Written)
    assert said(rig.wait(1), Written) == Written(3)
    rig.tell(FLUSHER_6, replace(TIER, writable=False))
    assert said(rig.ask(FLUSHER_6, WriteAll(), rig.now + PATIENCE), Written).left == 3
