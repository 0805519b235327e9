"""The leases of an engine: those that nobody loads from end, and who wants too many is named."""

from pegaflow.wire import index as to_index
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.identities import LeaseId
from pegaflow.wire.index import Find, Held, Pinned
from pegaflow.wire.session import LEASE_IDLE_NS, Copied, Found, Load, Lookup
from tests.actors.rig import CLIENT_7, IDX, PAGE, Rig, one, pick, said
from tests.actors.sessions import KEYS, attached
from tests.naming import as_pages

HALF = 4 * PAGE  # of a pool of eight pages


def grant(rig: Rig, number: int, pages: tuple[int, ...], keys: int = 8) -> Found:
    question = one(rig.ask(CLIENT_7, Lookup(KEYS[:keys])), Find)
    return said(rig.answer(question, Held(LeaseId(number), 1, as_pages(*pages))), Found)


def test_asking_again_renews_no_idle_lease() -> None:
    rig, actor, _ = attached()
    turn = LEASE_IDLE_NS // 10
    released: list[int] = []
    for number in range(1, 11):
        grant(rig, number, (3, 4))
        grant(rig, 100 + number, (7,))
        released += _releases(rig, turn)
    assert not released
    released += _releases(rig, 3 * BEAT_NS)
    assert sorted(released) == [*range(1, 11), *range(101, 111)], "all of them, the newest too"
    assert not actor.leases.held and not actor.leases.runs


def test_loading_renews_the_leases_beside_it_and_not_for_ever() -> None:
    rig, actor, _ = attached()
    grant(rig, 1, (3, 4))
    rig.wait(LEASE_IDLE_NS - 2 * BEAT_NS)
    grant(rig, 2, (3, 4, 5))
    rig.ask(CLIENT_7, Load(LeaseId(2), 0, 0, 3))
    copy = next(iter(actor.loads.copies))
    rig.ask(CLIENT_7, Copied(copy, True))
    grant(rig, 3, (3,))
    assert _releases(rig, 4 * BEAT_NS) == [1]
    assert list(actor.leases.held.numbers()) == [3], "somebody loads what it begins with"


def _releases(rig: Rig, nanoseconds: int) -> list[int]:
    """Numbers of the leases that are given back meanwhile."""
    sent = (envelope.message for envelope in pick(rig.wait(nanoseconds), to_index.Release))
    return [msg.number for msg in sent if isinstance(msg, to_index.Release)]


def test_an_engine_that_wants_more_than_it_may_is_named_once() -> None:
    rig, actor, _ = attached()
    rig.notes.clear()
    rig.tell(IDX, Pinned(HALF, HALF, 0))
    assert not rig.notes and actor.remarks() == ()
    for cut in (1, 5, 9):
        rig.tell(IDX, Pinned(HALF, HALF, cut))
    (note,) = rig.notes
    assert note.event == "engine_pins_too_much" and ("engine", "engine") in note.facts
    (remark,) = actor.remarks()
    assert remark.startswith("engine engine holds ") and "--max-pinned" in remark
    assert actor.gauges()["session_greedy"] == 1
    assert actor.gauges()["session_pinned_bytes"] == HALF
    rig.tell(IDX, Pinned(HALF - PAGE, HALF, 9))
    assert actor.remarks(), "it holds much, still"
    rig.tell(IDX, Pinned(PAGE, HALF, 9))
    assert actor.remarks() == () and len(rig.notes) == 1
    rig.tell(IDX, Pinned(HALF, HALF, 10))
    assert len(rig.notes) == 2, "again"


def test_a_new_index_counts_from_nothing() -> None:
    rig, actor, _ = attached()
    rig.tell(IDX, Pinned(HALF, HALF, 9))
    rig.tell(IDX, Pinned(PAGE, HALF, 0))
    assert not actor.pins.greedy
    rig.tell(IDX, Pinned(HALF, HALF, 2))
    assert actor.pins.greedy
