"""How lookups wait for what is in the log only."""

from dataclasses import replace

from pegaflow.actors.index.lookup import ANSWER_NS
from pegaflow.wire.control import Gone
from pegaflow.wire.flusher import FETCH_NS, Fetch, Fetched, Flush, Forget
from pegaflow.wire.identities import ClaimId, LeaseId
from pegaflow.wire.index import Find, Held, Sealed
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, IDX, SESSION_4, SESSION_5, pick, said
from tests.actors.tier import (
    FLUSHER_6,
    PATIENCE,
    TIER,
    fetched_seal,
    in_log,
    index,
    look_up,
    saving,
    ssd_of,
)
from tests.naming import as_pages

from .test_index import KEYS, NS, ROOT, find, press, save


def test_a_lookup_waits_for_what_is_in_the_log() -> None:
    rig, actor = index()
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:3])
    sent = look_up(rig, KEYS[:5])
    fetch = said(sent, Fetch, FLUSHER_6)
    assert (fetch.keys, fetch.parents) == (KEYS[1:3], KEYS[:2])
    assert not pick(sent, Held) and fetch.engine == SESSION_4.incarnation
    assert not pick(rig.ask(FLUSHER_6, fetched_seal(fetch, 1, slice(0, 1))), Held)
    sent = rig.ask(FLUSHER_6, fetched_seal(fetch, 2, slice(1, 2)))
    assert said(sent, Held, SESSION_4) == Held(LeaseId(1), 1, as_pages(0, 1, 2), (), disk=(1, 2))
    assert said(sent, Sealed, FLUSHER_6).positions == (0,)
    counts = ("blocks_hit", "blocks_hit_ssd", "blocks_fetched", "blocks_sealed")
    assert [rig.count(name) for name in counts] == [3, 2, 2, 1]
    block = actor.residency.blocks.get(NS, KEYS[2])
    assert block is not None and (block.depth, block.parent) == (2, KEYS[1])


def test_the_first_block_of_a_chain_has_no_parent() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:2])
    assert said(look_up(rig, KEYS[:2]), Fetch).parents == (ROOT, KEYS[0])


def test_a_key_that_comes_twice_ends_the_run() -> None:
    """No chain has one; found by the fuzzer, which brought the index down with it."""
    rig, _ = index()
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:3])
    fetch = said(look_up(rig, (KEYS[0], KEYS[1], KEYS[0], KEYS[1], KEYS[2])), Fetch)
    assert fetch.keys == KEYS[1:2]
    held = said(rig.ask(FLUSHER_6, fetched_seal(fetch, 1)), Held)
    assert held.pages == (0, 1, 0)


def test_memory_and_log_may_alternate() -> None:
    rig, _ = index()
    in_log(rig, (KEYS[0], KEYS[2]))
    save(rig, KEYS[1:2], 1)
    save(rig, KEYS[3:4], 3)
    fetch = said(look_up(rig, KEYS[:5]), Fetch)
    assert fetch.keys == (KEYS[0], KEYS[2])
    assert press(rig, 9) == (), "what is in memory is held meanwhile"
    rig.ask(FLUSHER_6, fetched_seal(fetch, 4, slice(1, 2)))
    held = said(rig.ask(FLUSHER_6, fetched_seal(fetch, 5, slice(0, 1))), Held)
    assert held.pages == (5, 1, 4, 3)


def test_two_lookups_of_one_block_are_one_read() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:2])
    fetch = said(look_up(rig, KEYS[:1]), Fetch)
    second = said(look_up(rig, KEYS[:2], SESSION_5), Fetch)
    assert second.keys == KEYS[1:2]
    assert said(rig.ask(FLUSHER_6, fetched_seal(fetch, 0)), Held, SESSION_4).pages == (0,)
    assert said(rig.ask(FLUSHER_6, fetched_seal(second, 1)), Held, SESSION_5).pages == (0, 1)


def test_a_block_that_is_not_to_be_had_ends_the_run_before_it() -> None:
    rig, actor = index()
    in_log(rig, KEYS[:4])
    sent = look_up(rig, KEYS[:4])
    fetch = said(sent, Fetch)
    question = pick(sent, Fetch)[0]
    rig.ask(FLUSHER_6, fetched_seal(fetch, 0, slice(0, 1)))
    sent = rig.answer(question, Fetched(Status.OK, (1, 2, 3), (1,)))
    assert said(sent, Held) == Held(LeaseId(1), 1, as_pages(0), (), disk=(0,))
    assert (
        ssd_of(actor).log.stored == {NS: {KEYS[0], KEYS[2], KEYS[3]}} and not actor.lookup.awaited
    )


def test_a_lookup_is_answered_before_its_deadline_with_what_is_there() -> None:
    rig, actor = index()
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:3])
    fetch = said(look_up(rig, KEYS[:3]), Fetch)
    rig.ask(FLUSHER_6, fetched_seal(fetch, 1, slice(0, 1)))
    assert not pick(rig.wait(PATIENCE - ANSWER_NS[1] - 1), Held)
    assert said(rig.wait(1), Held).pages == (0, 1)
    assert not actor.leasing.leases.held(IDX) and rig.count("ssd_waits_cut") == 1
    rig.ask(FLUSHER_6, fetched_seal(fetch, 2, slice(1, 2)))
    assert find(rig, KEYS[:3]).pages == (0, 1, 2), "what comes later is simply there"


