"""What sessions keep by their own word: nothing goes that a hazard names, whoever dies."""

from dataclasses import replace

import pytest

from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.eviction import CLEARING_NS, SEARCHES_MAX
from pegaflow.actors.index.hazards import WHY_CHARS
from pegaflow.core.pool.hazards import Hazards
from pegaflow.core.pool.ledger import LEAVING, SEALED
from pegaflow.wire.control import BEAT_NS, Beat, Gone, Members
from pegaflow.wire.identities import NO_CLAIM, NO_LEASE, Incarnation, Key
from pegaflow.wire.index import (
    Corrupt,
    HazardFile,
    HazardsNoted,
    LeasesHeld,
    Seal,
    Sealed,
    Touched,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, TEXT_CHARS_MAX, Address
from tests.actors.memory import IndexMemory, new_ledger, publish
from tests.actors.rig import (
    BOSS,
    EXTENT,
    PAGE,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    said,
)
from tests.naming import as_pages, as_stamps

from .test_index import KEYS, NS, RECORDS, ROOT, claim, find, index_in, press, save

FIRST = HazardFile("4.hazards", (1, 4))
SECOND = HazardFile("5.hazards", (1, 5))
SESSION_9 = Address(SESSION, Incarnation(9))
OK = HazardsNoted(Status.OK)
NOBODY_HOLDS = LeasesHeld(NO_LEASE, (), NO_CLAIM, ())
MAY_STAND = replace(NOBODY_HOLDS, hazards=True)


def index() -> tuple[Rig, Index, IndexMemory]:
    """An index, and what it maps."""
    memory = IndexMemory(new_ledger(WELCOME))
    return *index_in(memory), memory


def note(
    rig: Rig, memory: IndexMemory, file: HazardFile = FIRST, session: Address = SESSION_4
) -> Hazards:
    """A session's hazards, which the index knows of."""
    hazards = memory.hazards(file.path)
    assert said(rig.ask(session, file), HazardsNoted) == OK
    return hazards


def saved(keys: tuple[Key, ...] = KEYS[:4]) -> tuple[Rig, Index, IndexMemory, Hazards]:
    """An index with a chain, and the hazards of a session."""
    rig, actor, memory = index()
    save(rig, keys)
    return rig, actor, memory, note(rig, memory)


# evicting


def test_what_a_hazard_names_stays_as_it_was_and_others_go_in_its_place() -> None:
    rig, actor, memory, hazards = saved()
    before = memory.ledger.rows()[3].tolist()
    publish(hazards, memory.ledger, 3)
    assert press(rig, 2) == (2, 1)
    assert memory.ledger.rows()[3].tolist() == before, "same stamp, same body"
    assert rig.count("evictions_turned_back") == 1 and rig.count("blocks_evicted") == 2
    assert actor.residency.policy.victims(PAGE, 2)[-1].pages == (3,), "it is the youngest"


def test_a_hazard_that_has_ended_keeps_nothing() -> None:
    rig, _, memory, hazards = saved()
    rows = publish(hazards, memory.ledger, 3)
    assert press(rig, 1) == (2,)
    hazards.clear(rows)
    assert sorted(press(rig, 9)) == [0, 1, 3]


def test_victims_leave_before_the_barrier_and_are_void_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, _, memory, hazards = saved()
    publish(hazards, memory.ledger, 2)
    barrier = memory.barrier
    tags: list[list[int]] = []

    def looks() -> str:
        words = memory.ledger.rows()[:4, 0]
        tags.append([int(word) >> 32 << 32 for word in words])
        return barrier()

    monkeypatch.setattr(memory, "barrier", looks)
    assert press(rig, 2) == (3, 1)
    assert tags == [[SEALED, SEALED, LEAVING, LEAVING], [SEALED, LEAVING, SEALED, 0]]


def test_one_barrier_for_all_victims_and_none_where_nobody_has_hazards() -> None:
    rig, _, memory = index()
    save(rig, KEYS)
    assert len(press(rig, 2)) == 2 and memory.barriers == 0
    note(rig, memory)
    noted = memory.barriers
    assert len(press(rig, 4)) == 4 and memory.barriers == noted + 1


def test_every_file_is_read() -> None:
    rig, _, memory, hazards = saved()
    others = note(rig, memory, SECOND, SESSION_5)
    publish(hazards, memory.ledger, 1)
    publish(others, memory.ledger, 2)
    assert press(rig, 9) == (3, 0)


def test_a_hazard_under_another_stamp_keeps_nothing() -> None:
    rig, _, memory, hazards = saved(KEYS[:1])
    publish(hazards, memory.ledger, 0)
    rig.tell(SESSION_4, Corrupt(as_pages(0)))
    save(rig, KEYS[1:2], 1)
    publish(hazards, memory.ledger, 1, stamp=5)
    assert press(rig, 1) == (1,)


def test_all_pages_of_a_block_stay_or_none() -> None:
    rig, _, memory = index()
    hazards = note(rig, memory)
    msg = Seal(
        claim=claim(rig, KEYS[:2]).number,
        namespace=NS,
        page_size=PAGE,
        payload_bytes=PAGE,
        shards=2,
        keys=KEYS[:2],
        parents=(ROOT, KEYS[0]),
        pages=as_pages(0, 1, 2, 3),
        stamps=as_stamps(11, 12, 13, 14),
    )
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    publish(hazards, memory.ledger, 2)
    assert press(rig, 9) == (0, 1)
    assert memory.ledger.are_sealed(as_pages(2, 3)) == [True, True]


def test_however_much_is_named_the_next_search_finds_others() -> None:
    rig, actor, memory, hazards = saved(KEYS)
    publish(hazards, memory.ledger, *range(2, len(KEYS)))
    noted = memory.barriers
    assert press(rig, 1) == (1,) and memory.barriers == noted + 2
    assert [b.pages[0] for b in actor.residency.policy.victims(PAGE, 9)][0] == 0


def backwards(rig: Rig, keys: tuple[Key, ...]) -> None:
    """Save a chain whose pages fall from its head on."""
    pages = range(len(keys))[::-1]
    msg = Seal(
        claim=claim(rig, keys).number,
        namespace=NS,
        page_size=PAGE,
        payload_bytes=PAGE,
        shards=1,
        keys=keys,
        parents=(ROOT, *keys[:-1]),
        pages=as_pages(*pages),
        stamps=as_stamps(*(900 + page for page in pages)),
    )
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK


def test_what_a_hazard_has_kept_goes_from_its_tail_when_its_session_is_dead() -> None:
    rig, _, memory = index()
    hazards = note(rig, memory)
    backwards(rig, KEYS[:4])
    publish(hazards, memory.ledger, *range(4))
    assert press(rig, 4) == ()
    rig.tell(BOSS, Gone(SESSION_4))
    assert press(rig, 2) == (0, 1) and press(rig, 2) == (2, 3)


def test_so_does_what_it_has_kept_in_an_extent_that_was_to_be_emptied() -> None:
    rig, _, memory = index()
    hazards = note(rig, memory)
    backwards(rig, KEYS[:RECORDS])
    publish(hazards, memory.ledger, *range(RECORDS))
    assert press(rig, 1, EXTENT, reassign=True) == ()
    rig.tell(BOSS, Gone(SESSION_4))
    assert press(rig, 2) == (0, 1)


def test_a_tail_that_was_kept_goes_before_its_head() -> None:
    rig, _, memory, hazards = saved()
    save(rig, KEYS[4:6], 4)
    rows = publish(hazards, memory.ledger, *range(4))
    rig.tell(SESSION_4, Touched(as_pages(0, 1, 2)))
    assert press(rig, 2) == (5, 4), "the tail is older, and in use"
    hazards.clear(rows)
    assert press(rig, 2) == (3, 2)


def test_no_more_searches_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _, memory, hazards = saved(KEYS[: SEARCHES_MAX + 2])
    barrier, met = memory.barrier, []

    def comes() -> str:
        """Somebody finds what is just leaving, each time."""
        words = memory.ledger.rows()[: SEARCHES_MAX + 2, 0].tolist()
        met.append([page for page, word in enumerate(words) if word >> 32 << 32 == LEAVING])
        publish(hazards, memory.ledger, *met[-1])
        return barrier()

    with monkeypatch.context() as patched:
        patched.setattr(memory, "barrier", comes)
        assert press(rig, 1) == (), "each search has met one more of them"
    assert met == [[5], [4], [3], [2]]
    assert press(rig, 1) == (1,)


# extents


def test_an_extent_without_hazards_is_emptied_first() -> None:
    rig, _, memory, hazards = saved(KEYS[: 2 * RECORDS])
    publish(hazards, memory.ledger, RECORDS)
    memory.barrier()
    assert set(press(rig, 1, EXTENT, reassign=True)) == set(range(RECORDS))
    assert len(find(rig, KEYS[RECORDS:]).pages) == RECORDS


def test_an_extent_is_cleared_of_hazards_too() -> None:
    rig, actor, memory, hazards = saved(KEYS[: 2 * RECORDS])
    publish(hazards, memory.ledger, 1)
    rows = publish(hazards, memory.ledger, RECORDS)
    table = actor.residency.listing.table
    assert set(press(rig, 1, EXTENT, reassign=True)) == {5, 6, 7}
    assert table.clearing == 1
    assert press(rig, 1, EXTENT, reassign=True) == ()
    hazards.clear(rows)
    assert press(rig, 1, EXTENT, reassign=True) == (RECORDS,)
    assert table.clearing is None and actor.eviction.clearing is None


def test_an_extent_is_open_again_when_nobody_wants_it() -> None:
    rig, actor, memory, hazards = saved(KEYS[:RECORDS])
    publish(hazards, memory.ledger, 0)
    press(rig, 1, EXTENT, reassign=True)
    assert actor.residency.listing.table.clearing == 0
    rig.wait(CLEARING_NS + 2 * BEAT_NS)
    assert actor.residency.listing.table.clearing is None


# files


def test_a_file_is_read_until_its_session_is_dead() -> None:
    rig, actor, memory, hazards = saved(KEYS[:2])
    publish(hazards, memory.ledger, 1)
    rig.tell(SESSION_4, NOBODY_HOLDS)
    rig.wait(100 * BEAT_NS)
    assert press(rig, 2) == (0,)
    assert actor.gauges()["hazard_files"] == 1
    rig.tell(BOSS, Gone(SESSION_4))
    assert press(rig, 2) == (1,) and actor.gauges()["hazard_files"] == 0


def test_the_next_life_of_a_session_has_no_file_of_the_dead() -> None:
    rig, actor, memory, hazards = saved(KEYS[:2])
    publish(hazards, memory.ledger, 1)
    rig.tell(BOSS, Gone(SESSION_4))
    assert not actor.hazards.noted(SESSION_9)
    theirs = note(rig, memory, replace(FIRST, path="9.hazards", file=(1, 9)), SESSION_9)
    publish(theirs, memory.ledger, 0)
    assert press(rig, 2) == (1,), "what the dead has named is nobody's"


def test_a_file_is_noted_once_and_no_other_in_its_place() -> None:
    rig, actor, memory, hazards = saved(KEYS[:1])
    publish(hazards, memory.ledger, 0)
    assert said(rig.ask(SESSION_4, FIRST), HazardsNoted) == OK, "the answer was lost"
    memory.hazards("another")
    other = said(rig.ask(SESSION_4, replace(SECOND, path="another")), HazardsNoted)
    assert other.status is Status.BAD_REQUEST and other.note
    assert press(rig, 1) == (), "what it has written in the first one stands"
    assert actor.gauges()["hazard_files"] == 1


def test_a_file_that_cannot_be_read_is_refused_with_the_reason() -> None:
    rig, actor, _ = index()
    told = said(rig.ask(SESSION_4, FIRST), HazardsNoted)
    assert told == HazardsNoted(Status.GONE, "cannot open 4.hazards")
    long = said(rig.ask(SESSION_4, replace(FIRST, path="a" * TEXT_CHARS_MAX)), HazardsNoted)
    assert long.status is Status.GONE and len(long.note) == WHY_CHARS
    assert rig.count("hazard_files_refused") == 2 and actor.gauges()["hazard_files"] == 0


def test_without_a_barrier_no_hazard_is_honoured_and_that_is_said_once() -> None:
    rig, actor, memory = index()
    memory.hazards(FIRST.path)
    memory.hazards(SECOND.path)
    memory.refused = "membarrier: Operation not permitted"
    for session, file in ((SESSION_4, FIRST), (SESSION_5, SECOND)):
        told = said(rig.ask(session, file), HazardsNoted)
        assert told == HazardsNoted(Status.NOT_READY, memory.refused)
    rig.wait(3 * BEAT_NS)
    assert [n.event for n in rig.notes] == ["hazards_refused"]
    assert memory.refused in actor.remarks()[0]
    assert actor.gauges()["hazard_files"] == 0
    save(rig, KEYS[:1])
    assert press(rig, 1) == (0,), "and nobody needs one"


def test_nothing_goes_that_a_hazard_may_name_unseen() -> None:
    rig, actor, memory, hazards = saved()
    memory.refused = "membarrier: Function not implemented"
    assert press(rig, 4) == () and len(find(rig, KEYS[:4]).pages) == 4
    assert said(rig.wait(BEAT_NS), Beat).remarks == actor.remarks() != ()


# the next index


def heir(memory: IndexMemory, *living: Address) -> tuple[Rig, Index]:
    """The next index on this memory, which knows the pool."""
    return index_in(memory, Members(living, ()), Address("index", Incarnation(90)))


def test_a_new_index_evicts_nothing_before_it_knows_every_file() -> None:
    _, _, memory, hazards = saved()
    publish(hazards, memory.ledger, 3)
    rig, _ = heir(memory, SESSION_4, SESSION_5)
    note(rig, memory, SECOND, SESSION_5)
    rig.tell(SESSION_5, MAY_STAND)
    rig.tell(SESSION_4, MAY_STAND)
    assert press(rig, 9) == (), "its HazardFile was lost"
    assert rig.count("hazards_unknown") == 1
    assert said(rig.ask(SESSION_4, FIRST), HazardsNoted) == OK
    assert press(rig, 9) == (), "and it has not stated its leases"
    rig.tell(SESSION_4, MAY_STAND)
    assert press(rig, 9) == (2, 1, 0)


def test_a_session_whose_file_cannot_be_read_is_waited_for_until_none_may_stand() -> None:
    _, _, memory, hazards = saved()
    publish(hazards, memory.ledger, 3)
    del memory.files[FIRST.path]
    rig, _ = heir(memory, SESSION_4)
    assert said(rig.ask(SESSION_4, FIRST), HazardsNoted).status is Status.GONE
    rig.tell(SESSION_4, MAY_STAND)
    assert press(rig, 9) == ()
    rig.tell(SESSION_4, NOBODY_HOLDS)
    assert len(press(rig, 9)) == 4


def test_the_hazards_of_the_dead_are_not_waited_for() -> None:
    _, _, memory, hazards = saved()
    publish(hazards, memory.ledger, 3)
    rig, _ = heir(memory, SESSION_4)
    rig.tell(SESSION_4, MAY_STAND)
    rig.tell(BOSS, Gone(SESSION_4))
    assert len(press(rig, 9)) == 4


@pytest.mark.parametrize("at", ["barrier", "void"])
def test_an_index_that_dies_while_blocks_leave_loses_none(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, memory, hazards = saved()
    publish(hazards, memory.ledger, 3)

    def dies(*_: object) -> str:
        raise InterruptedError

    with monkeypatch.context() as now:
        now.setattr(memory if at == "barrier" else memory.ledger, at, dies)
        with pytest.raises(InterruptedError):
            press(old, 3)
    assert memory.ledger.are_sealed(as_pages(*range(4))).count(True) < 4
    rig, _ = heir(memory, SESSION_4)
    assert find(rig, KEYS[:4], SESSION_5).pages == (0, 1, 2, 3)
    assert rig.count("records_voided") == 0
