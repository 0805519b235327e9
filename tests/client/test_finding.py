"""What a client looks up by itself: asked for, found, passed on, ended, and told of."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pegaflow.client import finding
from pegaflow.client.effects import CopyIn
from pegaflow.client.finding import AGAIN_NS, LOOKED_NS, USED_MAX, Finding
from pegaflow.client.results import Lease, LoadDone
from pegaflow.core.errors import UserError
from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.hazards import Hazards, LentRows, cut, hazard_bytes, section_of
from pegaflow.core.pool.table import TierWord
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import LeaseId
from pegaflow.wire.message import Message
from pegaflow.wire.session import SHARE_NS, Borrow, Lent, Looked, Took
from pegaflow.wire.status import Status
from tests.client.test_machine import MS, PEER, Client, joined, ready
from tests.core.pool.test_finder import GEOMETRY, KEYS, PLENTY, SPACE, Pool
from tests.naming import as_pages

BLOCK = 16384
FIRST = LeaseId(1 << 61)
LENT = Lent(
    Status.OK,
    pool_bytes=GEOMETRY.pool_bytes,
    extent_bytes=GEOMETRY.extent_bytes,
    namespace=SPACE,
    world=1,
    block_bytes=BLOCK,
    page_size=BLOCK,
    first=FIRST,
)


class Searcher:
    """A client with what was lent to it; four blocks are in memory."""

    def __init__(self, client: Client | None = None) -> None:
        self.c = client or ready()
        self.pool = Pool()
        self.stamps = self.pool.put(KEYS[:4], (5, 6, 7, 8))
        self.file = bytearray(hazard_bytes(64, sections=2))
        cut(self.file, 2)
        self.rows = LentRows(section_of(self.file, 1))
        self.rows.allow(PLENTY)
        self.why = ""
        self.f = Finding(self.c.m, self._lend)

    def _lend(self, lent: Lent) -> tuple[Finder, Hazards]:
        if self.why:
            raise UserError(self.why)
        return self.pool.finder, Hazards(section_of(self.file, 1))

    def borrow(self, lent: Lent = LENT) -> "Searcher":
        self.c.do(self.f.wish(self.c.now))
        self.c.answer(self.asked(), lent)
        return self

    def asked(self) -> Envelope:
        return self.c.question(Borrow)

    def find(self, count: int) -> Lease | None:
        done = self.f.find(KEYS[:count], self.c.now)
        assert done is not None and done.status is Status.OK
        return done.lease

    def held(self, count: int) -> Lease:
        lease = self.find(count)
        assert lease is not None
        return lease

    def wait(self, nanoseconds: int) -> list[Message]:
        self.c.now += nanoseconds
        self.c.do(self.f.wake(self.c.now))
        return self.c.look()


def test_without_a_section_the_session_is_asked_for_one() -> None:
    s = Searcher()
    assert s.f.find(KEYS[:2], s.c.now) is None
    s.c.do(s.f.wish(s.c.now))
    question = s.asked()
    assert question.message == Borrow()
    assert s.f.wish(s.c.now) == [], "once"
    s.c.answer(question, LENT)
    assert s.held(2) == Lease(PEER.incarnation, FIRST, 2) and s.f.why == ""
    assert s.rows.standing == 2
    assert s.held(4).number == FIRST + 1
    assert s.f.find((KEYS[9],), s.c.now) is not None and s.find(9) is not None


def test_a_miss_is_an_answer() -> None:
    s = Searcher().borrow()
    done = s.f.find(KEYS[9:11], s.c.now)
    assert done is not None and (done.status, done.lease, done.blocks) == (Status.OK, None, 0)
    assert s.rows.standing == 0


def test_a_run_that_may_go_on_in_a_tier_is_asked_for() -> None:
    s = Searcher().borrow()
    s.pool.table.set_tiers(TierWord.ASK)
    assert s.f.find(KEYS[:9], s.c.now) is None and s.rows.standing == 0
    assert s.held(4).blocks == 4


def test_a_run_that_ends_where_no_tier_goes_on_is_the_answer() -> None:
    s = Searcher().borrow()
    table, names = s.pool.table, fingerprints(SPACE, KEYS)
    table.filter.add(names[9:])
    table.set_tiers(TierWord.FILTER)
    whole = s.f.find(KEYS, s.c.now)
    assert whole is not None
    table.filter.add(names[whole.blocks : whole.blocks + 1])
    assert s.f.find(KEYS, s.c.now) is None, "the next one may be there"


def test_what_is_there_is_seen_without_a_lease() -> None:
    s = Searcher()
    assert s.f.see(KEYS[:6]) is None
    s.borrow()
    s.pool.table.filter.add(fingerprints(SPACE, KEYS[5:6]))
    s.pool.table.set_tiers(TierWord.FILTER)
    seen = s.f.see(KEYS[2:6])
    assert seen is not None and s.rows.standing == 0
    assert (seen.here, seen.below) == ((True, True, False, False), (False, False, False, True))
    s.c.do(s.c.m.session_died(s.c.now))
    assert s.f.see(KEYS[2:6]) is None, "it may be another pool by now"


def test_what_may_not_be_kept_is_asked_for() -> None:
    s = Searcher().borrow()
    s.rows.allow(3 * BLOCK)
    first = s.held(2)
    assert s.f.find(KEYS[:2], s.c.now) is None and s.rows.standing == 2
    assert s.held(1).blocks == 1
    assert s.f.release(first)
    assert s.held(2).blocks == 2


def test_a_lease_that_is_released_costs_no_message() -> None:
    s = Searcher().borrow()
    lease = s.held(3)
    assert s.f.release(lease) and not s.f.release(lease)
    assert s.rows.standing == 0 and s.c.look() == []
    assert s.wait(LOOKED_NS) == [Looked(1, 3, 3, as_pages(5, 6, 7))]
    assert s.wait(LOOKED_NS) == [] and s.f.wake_at() is None


def test_a_use_is_told_at_once_if_something_is_saved_after_it() -> None:
    s = Searcher().borrow()
    lease = s.held(3)
    assert s.f.tell_used(s.c.now) == [], "it is in use"
    assert s.f.release(lease)
    s.c.do(s.f.tell_used(s.c.now))
    assert s.c.look() == [Looked(1, 3, 3, as_pages(5, 6, 7))]
    assert s.f.tell_used(s.c.now) == []


def test_a_lease_that_is_passed_on_is_the_sessions() -> None:
    s = Searcher().borrow()
    lease = s.held(3)
    s.c.do(s.f.share(lease))
    (took,) = s.c.look()
    assert isinstance(took, Took)
    assert (took.lease, took.namespace) == (FIRST, SPACE)
    assert (took.pages, took.stamps) == ((5, 6, 7), s.stamps[:3])
    assert s.f.share(lease) == [] and not s.f.release(lease)
    assert s.rows.standing == 3, "the session's now"


def test_a_lease_is_copied_from_without_the_session() -> None:
    s = Searcher().borrow()
    lease = s.held(3)
    found = s.f.copy(lease, 1, 2)
    assert found is not None
    offsets, stands = found
    assert offsets == (6 * BLOCK, 7 * BLOCK) and s.rows.standing == 3
    assert s.f.share(lease) == [] and not s.f.release(lease), "it is used up"
    ticket, copy = s.c.m.operations.copy((1, 2), offsets, stands, deadline=s.c.at())
    assert copy == CopyIn(ticket, (1, 2), offsets, s.c.at())
    s.c.do(s.c.m.operations.copied_in(ticket, True, s.c.now))
    assert s.c.done == [LoadDone(ticket, Status.OK, ())]
    assert s.rows.standing == 0 and s.c.look() == []


@pytest.mark.parametrize("moment", ["evicted", "too late", "the session has died"])
def test_a_copy_that_was_not_of_those_blocks_fails(moment: str) -> None:
    s = Searcher().borrow()
    found = s.f.copy(s.held(2), 0, 2)
    assert found is not None
    ticket, _ = s.c.m.operations.copy((1, 2), *found, deadline=s.c.at())
    if moment == "evicted":
        s.pool.ledger.void(as_pages(6))
    elif moment == "the session has died":
        s.c.do(s.c.m.session_died(s.c.now))
    s.c.do(s.c.m.operations.copied_in(ticket, moment != "too late", s.c.now))
    status = {
        "evicted": Status.NO_SUCH_LEASE,
        "too late": Status.COPY_FAILED,
        "the session has died": Status.PEER_GONE,
    }[moment]
    assert s.c.done == [LoadDone(ticket, status, (1, 2))]
    s.c.do(s.f.leave(s.c.now))
    assert s.rows.standing == 0


@pytest.mark.parametrize("what", ["verify", "ranks", "passed on"])
def test_what_the_session_has_to_copy_is_not_copied(what: str) -> None:
    kinds: dict[str, Any] = {"verify": {"verify": True}, "ranks": {"world": 2}}
    s = Searcher()
    if what == "ranks":
        s.pool.put(KEYS[9:11], (10, 11, 12, 13), shards=2)
    s.borrow(replace(LENT, **kinds.get(what, {})))
    done = s.f.find(KEYS[9:11] if what == "ranks" else KEYS[:2], s.c.now)
    assert done is not None and done.lease is not None
    if what == "passed on":
        s.c.do(s.f.share(done.lease))
    assert s.f.copy(done.lease, 0, 2) is None


def test_rows_come_back_when_the_session_has_cleared_them() -> None:
    s = Searcher().borrow()
    s.rows.allow(3 * BLOCK)
    s.c.do(s.f.share(s.held(3)))
    (took,) = s.c.look()
    assert isinstance(took, Took)
    assert s.f.find(KEYS[:1], s.c.now) is None
    s.rows.clear(np.array(took.rows, np.int64))
    assert s.held(3).blocks == 3


def test_what_waits_for_long_is_passed_on() -> None:
    s = Searcher().borrow()
    s.held(2)
    assert s.f.wake_at() is not None
    assert [type(m) for m in s.wait(SHARE_NS)] == [Took, Looked]


def test_another_session_has_other_hazards() -> None:
    s = Searcher().borrow()
    lease = s.held(2)
    s.c.do(s.c.m.session_died(s.c.now))
    assert s.f.find(KEYS[:2], s.c.now) is None
    assert s.f.share(lease) == [] and not s.f.release(lease)
    assert s.f.wake(s.c.now) == [] and s.f.wake_at() is None


def test_who_comes_back_begins_anew() -> None:
    """The machine was without its session for a while, which has the section still."""
    s = Searcher().borrow()
    s.held(2)
    passed = s.held(1)
    s.c.do(s.f.share(passed))
    s.c.do(s.c.m._lose(s.c.now))
    s.c.m.link.session = PEER
    s.c.m._ready()
    s.c.look()
    assert s.f.find(KEYS[:2], s.c.now) is None
    s.borrow()
    assert s.rows.standing == 1, "what was not passed on has ended"
    assert s.held(2).blocks == 2


def test_before_we_leave_nothing_of_ours_stands() -> None:
    s = Searcher().borrow()
    s.held(2)
    s.c.do(s.f.leave(s.c.now))
    assert s.rows.standing == 0
    assert s.c.look() == [Looked(1, 2, 2, as_pages(5, 6))]
    assert s.f.find(KEYS[:2], s.c.now) is None


def test_a_section_that_is_closed_is_asked_for_again() -> None:
    s = Searcher().borrow()
    s.rows.allow(0)
    assert s.f.find(KEYS[:2], s.c.now) is None
    s.c.now += AGAIN_NS[0]
    s.c.do(s.f.wish(s.c.now))
    s.rows.allow(PLENTY)
    s.c.answer(s.asked(), LENT)
    assert s.held(2).blocks == 2


def test_who_is_refused_asks_later_and_later() -> None:
    s = Searcher()
    for pause in AGAIN_NS:
        s.borrow(Lent(Status.BUSY, "another has it"))
        assert s.f.why == "another has it"
        s.c.now += pause - MS
        assert s.f.wish(s.c.now) == []
        s.c.now += MS


def test_what_cannot_be_mapped_is_told() -> None:
    s = Searcher()
    s.why = "cannot map it"
    s.borrow()
    assert s.f.why == "cannot map it" and s.f.find(KEYS[:2], s.c.now) is None
    s.c.now += AGAIN_NS[-1]
    s.why = ""
    s.c.do(s.f.wish(s.c.now))
    question = s.asked()
    assert question.message == Borrow("cannot map it")
    s.c.answer(question, LENT)
    assert s.f.why == "" and s.held(2).blocks == 2


@pytest.mark.parametrize("moment", ["joining", "blind"])
def test_nothing_is_asked_of_a_session_that_could_die_unseen(moment: str) -> None:
    s = Searcher(joined() if moment == "joining" else ready())
    s.c.look()
    s.c.m.visible = False
    assert s.f.wish(s.c.now) == []


def test_what_was_used_is_told_of_as_far_as_it_matters() -> None:
    s = Searcher().borrow()
    for _ in range(USED_MAX // 4 + 5):
        s.f.release(s.held(4))
    (told,) = s.wait(LOOKED_NS)
    assert isinstance(told, Looked)
    assert (told.lookups, len(told.pages)) == (USED_MAX // 4 + 5, USED_MAX)


def test_of_a_use_that_is_too_long_its_head_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "USED_MAX", 5)
    s = Searcher().borrow()
    for count in (4, 3):
        assert s.f.release(s.held(count))
    assert s.wait(LOOKED_NS) == [Looked(2, 7, 7, as_pages(5, 6, 7, 5, 6))]
