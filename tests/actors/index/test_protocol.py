"""What every tier keeps to: the tier protocol (actors/index/tiers.py), for each in the list."""

import importlib
from collections.abc import Callable

import pytest

from pegaflow.actors.index.actor import TIERS, Index
from pegaflow.actors.index.tiers import Pool, Tier
from pegaflow.wire.control import Drain, Gone
from pegaflow.wire.identities import NO_CLAIM, NO_LEASE, Key, LeaseId
from pegaflow.wire.index import Held, LeasesHeld, Sealed
from pegaflow.wire.status import Status
from tests.actors.index.sides import Asked, Side
from tests.actors.index.test_index import KEYS, NS, find, press, save
from tests.actors.memory import IndexMemory
from tests.actors.rig import BOSS, SESSION_4, Rig, said
from tests.actors.tier import index, look_up, saving
from tests.naming import as_leases, as_pages

Entry = Callable[[Pool], Tier]


def name_of(entry: Entry) -> str:
    """Of the folder that the tier has among the index's and among their tests."""
    return entry.__module__.split(".")[-2]


@pytest.fixture(params=TIERS, ids=name_of)
def side(request: pytest.FixtureRequest) -> Side:
    module = importlib.import_module(f"tests.actors.index.{name_of(request.param)}.side")
    found: Side = module.SIDE
    return found


def begun(side: Side) -> tuple[Rig, Index, Tier]:
    """An index, and its tier, of which nothing is there yet."""
    rig, actor = index(None, (side.process,))
    rig.tell(side.process, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    side.begin(rig)
    tier = actor.tiers.served_by(side.process.name)
    assert tier is not None
    return rig, actor, tier


def wanted(side: Side, rig: Rig, keys: tuple[Key, ...]) -> Asked:
    """A lookup of these keys waits; what the tier's process is asked for."""
    sent = look_up(rig, keys)
    asked = side.asked(sent)
    assert asked is not None and not [e for e in sent if isinstance(e.message, Held)]
    return asked


def is_over(actor: Index) -> bool:
    """Whether nobody waits for anything."""
    return not actor.lookup.waits and not actor.lookup.awaited


def test_of_what_is_nowhere_nothing_is_fetched(side: Side) -> None:
    rig, _, tier = begun(side)
    assert not tier.goes_on() and not tier.has(NS, KEYS[0])
    sent = look_up(rig, KEYS[:1])
    assert side.asked(sent) is None and said(sent, Held).number == 0


def test_what_it_has_is_fetched_held_and_counted(side: Side) -> None:
    rig, actor, tier = begun(side)
    save(rig, KEYS[:1])
    side.store(rig, KEYS[1:3])
    assert tier.goes_on() and tier.has(NS, KEYS[1]) and not tier.has(NS, KEYS[5])
    assert tier.space(NS) is not None and tier.most_awaited() > 0
    asked = wanted(side, rig, KEYS[:3])
    assert asked.keys == KEYS[1:3]
    sent = rig.tell(side.process, side.seal(asked, KEYS[1:3], 4))
    assert said(sent, Held, SESSION_4).pages == (0, 4, 5)
    side.end(rig, asked)
    assert is_over(actor) and find(rig, KEYS[:3]).pages == (0, 4, 5)
    assert rig.count(f"blocks_hit_{tier.name}") == rig.count("blocks_fetched") == 2


def test_what_it_does_not_bring_ends_the_run_once(side: Side) -> None:
    rig, actor, tier = begun(side)
    side.store(rig, KEYS[:2])
    asked = wanted(side, rig, KEYS[:2])
    rig.tell(side.process, side.seal(asked, KEYS[:1], 4))
    assert said(side.end(rig, asked), Held, SESSION_4).pages == (4,)
    assert is_over(actor) and rig.count(f"blocks_hit_{tier.name}") == 1


def test_its_process_publishes_what_it_was_asked_for_and_nothing_else(side: Side) -> None:
    rig, _, _ = begun(side)
    side.store(rig, KEYS[:1])
    asked = wanted(side, rig, KEYS[:1])
    stray = rig.ask(side.process, side.seal(asked, KEYS[3:4], 4))
    assert said(stray, Sealed) == Sealed(Status.STALE_CLAIM, ())
    assert said(rig.ask(side.process, side.seal(asked, KEYS[:1], 4)), Sealed).positions == (0,)


def test_its_death_ends_what_is_waited_for(side: Side) -> None:
    rig, actor, tier = begun(side)
    save(rig, KEYS[:1])
    side.store(rig, KEYS[1:2])
    wanted(side, rig, KEYS[:2])
    assert said(rig.tell(BOSS, Gone(side.process)), Held, SESSION_4).pages == (0,)
    assert is_over(actor)


def test_what_it_has_taken_is_evicted_and_comes_back(side: Side) -> None:
    rig, actor, tier = begun(side)
    taken = side.take(rig, saving(rig, KEYS[:2]))
    assert len(actor.leasing.leases) == 0 and sorted(press(rig, 2)) == [0, 1]
    assert [key for key in KEYS if tier.has(NS, key)] == list(taken)
    if taken:
        asked = wanted(side, rig, taken)
        rig.tell(side.process, side.seal(asked, taken, 4))
        assert find(rig, taken).pages == tuple(range(4, 4 + len(taken)))


def test_it_states_the_leases_that_an_earlier_index_has_granted_it(side: Side) -> None:
    earlier, before = index(None)
    save(earlier, KEYS[:1])
    memory = IndexMemory(before.residency.ledger)
    rig, actor = index(None, (side.process,), memory)
    rig.tell(side.process, Held(LeaseId(7), 1, as_pages(0)))
    rig.tell(side.process, LeasesHeld(LeaseId(7), as_leases(7), NO_CLAIM, ()))
    (lease,) = actor.leasing.leases.held(side.process)
    assert lease.number == 7 and press(rig, 1) == ()
    rig.tell(BOSS, Gone(side.process))
    assert press(rig, 1) == (0,)


def test_it_ends_with_the_index(side: Side) -> None:
    rig, _, _ = begun(side)
    saving(rig, KEYS[:2])
    rig.tell(BOSS, Drain())
    assert rig.stop == ""
