"""What actors count for histograms and under labels, and that nothing is named after a life."""

from dataclasses import replace

from pegaflow.actors.session.publish import INDEX_NS
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.series import (
    LOAD,
    RESIDENCE,
    RPC,
    SSD_PREFETCH_RATE,
    SSD_WRITE_RATE,
    Buckets,
    Histogram,
    labels_of,
)
from pegaflow.wire.allocator import Reserve
from pegaflow.wire.control import Beat, Serve, Serving
from pegaflow.wire.diskjobs import MakeSegment, ReadRun, SyncSegment, WriteGroup
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import FETCH_NS, Fetch
from pegaflow.wire.identities import NO_KEY, ClaimId, Key, LeaseId
from pegaflow.wire.index import Claim, Claimed, Corrupt, Find, Held, Seal, Sealed
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.session import ORDER_NS, Copied, Drop, Keep, Load, Lookup, Ping, Save, Skip
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION
from tests.actors.disks import PLAN, Disks, broken, fetch, flush
from tests.actors.flusher.test_reading import asks, granted, reader
from tests.actors.group import OPEN, Group
from tests.actors.index import test_index
from tests.actors.rig import CLIENT_7, IDX, MS, PAGE, SESSION_4, Rig, one, pick
from tests.actors.session import test_ranks, test_saves
from tests.actors.sessions import KEYS, attached
from tests.actors.tier import in_log, index, look_up
from tests.naming import as_pages

S = 1000 * MS


def counted(rig: Rig, histogram: Histogram) -> dict[tuple[str, ...], Buckets]:
    return histogram.read(rig.host.actor.counts)


def calls(rig: Rig) -> dict[tuple[str, ...], int]:
    return {labels: buckets.count for labels, buckets in counted(rig, RPC).items()}


def dropped(rig: Rig) -> dict[str, int]:
    found = labels_of("save_blocks_dropped", rig.host.actor.counts)
    return {reason: blocks for (reason,), blocks in found}


# questions


def test_a_clients_question_is_timed_until_its_answer() -> None:
    rig, _, _ = attached()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Find)
    rig.wait(7 * MS)
    rig.answer(find, Held(LeaseId(1), 1, as_pages(0, 1, 4)))
    found = counted(rig, RPC)["lookup", "ok"]
    assert (found.count, found.total) == (1, 0.007)
    assert dict(found.cumulative)["0.005"] == 0 and dict(found.cumulative)["0.01"] == 1
    rig.ask(CLIENT_7, Load(LeaseId(1), 0, 0, 3))
    rig.wait(3 * MS)
    rig.ask(CLIENT_7, Copied(1, True))
    assert counted(rig, LOAD)[()].total == 0.003
    rig.ask(CLIENT_7, Load(LeaseId(1), 0, 0, 3))
    assert calls(rig) == {
        ("attach", "ok"): 1,
        ("lookup", "ok"): 1,
        ("load", "ok"): 1,
        ("copied", "ok"): 1,
        ("load", "no_such_lease"): 1,
    }


def test_only_questions_and_only_those_of_clients_are_timed() -> None:
    rig, _, _ = attached()
    before = calls(rig)
    rig.tell(CLIENT_7, Ping())
    rig.tell(CLIENT_7, Drop(9))
    assert calls(rig) == before
    held, _ = test_index.index()
    test_index.save(held, KEYS[:2])
    assert calls(held) == {}


def test_the_front_desk_is_timed_too() -> None:
    group = Group()
    sent = group.open()
    group.wait(20 * MS)
    group.answer(one(sent, Serve), Serving())
    found = counted(group, RPC)["open_session", "ok"]
    assert (found.count, found.total) == (1, 0.02)


# saves


def test_dropped_blocks_are_counted_by_reason() -> None:
    rig, _ = test_saves.with_pages()
    take = test_saves.begin(rig, 1, KEYS[:3])
    rig.tell(CLIENT_7, Drop(1))
    assert dropped(rig) == {"dropped": 3}
    take = test_saves.begin(rig, 2, KEYS[:3])
    rig.tell(CLIENT_7, Keep(take.save, take.batch))
    rig.done(FillPages, Status.COPY_FAILED)
    assert dropped(rig) == {"dropped": 3, "copy_failed": 3}
    seal = test_saves.fill(rig, test_saves.begin(rig, 3, KEYS[:3]))
    rig.answer(seal, Sealed(Status.OK, (0,)))
    rig.ask(CLIENT_7, Save(4, 0, KEYS[:2], NO_KEY))
    rig.wait(INDEX_NS)
    rig.ask(CLIENT_7, Save(5, 1, KEYS[:1], NO_KEY))
    rig.ask(CLIENT_7, Save(6, 0, KEYS[:1], Key(b"short")))
    assert dropped(rig) == {
        "dropped": 3,
        "copy_failed": 3,
        "stale_claim": 2,
        "expired": 2,
        "not_attached": 1,
        "bad_request": 1,
    }
    assert ("save", "ok") not in calls(rig)


def test_a_save_without_pages_is_dropped_for_want_of_space() -> None:
    rig, _, reserve = attached()
    take = test_saves.begin(rig)
    rig.tell(CLIENT_7, Keep(take.save, take.batch))
    asked = [reserve]
    while asked:
        asked = pick(rig.answer(asked[0], test_saves.NO_SPACE), Reserve)
    assert dropped(rig) == {"no_space": 3}


