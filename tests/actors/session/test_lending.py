"""A section of hazards that a client has: lent, passed on, loaded from, and taken back."""

from dataclasses import replace

import numpy as np
import pytest

from pegaflow.actors.session.leases import LASTING_NS
from pegaflow.actors.session.lending import LENT_EACH, LENT_FIRST
from pegaflow.core.pool.columns import said as as_said
from pegaflow.core.pool.finder import Run
from pegaflow.core.pool.hazards import Hazards, section_of
from pegaflow.wire import index as to_index
from pegaflow.wire.control import BEAT_NS, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import LeaseId, Namespace
from pegaflow.wire.index import HazardFile, HazardsNoted, Pinned
from pegaflow.wire.jobs import BounceOpened, OpenBounce
from pegaflow.wire.session import (
    TOOK_NS,
    Borrow,
    Confirmed,
    Copied,
    Found,
    Leave,
    Left,
    Lent,
    Load,
    Looked,
    Lookup,
    Pages,
    Ping,
    Pong,
    Release,
    Took,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import TEXT_CHARS_MAX
from tests.actors.rig import CLIENT_7, CLIENT_8, EXTENT, IDX, PAGE, POOL, WELCOME, Rig, one, said
from tests.actors.sessions import ATTACH, KEYS, reading, serving
from tests.actors.shared import Shared
from tests.naming import as_pages

S = 1_000_000_000
PLENTY = 1 << 40


class Borrower:
    """CLIENT_7, which looks up by itself."""

    def __init__(self, rig: Rig, shared: Shared) -> None:
        self.rig, self.shared = rig, shared
        self.lent = said(rig.ask(CLIENT_7, Borrow()), Lent)
        assert self.lent.status is Status.OK, self.lent
        self.hazards = Hazards(section_of(shared.file, self.lent.section))
        self.number = self.lent.first

    def find(self, count: int, first: int = 0) -> Run:
        """The leading run of these keys."""
        finder = self.shared.open_finder(WELCOME)
        found = finder.find(
            self.lent.namespace,
            KEYS[first : first + count],
            self.hazards,
            shards=self.lent.world,
            most_bytes=PLENTY,
        )
        assert found is not None and found.blocks == count
        return found

    def took(self, run: Run) -> Took:
        """What is said of it."""
        number, self.number = self.number, LeaseId(self.number + 1)
        pages, stamps = as_said(run.pages), as_said(run.stamps)
        return Took(number, self.lent.namespace, pages, stamps, rows=as_said(run.rows))

    def share(self, run: Run) -> LeaseId:
        """Pass it on."""
        msg = self.took(run)
        self.hazards.give(run.rows)
        assert self.rig.tell(CLIENT_7, msg) == []
        return msg.lease


def borrowing(blocks: int = 4, welcome: Welcome = WELCOME) -> tuple[Borrower, Rig, Shared]:
    shared = Shared()
    rig, _ = reading(shared, blocks, welcome)
    return Borrower(rig, shared), rig, shared


def load(rig: Rig, lease: LeaseId, count: int) -> list[Envelope]:
    return rig.ask(CLIENT_7, Load(lease, 0, 0, count), rig.now + 10 * S)


def test_what_is_lent_is_said() -> None:
    client, rig, _ = borrowing()
    lent = client.lent
    assert (lent.ledger_path, lent.ledger_file) == (WELCOME.ledger_path, WELCOME.ledger_file)
    assert (lent.pool_bytes, lent.extent_bytes) == (POOL, EXTENT)
    assert (lent.hazard_path, lent.hazard_file, lent.section) == ("hazards", (7, 8), 1)
    assert (lent.world, lent.block_bytes, lent.first) == (1, PAGE, LENT_FIRST)
    assert client.hazards.allowed > PLENTY


def test_what_a_client_has_found_counts_when_it_asks_for_more() -> None:
    client, rig, _ = borrowing(8, replace(WELCOME, max_pinned_bytes=4 * PAGE))
    run = client.find(3)
    assert said(rig.ask(CLIENT_7, Lookup(KEYS[4:8])), Found).blocks == 1
    client.share(run)
    rig.notes.clear()
    for _ in range(3):
        assert said(rig.ask(CLIENT_7, Lookup(KEYS[5:8])), Found).blocks == 0
        rig.wait(BEAT_NS)
    assert [note.event for note in rig.notes].count("engine_pins_too_much") == 0, "said already"


def test_a_client_that_keeps_all_it_may_by_itself_is_named_once() -> None:
    client, rig, _ = borrowing(8, replace(WELCOME, max_pinned_bytes=4 * PAGE))
    client.find(4)
    for _ in range(3):
        assert said(rig.ask(CLIENT_7, Lookup(KEYS[4:8])), Found).blocks == 0
        rig.wait(BEAT_NS)
    assert [note.event for note in rig.notes].count("engine_pins_too_much") == 1


def test_a_lease_that_is_passed_on_is_loaded_and_ends() -> None:
    client, rig, shared = borrowing()
    lease = client.share(client.find(3))
    assert shared.named == [0, 1, 2]
    pages = said(load(rig, lease, 3), Pages)
    assert (pages.status, pages.offsets) == (Status.OK, (0, PAGE, 2 * PAGE))
    assert said(rig.ask(CLIENT_7, Copied(pages.copy, True)), Confirmed).status is Status.OK
    assert shared.named == [] and len(client.hazards) == 3
    client.hazards.take_back()
    assert len(client.hazards) == 0
    assert said(rig.wait(BEAT_NS), to_index.Touched, IDX).pages == (0, 1, 2)
    assert said(load(rig, lease, 3), Pages).status is Status.NO_SUCH_LEASE


def test_a_lease_is_released() -> None:
    client, rig, shared = borrowing()
    lease = client.share(client.find(3))
    rig.tell(CLIENT_7, Release(lease))
    assert shared.named == []


def test_a_load_waits_for_the_word_that_it_overtook() -> None:
    client, rig, shared = borrowing()
    msg = client.took(client.find(2))
    assert load(rig, msg.lease, 2) == []
    pages = said(rig.tell(CLIENT_7, msg), Pages, CLIENT_7)
    assert pages.status is Status.OK and len(pages.offsets) == 2


def test_a_load_does_not_wait_for_ever() -> None:
    client, rig, _ = borrowing()
    msg = client.took(client.find(2))
    assert load(rig, msg.lease, 2) == []
    assert said(rig.wait(TOOK_NS), Pages, CLIENT_7).status is Status.NO_SUCH_LEASE
    assert said(load(rig, msg.lease, 2), Pages).status is Status.NO_SUCH_LEASE, "at once"
    rig.tell(CLIENT_7, msg)
    assert said(load(rig, msg.lease, 2), Pages).status is Status.NO_SUCH_LEASE


@pytest.mark.parametrize("number", [LENT_FIRST - 1, LENT_FIRST + LENT_EACH])
def test_a_load_of_a_number_that_was_not_lent_does_not_wait(number: int) -> None:
    _, rig, _ = borrowing()
    assert said(load(rig, LeaseId(number), 2), Pages).status is Status.NO_SUCH_LEASE


def test_a_load_in_a_hurry_does_not_wait() -> None:
    client, rig, _ = borrowing()
    asked = rig.ask(CLIENT_7, Load(client.number, 0, 0, 2), rig.now + TOOK_NS)
    assert said(asked, Pages).status is Status.NO_SUCH_LEASE


@pytest.mark.parametrize(
    "wrong",
    [
        *("namespace", "stamps", "pages", "rows", "a row twice", "no rows", "number"),
        *("a row beyond", "the last row there can be", "the last page there can be"),
    ],
)
def test_what_is_no_lease_is_none(wrong: str) -> None:
    client, rig, shared = borrowing()
    msg = client.took(client.find(2))
    rows = msg.rows[:]
    bad = {
        "namespace": replace(msg, namespace=Namespace(bytes(16))),
        "stamps": replace(msg, stamps=msg.stamps[::-1]),
        "pages": replace(msg, pages=msg.pages[::-1]),
        "rows": replace(msg, rows=rows[::-1]),
        "a row twice": replace(msg, rows=(rows[0], rows[0])),
        "no rows": replace(msg, rows=(), pages=(), stamps=()),
        "a row beyond": replace(msg, rows=(rows[0], 1 << 40)),
        "the last row there can be": replace(msg, rows=(rows[0], (1 << 64) - 1)),
        "the last page there can be": replace(msg, pages=as_pages(0, (1 << 64) - 1)),
        "number": replace(msg, lease=LeaseId(1)),
    }[wrong]
    rig.tell(CLIENT_7, bad)
    assert said(load(rig, msg.lease, 1) or rig.wait(TOOK_NS), Pages, CLIENT_7).status is (
        Status.NO_SUCH_LEASE
    )
    assert rig.host.actor.counts["leases_refused"] == 1
    rig.host.check()
    assert shared.named == ([] if wrong in ("namespace", "number") else [0, 1])


def test_a_block_that_was_evicted_from_under_it_is_no_lease() -> None:
    client, rig, shared = borrowing()
    run = client.find(3)
    shared.evict(1)
    lease = client.share(run)
    assert said(load(rig, lease, 3), Pages).status is Status.NO_SUCH_LEASE
    assert shared.named == []


def test_one_client_at_a_time() -> None:
    client, rig, shared = borrowing()
    client.find(2)
    said(rig.ask(CLIENT_8, Ping()), Pong, CLIENT_8)
    assert said(rig.ask(CLIENT_8, Borrow()), Lent, CLIENT_8).status is Status.BUSY
    rig.tell(CLIENT_8, client.took(client.find(1)))
    assert rig.host.actor.gauges()["session_leases_own"] == 0
    kept = client.share(client.find(1, 3))
    assert said(rig.ask(CLIENT_7, Leave()), Left).__class__ is Left
    assert shared.named == [3], "what was passed on is ours"
    rig.tell(CLIENT_8, Release(kept))
    rig.ask(CLIENT_7, ATTACH)
    rig.done(OpenBounce, BounceOpened("bounce", ()))
    lent = said(rig.ask(CLIENT_8, Borrow()), Lent, CLIENT_8)
    assert (lent.status, lent.first) == (Status.OK, LENT_FIRST + LENT_EACH)


def test_nothing_is_lent_before_the_index_has_noted_it() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, ATTACH)
    told = one(rig.done(OpenBounce, BounceOpened("bounce", ())), HazardFile, IDX)
    assert said(rig.ask(CLIENT_7, Borrow()), Lent).status is Status.NOT_READY
    rig.answer(told, HazardsNoted(Status.OK))
    assert said(rig.ask(CLIENT_7, Borrow()), Lent).status is Status.OK


