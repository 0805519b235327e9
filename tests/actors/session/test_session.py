"""One engine's process: attach, lookups and loads under leases, statements, late grants, death."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.reservation import READY_PAGES_MAX
from pegaflow.core.series import LOAD
from pegaflow.wire import index as to_index
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS, Bye, Refused, Serving
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_GRANT, NO_LEASE, GrantId, LeaseId
from pegaflow.wire.index import Find, Held, LeasesHeld
from pegaflow.wire.jobs import BounceOpened, OpenBounce, WatchProcess
from pegaflow.wire.session import (
    LEASE_IDLE_NS,
    Attach,
    Attached,
    Confirmed,
    Copied,
    Found,
    Leave,
    Load,
    Lookup,
    Pages,
    Ping,
    Pong,
    Release,
)
from pegaflow.wire.status import Status
from tests.actors.rig import (
    ALLOC,
    BOSS,
    CLIENT_7,
    CLIENT_8,
    EXTENT,
    IDX,
    MS,
    PAGE,
    Rig,
    one,
    pick,
    said,
)
from tests.actors.sessions import ATTACH, KEYS, LAYOUT, SERVE, attached, grant, serving, spare
from tests.naming import as_leases, as_pages


def leased() -> tuple[Rig, Session, int]:
    """A session with a lease of three blocks."""
    rig, actor, _ = attached()
    question = one(rig.ask(CLIENT_7, Lookup(KEYS[:4])), Find, IDX)
    found = said(
        rig.answer(question, Held(LeaseId(5), 1, as_pages(0, 1, 4), (), disk=(1, 2), peers=(0,))),
        Found,
        CLIENT_7,
    )
    assert (found.status, found.blocks, found.disk) == (Status.OK, 3, (1, 2))
    assert tuple(found.peers) == (0,)
    return rig, actor, found.lease


def load(rig: Rig, lease: int, first: int = 0, count: int = 3) -> Pages:
    return said(rig.ask(CLIENT_7, Load(LeaseId(lease), 0, first, count)), Pages)


def test_a_spare_serves_nobody() -> None:
    rig, _ = spare()
    assert said(rig.ask(CLIENT_7, ATTACH), Refused).status is Status.NOT_READY
    assert said(rig.ask(CLIENT_7, Lookup(KEYS)), Found).status is Status.NOT_ATTACHED
    assert said(rig.ask(CLIENT_7, Ping()), Pong)


def test_serve_twice_watches_once() -> None:
    rig, _ = serving()
    said(rig.ask(BOSS, SERVE), Serving)
    assert rig.wanted(WatchProcess) == [WatchProcess(4242, 99)]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (replace(ATTACH, rank=1), Status.BAD_REQUEST),
        (replace(ATTACH, region_bytes=(PAGE,)), Status.BAD_LAYOUT),
        (replace(ATTACH, layout=replace(LAYOUT, layers=())), Status.BAD_LAYOUT),
    ],
)
def test_refused_attaches(bad: Attach, status: Status) -> None:
    rig, _ = serving()
    assert said(rig.ask(CLIENT_7, bad), Refused).status is status
    assert not rig.wanted(OpenBounce)


def test_a_block_larger_than_an_extent() -> None:
    rig, _ = serving()
    layer = replace(LAYOUT.layers[0], segment_bytes=EXTENT + 1, block_stride=EXTENT + 1)
    big = replace(ATTACH, layout=replace(LAYOUT, layers=(layer,)), region_bytes=(1 << 30,))
    refused = said(rig.ask(CLIENT_7, big), Refused)
    assert refused.status is Status.TOO_LARGE and "--extent-size" in refused.why


def test_no_bounce_file() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, ATTACH)
    sent = rig.done(OpenBounce, Status.NO_SPACE, "no room")
    assert said(sent, Refused) == Refused(Status.NO_SPACE, "no room")


def test_a_second_client_takes_the_rank() -> None:
    rig, _, _ = attached()
    rig.ask(CLIENT_8, ATTACH)
    assert (
        said(rig.done(OpenBounce, BounceOpened("b2", ())), Attached, CLIENT_8).bounce_path == "b2"
    )


def test_a_miss_has_no_lease() -> None:
    rig, _, _ = attached()
    question = one(rig.ask(CLIENT_7, Lookup(KEYS)), Find)
    assert said(rig.answer(question, Held(NO_LEASE, 0, ())), Found) == Found(Status.OK, NO_LEASE, 0)


def test_a_silent_index_is_a_status_by_the_clients_deadline() -> None:
    rig, _, _ = attached()
    rig.ask(CLIENT_7, Lookup(KEYS), deadline=rig.now + 5 * MS)
    assert said(rig.wait(5 * MS), Found) == Found(Status.EXPIRED, NO_LEASE, 0)


def test_a_load_and_its_confirmation_consume_the_lease() -> None:
    rig, actor, lease = leased()
    pages = load(rig, lease)
    rig.wait(3 * MS)
    assert (pages.status, pages.offsets) == (Status.OK, (0, PAGE, EXTENT))
    sent = rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert said(sent, Confirmed) == Confirmed(Status.OK)
    assert said(sent, to_index.Release, IDX).number == lease
    assert said(rig.ask(CLIENT_7, Copied(pages.copy, True)), Confirmed).status is not Status.OK
    assert load(rig, lease).status is Status.NO_SUCH_LEASE
    counted = ("loads", "bytes_loaded", "loads_refused", "loads_failed")
    assert [actor.counts[name] for name in counted] == [1, 3 * PAGE, 1, 0]
    assert LOAD.read(actor.counts)[()].total == 0.003


def test_impossible_loads() -> None:
    rig, _, lease = leased()
    assert load(rig, lease, first=1, count=3).status is Status.BAD_REQUEST
    assert load(rig, lease, count=0).status is Status.BAD_REQUEST
    assert load(rig, lease + 1).status is Status.NO_SUCH_LEASE
    assert (
        said(rig.ask(CLIENT_7, Load(LeaseId(lease), 1, 0, 1)), Pages).status is Status.NOT_ATTACHED
    )


def test_a_release_waits_for_the_running_copy() -> None:
    rig, actor, lease = leased()
    pages = load(rig, lease)
    assert rig.tell(CLIENT_7, Release(LeaseId(lease))) == []
    assert load(rig, lease).status is Status.NO_SUCH_LEASE
    sent = rig.ask(CLIENT_7, Copied(pages.copy, False))
    assert said(sent, to_index.Release).number == lease
    assert (actor.counts["loads"], actor.counts["loads_failed"]) == (0, 1)


def test_only_the_copier_ends_a_copy() -> None:
    rig, _, lease = leased()
    pages = load(rig, lease)
    sent = rig.ask(CLIENT_8, Copied(pages.copy, True))
    assert said(sent, Confirmed).status is Status.NO_SUCH_LEASE
    assert not pick(sent, to_index.Release)


def test_an_idle_lease_is_released_unless_a_copy_of_it_runs() -> None:
    rig, _, lease = leased()
    pages = load(rig, lease)
    assert not pick(rig.wait(LEASE_IDLE_NS + BEAT_NS), to_index.Release)
    one(rig.ask(CLIENT_7, Copied(pages.copy, True)), to_index.Release)
    idle_rig, _, idle = leased()
    sent = idle_rig.wait(LEASE_IDLE_NS + 2 * BEAT_NS)
    assert said(sent, to_index.Release, IDX).number == idle


def test_an_idle_engine_is_never_reaped() -> None:
    rig, _, _ = attached()
    rig.wait(3600 * 1000 * MS)
    assert rig.stop is None
    one(rig.ask(CLIENT_7, Lookup(KEYS)), Find)


def test_each_beat_states_leases_and_pages() -> None:
    rig, _, reserve = attached()
    reserved = grant(3, 4)
    rig.answer(reserve, reserved)
    question = one(rig.ask(CLIENT_7, Lookup(KEYS)), Find)
    rig.answer(question, Held(LeaseId(5), 1, as_pages(0)))
    sent = rig.wait(BEAT_NS)
    assert said(sent, LeasesHeld, IDX) == LeasesHeld(LeaseId(5), as_leases(5), NO_CLAIM, ())
    assert said(sent, PagesHeld, ALLOC) == PagesHeld(GrantId(3), reserved.pages, PAGE)


def test_a_late_held_is_handed_back() -> None:
    rig, _, _ = attached()
    question = one(rig.ask(CLIENT_7, Lookup(KEYS), deadline=rig.now + MS), Find)
    rig.wait(MS)
    assert (
        said(rig.answer(question, Held(LeaseId(6), 1, as_pages(0))), to_index.Release, IDX).number
        == 6
    )
    assert said(rig.tell(IDX, Held(LeaseId(7), 1, as_pages(0))), to_index.Release, IDX).number == 7


def test_a_lease_sent_again_that_we_hold_is_kept() -> None:
    rig, _, lease = leased()
    assert rig.tell(IDX, Held(LeaseId(lease), 1, as_pages(0, 1, 4))) == []


def test_a_late_reserved_is_adopted_once() -> None:
    rig, actor, reserve = attached()
    rig.wait(1100 * MS)
    reserved = grant(1, 2)
    rig.answer(reserve, reserved)
    rig.tell(ALLOC, reserved)
    assert actor.reservation.free == dict(zip(reserved.pages, reserved.stamps, strict=True))


def test_a_reserved_for_nobody_goes_back() -> None:
    rig, _ = serving()
    assert said(rig.tell(ALLOC, grant(1, 2)), Return, ALLOC).pages == grant(1, 2).pages


def test_a_refused_reserve_is_asked_again_only_when_needed() -> None:
    rig, _, reserve = attached()
    assert not pick(rig.answer(reserve, Reserved(Status.NO_SPACE, NO_GRANT, (), ())), Reserve)


def test_the_last_client_to_leave_ends_the_session() -> None:
    rig, _, lease = leased()
    rig.ask(CLIENT_8, Ping())
    load(rig, lease)
    sent = rig.tell(CLIENT_7, Leave())
    assert said(sent, to_index.Release).number == lease
    assert rig.stop is None
    one(rig.tell(CLIENT_8, Leave()), Bye, BOSS)
    assert rig.stop == ""


def test_a_lease_found_for_a_client_that_left_is_released() -> None:
    rig, _, _ = attached()
    rig.ask(CLIENT_8, Ping())
    question = one(rig.ask(CLIENT_7, Lookup(KEYS)), Find)
    rig.tell(CLIENT_7, Leave())
    one(rig.answer(question, Held(LeaseId(5), 1, as_pages(0))), to_index.Release, IDX)


def test_the_engines_death_ends_the_session() -> None:
    rig, _, _ = attached()
    one(rig.done(WatchProcess), Bye, BOSS)
    assert rig.stop == ""


def test_a_client_that_attaches_again_copies_nothing_any_more() -> None:
    rig, actor, lease = leased()
    assert load(rig, lease).status is Status.OK and actor.loads.copies
    rig.ask(CLIENT_7, ATTACH)
    assert not actor.loads.copies and not actor.leases.held


def test_leases_of_another_layout_end_when_it_changes() -> None:
    """A lease found under one layout must never be loaded into blocks of another."""
    rig, actor, lease = leased()
    late = one(rig.ask(CLIENT_8, Lookup(KEYS[:2])), Find, IDX)
    rig.ask(CLIENT_7, replace(ATTACH, layout=replace(LAYOUT, dtype="other")))
    sent = rig.done(OpenBounce, BounceOpened("/dev/shm/other", ()))
    assert said(sent, to_index.Release, IDX).number == lease and not actor.leases.held
    sent = rig.answer(late, Held(LeaseId(6), 1, as_pages(0, 1)))
    assert said(sent, to_index.Release, IDX).number == 6 and not actor.leases.held


def with_larger_blocks(rig: Rig) -> Envelope:
    """The engine attaches again with blocks twice as large; the Reserve of that."""
    layer = replace(LAYOUT.layers[0], segment_bytes=2 * PAGE, block_stride=2 * PAGE)
    larger = replace(ATTACH, layout=replace(LAYOUT, layers=(layer,)), region_bytes=(128 * PAGE,))
    assert rig.ask(CLIENT_7, larger) == []
    reserve = one(rig.done(OpenBounce, BounceOpened("bounce", ())), Reserve, ALLOC)
    assert reserve.message == Reserve(2 * PAGE, READY_PAGES_MAX)
    return reserve


def test_pages_of_the_former_size_are_not_saved_into() -> None:
    rig, actor, former = attached()
    reserve = with_larger_blocks(rig)
    assert said(rig.answer(former, grant(1, 2)), Return, ALLOC).pages == grant(1, 2).pages
    rig.answer(reserve, grant(2, 8))
    assert sorted(actor.reservation.free) == list(grant(2, 8).pages)


def test_pages_that_come_unasked_may_be_of_the_former_size_and_go_back() -> None:
    rig, actor, _ = attached()
    with_larger_blocks(rig)
    assert said(rig.tell(ALLOC, grant(1, 2)), Return, ALLOC).pages == grant(1, 2).pages
    rig.tell(ALLOC, grant(1, 2))
    assert not actor.reservation.free