def test_a_block_of_several_ranks_is_dropped_once() -> None:
    rig, _ = test_ranks.pair()
    sent = rig.answer(one(test_ranks.begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    test_ranks.staged_batch(rig, 0, sent)
    rig.wait(ORDER_NS + S)
    assert dropped(rig) == {"expired": 3}
    test_ranks.begin(rig, 1)
    rig.tell(CLIENT_7, Skip(77))
    assert dropped(rig) == {"expired": 3}


def test_a_save_that_ends_well_drops_nothing() -> None:
    rig, _ = test_saves.with_pages()
    take = test_saves.begin(rig)
    rig.wait(30 * MS)
    rig.answer(test_saves.fill(rig, take), Sealed(Status.OK, (0, 1, 2)))
    assert dropped(rig) == {}
    assert counted(rig, RPC)["save", "ok"].total == 0.03


# blocks


def test_how_long_blocks_stay_is_counted_when_they_go() -> None:
    rig, actor = test_index.index()
    test_index.save(rig, KEYS[:2])
    rig.wait(3 * S)
    test_index.save(rig, KEYS[2:4], 2)
    rig.wait(4 * S)
    assert len(test_index.press(rig, 3)) == 3
    (left,) = actor.residency.blocks
    rig.tell(SESSION_4, Corrupt(left.pages))
    found = counted(rig, RESIDENCE)
    assert {labels: buckets.count for labels, buckets in found.items()} == {
        ("pressure",): 3,
        ("cleanup",): 1,
    }
    assert sum(buckets.total for buckets in found.values()) == 2 * 7 + 2 * 4


def test_a_block_of_an_earlier_life_has_no_age() -> None:
    rig, actor = test_index.index()
    test_index.save(rig, KEYS[:2])
    ledger: Ledger = actor.residency.ledger
    again, _ = test_index.index_of(ledger)
    again.wait(S)
    assert len(test_index.press(again, 2)) == 2
    assert counted(again, RESIDENCE) == {}


def test_a_fetch_that_nobody_answers_is_counted() -> None:
    rig, _ = index()
    in_log(rig, KEYS[:2])
    one(look_up(rig, KEYS[:2]), Fetch)
    rig.wait(FETCH_NS)
    assert rig.count("ssd_fetches_expired") == 1


# the SSD tier


def test_writes_are_counted_by_speed_and_by_directory() -> None:
    disks = Disks(replace(PLAN, paths=("/a", "/b")))
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 3))
    disks.work(MakeSegment)
    disks.rig.wait(1 * MS)
    disks.work(WriteGroup)
    found = counted(disks.rig, SSD_WRITE_RATE)[()]
    assert (found.count, found.total) == (1, 3 * PAGE * 1000)
    assert of_each(disks, "write_bytes") == {"/a": 0, "/b": 0}, "not before it is durable"
    disks.work(SyncSegment)
    assert sorted(of_each(disks, "write_bytes").values()) == [0, 3 * PAGE]
    gauges = disks.actor.gauges()
    blocks = dict(labels_of("ssd_directory_blocks", gauges))
    assert sorted(blocks.values()) == [0, 3]
    assert set(dict(labels_of("ssd_directory_writable", gauges)).values()) == {1}


def test_faults_are_counted_where_they_are() -> None:
    disks = Disks(replace(PLAN, paths=("/a", "/b")))
    disks.faults[WriteGroup] = broken(Status.COPY_FAILED)
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 1))
    disks.work()
    assert disks.rig.count("ssd_faults") == sum(of_each(disks, "faults").values()) == 2
    assert counted(disks.rig, SSD_WRITE_RATE)[()].count == 0


def of_each(disks: Disks, name: str) -> dict[str, int]:
    found = labels_of(f"ssd_directory_{name}", disks.actor.counts)
    return {path: value for (path,), value in found}


def test_reads_are_counted_by_speed_and_by_directory() -> None:
    disks = reader()
    granted(disks, asks(disks, fetch(9, (0, 1, 2))), 1)
    disks.rig.wait(2 * MS)
    assert disks.rig.wanted(ReadRun)
    sent = disks.work()
    assert one(sent, Seal)
    found = counted(disks.rig, SSD_PREFETCH_RATE)[()]
    assert (found.count, found.total) == (1, 3 * PAGE * 500)
    assert of_each(disks, "prefetch_bytes") == {PLAN.paths[0]: 3 * PAGE}


# engines


def seats(group: Group) -> dict[str, int]:
    numbers = {r.engine: {c.name: c.value for c in r.counters} for r in group.report().processes}
    return {engine: n["engine_seat"] for engine, n in numbers.items() if engine}


def serve(group: Group, engine: str) -> list[Envelope]:
    sent = group.open(replace(OPEN, engine=engine))
    return group.answer(one(sent, Serve), Serving()) + group.settle()


def test_an_engines_seat_is_the_least_that_is_free() -> None:
    group = Group()
    for engine in ("a", "b", "c"):
        serve(group, engine)
    assert seats(group) == {"a": 1, "b": 2, "c": 3}
    group.exit(next(r.address for r in group.report().processes if r.engine == "b"))
    assert seats(group) == {"a": 1, "c": 3}
    serve(group, "d")
    assert seats(group) == {"a": 1, "c": 3, "d": 2}


def test_labelled_counters_are_in_the_sums_and_not_in_the_rows() -> None:
    group = Group()
    session = group.now_living(SESSION)
    rig, _, _ = attached()
    beats = [e.message for e in rig.wait(S) if isinstance(e.message, Beat)]
    group.tell(session, beats[-1])
    assert any("|" in name for name in group.sums(SESSION))
    rows = group.report().processes
    assert not any("|" in c.name for row in rows for c in row.counters)