def test_an_index_that_cannot_read_it_ends_it() -> None:
    client, rig, _ = borrowing()
    index = rig.host.actor.hazards  # type: ignore[attr-defined]
    index._heard(IDX, HazardsNoted(Status.NOT_READY, "no barrier"))
    assert client.hazards.allowed == 0
    lent = said(rig.ask(CLIENT_7, Borrow()), Lent)
    assert (lent.status, lent.note) == (Status.NOT_READY, "no barrier")


def test_a_rank_that_goes_ends_it_for_now() -> None:
    client, rig, _ = borrowing()
    rig.ask(CLIENT_7, ATTACH)
    assert client.hazards.allowed == 0
    rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert client.hazards.allowed


def test_the_section_keeps_no_more_than_the_engine_may() -> None:
    client, rig, _ = borrowing(8, replace(WELCOME, max_pinned_bytes=4 * PAGE))
    assert client.hazards.allowed == 4 * PAGE
    lease = client.share(client.find(2))
    assert client.hazards.allowed == 4 * PAGE, "what it has there itself is not taken off"
    rig.tell(IDX, Pinned(PAGE, 4 * PAGE, 0))
    assert client.hazards.allowed == 3 * PAGE
    twice = client.share(client.find(2))
    assert client.hazards.allowed == 5 * PAGE, "each lease counted by itself, as the client does"
    for number in (lease, twice):
        rig.tell(CLIENT_7, Release(number))
    assert client.hazards.allowed == 3 * PAGE