def test_a_lookup_without_patience_is_answered_at_once() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:1])
    assert said(look_up(rig, KEYS[:1], patience=2 * ANSWER_NS[0]), Held).number == 0
    assert said(rig.ask(SESSION_4, Find(NS, KEYS[:1])), Held).number == 0


def test_a_fetch_without_an_answer_is_over_some_day() -> None:
    rig, actor = index()
    in_log(rig, KEYS[:1])
    sent = look_up(rig, KEYS[:1], patience=2 * FETCH_NS)
    fetch = said(sent, Fetch)
    assert said(rig.wait(FETCH_NS), Held).number == 0
    assert not actor.lookup.awaited
    late = said(rig.ask(FLUSHER_6, fetched_seal(fetch, 0)), Sealed)
    assert late == Sealed(Status.STALE_CLAIM, ())


def test_a_block_that_somebody_saves_meanwhile_has_come() -> None:
    rig, actor = index()
    in_log(rig, KEYS[:1])
    fetch = said(look_up(rig, KEYS[:1], SESSION_5), Fetch)
    sent = saving(rig, KEYS[:1], 3)
    assert said(sent, Held, SESSION_5).pages == (3,) and not pick(sent, Flush)
    refused = said(rig.ask(FLUSHER_6, fetched_seal(fetch, 0)), Sealed)
    assert refused.positions == () and len(actor.residency.blocks) == 1


def test_a_seal_of_the_flusher_is_accepted_again_and_others_are_refused() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:2])
    fetch = said(look_up(rig, KEYS[:1]), Fetch)
    assert (
        said(
            rig.ask(FLUSHER_6, fetched_seal(replace(fetch, number=ClaimId(9)), 0)), Sealed
        ).positions
        == ()
    )
    strange = replace(fetch, keys=KEYS[1:2])
    assert said(rig.ask(FLUSHER_6, fetched_seal(strange, 0)), Sealed).positions == ()
    for _ in range(2):
        assert said(rig.ask(FLUSHER_6, fetched_seal(fetch, 0)), Sealed).positions == (0,)
    bad = fetched_seal(fetch, 1, depths=())
    assert (
        said(rig.ask(FLUSHER_6, replace(bad, depths=(1, 2))), Sealed).status is Status.BAD_REQUEST
    )


def test_a_dead_flusher_ends_all_waits_with_what_is_there() -> None:
    rig, actor = index()
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:3])
    look_up(rig, KEYS[:3])
    assert said(rig.tell(BOSS, Gone(FLUSHER_6)), Held) == Held(LeaseId(1), 1, as_pages(0))
    assert said(look_up(rig, KEYS[:3]), Held).pages == (0,)
    assert not actor.lookup.waits and not actor.lookup.awaited


def test_a_dead_session_waits_no_more() -> None:
    rig, actor = index()
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:2])
    fetch = said(look_up(rig, KEYS[:2]), Fetch)
    rig.tell(BOSS, Gone(SESSION_4))
    assert not actor.lookup.waits and len(actor.leasing.leases.held(IDX)) == 0
    sent = rig.ask(FLUSHER_6, fetched_seal(fetch, 1))
    assert said(sent, Sealed).positions == (0,) and not pick(sent, Held)


def test_one_engine_awaits_so_many_blocks_and_no_more() -> None:
    rig, _ = index(replace(TIER, prefetch=2))
    in_log(rig, KEYS[:6])
    fetch = said(look_up(rig, KEYS[:6]), Fetch)
    assert fetch.keys == KEYS[:2] and rig.count("ssd_prefetch_backpressure_blocks") == 4
    assert said(look_up(rig, KEYS[4:6]), Held).number == 0
    assert said(look_up(rig, KEYS[4:6], SESSION_5), Fetch).keys == KEYS[4:6]
    held = said(rig.ask(FLUSHER_6, fetched_seal(fetch, 0)), Held, SESSION_4)
    assert held.pages == (0, 1)
    assert said(look_up(rig, KEYS[2:4]), Fetch).keys == KEYS[2:4]


def test_a_tier_that_cannot_be_read_is_not_waited_for() -> None:
    rig, _ = index(replace(TIER, prefetch=0))
    in_log(rig, KEYS[:2])
    assert said(look_up(rig, KEYS[:2]), Held).number == 0
    assert rig.count("ssd_prefetch_backpressure_blocks") == 0


def test_forgotten_blocks_are_not_waited_for() -> None:
    rig, actor = index()
    in_log(rig, KEYS[:2])
    rig.tell(FLUSHER_6, Forget(NS, KEYS[1:2]))
    assert said(look_up(rig, KEYS[:2]), Fetch).keys == KEYS[:1]
    rig.tell(FLUSHER_6, Forget(NS, KEYS[:1]))
    assert ssd_of(actor).log.stored == {} == ssd_of(actor).log.spaces
