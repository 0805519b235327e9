"""What an engine keeps by hazards: how much it may, for how long, and what was used."""

from dataclasses import replace

from pegaflow.actors.runtime.contract import Send
from pegaflow.actors.session.leases import LASTING_NS
from pegaflow.actors.session.touches import TOUCHED_BATCH, TOUCHED_MAX, Touches
from pegaflow.core.pool.columns import signed
from pegaflow.core.pool.table import TierWord
from pegaflow.wire import index as to_index
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.identities import Incarnation, Key, LeaseId
from pegaflow.wire.index import Find, Held, Pinned
from pegaflow.wire.session import Found, Load, Lookup, Release
from tests.actors.rig import BOSS, CLIENT_7, IDX, PAGE, WELCOME, Rig, one, pick, said
from tests.actors.sessions import KEYS, reading
from tests.actors.shared import Shared
from tests.naming import as_pages

FOUR = replace(WELCOME, max_pinned_bytes=4 * PAGE)


def look(rig: Rig, first: int, last: int) -> Found:
    return said(rig.ask(CLIENT_7, Lookup(KEYS[first:last])), Found)


def test_a_lookup_ends_early_at_what_the_engine_may_keep() -> None:
    shared = Shared()
    rig, actor = reading(shared, 8, FOUR)
    rig.notes.clear()
    assert look(rig, 0, 3).blocks == 3 and not rig.notes
    found = look(rig, 1, 8)
    assert found.blocks == 3, "two that are kept already, and one more"
    assert shared.named == [0, 1, 1, 2, 2, 3] and actor.counts["blocks_unpinned"] == 4
    assert look(rig, 0, 4).blocks == 4 and look(rig, 4, 5).blocks == 0
    (note,) = rig.notes
    assert note.event == "engine_pins_too_much" and ("engine", "engine") in note.facts
    (remark,) = actor.remarks()
    assert remark.startswith("engine engine holds ") and "--max-pinned" in remark
    counts = actor.counts
    assert (counts["blocks_asked_local"], counts["blocks_hit_local"]) == (15, 10)
    for number in list(actor.leases.own):
        rig.tell(CLIENT_7, Release(number))
    rig.wait(BEAT_NS)
    assert actor.remarks() == () and actor.gauges()["session_pinned_bytes"] == 0
    assert look(rig, 0, 8).blocks == 4


def test_what_the_index_has_leased_counts_too() -> None:
    shared = Shared()
    rig, actor = reading(shared, 8, FOUR)
    shared.table.set_tiers(TierWord.ASK)
    find = one(rig.ask(CLIENT_7, Lookup((*KEYS, Key(bytes(32))))), Find)
    rig.answer(find, Held(LeaseId(1), 1, as_pages(0, 1, 2)))
    rig.tell(IDX, Pinned(3 * PAGE, 4 * PAGE, 0))
    assert look(rig, 0, 8).blocks == 1
    assert actor.gauges()["session_pinned_bytes"] == 4 * PAGE
    assert not actor.counts["lookups_by_message"] - 1, "the index is not asked for more either"


def test_a_key_named_twice_is_kept_once() -> None:
    shared = Shared()
    rig, actor = reading(shared, 2)
    twice = said(rig.ask(CLIENT_7, Lookup((KEYS[0], KEYS[0]))), Found)
    once = look(rig, 0, 1)
    assert actor.gauges()["session_pinned_bytes"] == PAGE
    for found in (twice, once):
        rig.tell(CLIENT_7, Release(found.lease))
    assert actor.gauges()["session_pinned_bytes"] == 0 and shared.named == []


def test_an_engine_that_keeps_much_for_long_is_shown() -> None:
    shared = Shared()
    rig, actor = reading(shared, 8)
    little = look(rig, 0, 4)
    rig.ask(CLIENT_7, Load(little.lease, 0, 0, 4))
    rig.wait(LASTING_NS + 2 * BEAT_NS)
    (remark,) = actor.remarks()
    assert remark.startswith("engine engine has kept 0 MiB of the pool from eviction for 3")
    look(rig, 4, 8)
    rig.tell(CLIENT_7, Release(little.lease))
    assert shared.named == list(range(8)), "its copy runs"
    rig.wait(3600 * 1_000_000_000)
    (remark,) = actor.remarks()
    assert remark.split(" for ")[1].startswith("363"), "and is not ended by time"


def test_a_short_lease_is_nothing_to_talk_about() -> None:
    rig, actor = reading(Shared(), 8)
    look(rig, 0, 8)
    rig.wait(LASTING_NS - BEAT_NS)
    assert actor.remarks() == ()


def test_what_was_used_is_told_in_batches_and_lost_without_harm() -> None:
    shared = Shared()
    rig, _ = reading(shared, 4)
    for _ in range(2):
        rig.tell(CLIENT_7, Release(look(rig, 0, 2).lease))
    rig.tell(CLIENT_7, Release(look(rig, 2, 4).lease))
    assert said(rig.wait(BEAT_NS), to_index.Touched, IDX).pages == (2, 3, 0, 1, 0, 1)
    assert not pick(rig.wait(BEAT_NS), to_index.Touched), "once, whoever has heard it"
    assert look(rig, 0, 4).blocks == 4


def test_what_was_used_while_there_was_no_index_is_told_to_the_next() -> None:
    rig, _ = reading(Shared(), 4)
    rig.tell(BOSS, Gone(IDX))
    rig.tell(CLIENT_7, Release(look(rig, 0, 2).lease))
    assert not pick(rig.wait(2 * BEAT_NS), to_index.Touched)
    rig.tell(BOSS, Neighbour(IDX._replace(incarnation=Incarnation(30)), "ipc://n", 3))
    assert said(rig.wait(BEAT_NS), to_index.Touched).pages == (0, 1)


def test_many_blocks_are_told_at_once_and_too_many_are_forgotten() -> None:
    rig, actor = reading(Shared())
    touches = next(part for part in actor.parts if isinstance(part, Touches))
    assert touches.add(signed((7, 8))) == []
    sent = touches.add(signed(range(TOUCHED_BATCH - 1)))
    told = [e.message for e in sent if isinstance(e, Send)]
    older, younger = [msg.pages for msg in told if isinstance(msg, to_index.Touched)]
    assert older == (8,), "the tail of a use is told of before its head, which is the youngest"
    assert younger == (*range(TOUCHED_BATCH - 1), 7)
    rig.tell(BOSS, Gone(IDX))
    touches.add(signed(range(TOUCHED_MAX + 5)))
    assert actor.counts["touches_forgotten"] == 5
    rig.tell(BOSS, Neighbour(IDX._replace(incarnation=Incarnation(30)), "ipc://n", 3))
    late = [e.message for e in rig.wait(BEAT_NS)]
    firsts = [msg.pages[0] for msg in late if isinstance(msg, to_index.Touched)]
    assert firsts == list(range(TOUCHED_MAX - TOUCHED_BATCH, -1, -TOUCHED_BATCH))