def test_what_was_looked_up_is_counted() -> None:
    _, rig, _ = borrowing()
    rig.tell(CLIENT_7, Looked(3, 20, 10, as_pages(4, 5)))
    actor = rig.host.actor
    counted = ("lookups_client", "blocks_asked_local", "blocks_hit_local")
    assert [actor.counts[name] for name in counted] == [3, 20, 10]
    assert said(rig.wait(BEAT_NS), to_index.Touched, IDX).pages == (4, 5)
    rig.tell(CLIENT_7, Looked((1 << 64) - 1, 20, 10, as_pages(4, 5)))
    assert [actor.counts[name] for name in counted] == [3, 20, 10], "nobody looks up so much"


def test_why_a_client_has_no_use_for_it_is_shown() -> None:
    client, rig, _ = borrowing()
    assert rig.host.actor.remarks() == ()
    rig.ask(CLIENT_7, Borrow("cannot map it"))
    (line,) = rig.host.actor.remarks()
    assert line == "a client of engine engine looks up by message: cannot map it"
    rig.ask(CLIENT_7, Borrow("x" * TEXT_CHARS_MAX))
    assert len(rig.host.actor.remarks()[0]) < 300, "it is one line of several in a Beat"
    rig.ask(CLIENT_7, Borrow())
    assert rig.host.actor.remarks() == ()


def test_a_client_that_is_stopped_with_hazards_is_shown() -> None:
    client, rig, _ = borrowing(8)
    run = client.find(8)
    rig.wait(LASTING_NS)
    assert rig.host.actor.remarks() == (), "not for so long yet"
    rig.wait(2 * BEAT_NS)
    (line,) = rig.host.actor.remarks()
    assert line.startswith("a client of engine engine has kept ") and line.endswith("it is stopped")
    client.hazards.clear(run.rows)
    rig.wait(BEAT_NS)
    assert rig.host.actor.remarks() == ()


def test_rows_that_stand_are_shown() -> None:
    client, rig, _ = borrowing()
    run = client.find(3)
    assert rig.host.actor.gauges()["session_hazards_lent"] == 3
    client.hazards.clear(run.rows)
    assert rig.host.actor.gauges()["session_hazards_lent"] == 0
    assert np.count_nonzero(client.hazards._pages) == 0
