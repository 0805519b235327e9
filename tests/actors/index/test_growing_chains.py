"""A chain that grows piece by piece is not walked for each, and goes from its tail all the same."""

from collections.abc import Sequence

import pytest

from pegaflow.actors.index import residency
from pegaflow.actors.index.actor import Index
from pegaflow.core.blocks.columns import Pages
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.identities import NO_CLAIM, ClaimId, Incarnation, Key, PageId
from pegaflow.wire.index import EndClaim, Seal, Sealed
from pegaflow.wire.status import Status
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import IDX, NOBODY_ELSE, PAGE, SESSION_4, SESSION_5, WELCOME, Rig, said
from tests.naming import as_pages, as_stamps

from .test_index import KEYS, NS, ROOT, claim, find, index, index_in, press, save

OTHERS = tuple(Key(bytes([n]) * 32) for n in range(101, 109))


def seal(
    rig: Rig,
    number: ClaimId,
    keys: Sequence[Key],
    parents: Sequence[Key],
    *,
    pages: Sequence[int],
    depths: range = range(0),
) -> None:
    """Seal these, one page each."""
    msg = Seal(
        number,
        NS,
        PAGE,
        PAGE,
        shards=1,
        keys=tuple(keys),
        parents=tuple(parents),
        pages=as_pages(*pages),
        stamps=as_stamps(*(900 + page for page in pages)),
        depths=tuple(depths),
    )
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK


def parents_in(keys: tuple[Key, ...], part: range) -> list[Key]:
    """The key before each of these."""
    return [keys[at - 1] if at else ROOT for at in part]


def piece(rig: Rig, number: ClaimId, keys: tuple[Key, ...], part: range, page: int = 0) -> None:
    """Seal a part of a chain, in pages from `page` on."""
    new = [keys[at] for at in part]
    seal(rig, number, new, parents_in(keys, part), pages=[page + at for at in part])


def walks(actor: Index, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the chains that are walked from now on."""
    lengths: list[int] = []
    walk = actor.residency._chain

    def counted(last: PageId) -> Pages:
        found = walk(last)
        lengths.append(len(found))
        return found

    monkeypatch.setattr(actor.residency, "_chain", counted)
    return lengths


def test_a_chain_that_grows_is_walked_once_and_once_more_with_the_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, actor = index()
    walked = walks(actor, monkeypatch)
    number = claim(rig, KEYS).number
    for at in range(8):
        piece(rig, number, KEYS, range(at, at + 1))
    assert walked == [1]
    rig.wait(BEAT_NS)
    assert walked == [1, 8]
    rig.wait(2 * BEAT_NS)
    assert walked == [1, 8], "it has not grown since"


def test_many_chains_that_have_grown_are_put_in_order_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "SETTLED_BLOCKS", 3)
    rig, actor = index()
    walked = walks(actor, monkeypatch)
    for keys, page in ((KEYS[:2], 0), (KEYS[4:6], 2), (OTHERS[:2], 4)):
        number = claim(rig, keys).number
        piece(rig, number, keys, range(1), page)
        piece(rig, number, keys, range(1, 2), page)
    assert walked == [1, 1, 1]
    in_each: list[int] = []
    until = rig.now + BEAT_NS
    while (at := rig.host.wake_at()) is not None and at <= until:
        rig.now = max(rig.now, at)
        rig.wake()
        in_each.append(len(walked))
    assert walked == [1, 1, 1, 2, 2, 2]
    assert {5, 6} <= set(in_each), "two chains in one go, and one in the next"
    assert press(rig, 2) == (1, 0)


def test_what_is_saved_in_one_piece_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor = index()
    walked = walks(actor, monkeypatch)
    save(rig, KEYS)
    rig.wait(2 * BEAT_NS)
    assert walked == [8]


@pytest.mark.parametrize("beats", [0, 1])
def test_its_tail_goes_first(beats: int) -> None:
    rig, _ = index()
    number = claim(rig, KEYS).number
    for part in (range(3), range(3, 4), range(4, 8)):
        piece(rig, number, KEYS, part)
    rig.tell(SESSION_4, EndClaim(number))
    rig.wait(beats * BEAT_NS)
    assert press(rig, 3) == (7, 6, 5)
    assert press(rig, 8) == (4, 3, 2, 1, 0)


def test_what_it_grows_from_is_as_young() -> None:
    """Its first pieces are the oldest blocks there are, until it grows."""
    rig, _ = index()
    first = claim(rig, KEYS[:2]).number
    piece(rig, first, KEYS, range(2))
    rig.wait(BEAT_NS)
    save(rig, OTHERS[:3], first_page=5)
    second = claim(rig, KEYS).number
    piece(rig, second, KEYS, range(2, 3))
    piece(rig, second, KEYS, range(3, 5))
    assert press(rig, 3) == (7, 6, 5)
    assert press(rig, 8) == (4, 3, 2, 1, 0)


@pytest.mark.parametrize("beats", [0, 1])
def test_what_was_begun_after_it_stays_younger(beats: int) -> None:
    """Else the first piece of what is being saved would be the oldest of all, and go."""
    rig, _ = index()
    first, second = claim(rig, OTHERS[:3]).number, claim(rig, KEYS[:4]).number
    piece(rig, first, OTHERS, range(2), 5)
    piece(rig, first, OTHERS, range(2, 3), 5)
    piece(rig, second, KEYS, range(2))
    rig.wait(beats * BEAT_NS)
    assert press(rig, 3) == (7, 6, 5)
    assert press(rig, 2) == (1, 0)


def test_so_does_what_is_begun_while_they_are_put_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "SETTLED_BLOCKS", 1)
    rig, _ = index()
    for keys, page in ((OTHERS[:2], 0), (OTHERS[4:6], 2)):
        number = claim(rig, keys).number
        piece(rig, number, keys, range(1), page)
        piece(rig, number, keys, range(1, 2), page)
    rig.now = rig.host.wake_at() or 0
    rig.wake()
    assert rig.host.wake_at() == 0, "one of them is in order, the other one is not"
    piece(rig, claim(rig, KEYS[:4]).number, KEYS, range(2), 4)
    rig.wait(0)
    assert press(rig, 4) == (1, 0, 3, 2)
    assert press(rig, 2) == (5, 4)


def test_victims_older_than_its_growth_put_nothing_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, actor = index()
    save(rig, OTHERS[:3], first_page=5)
    walked = walks(actor, monkeypatch)
    number = claim(rig, KEYS[:5]).number
    piece(rig, number, KEYS, range(2))
    piece(rig, number, KEYS, range(2, 5))
    assert press(rig, 2) == (7, 6)
    assert walked == [2]


def test_its_end_may_be_gone_when_it_is_put_in_order() -> None:
    rig, actor = index()
    number = claim(rig, KEYS[:3]).number
    for at in range(3):
        piece(rig, number, KEYS, range(at, at + 1))
    rig.tell(SESSION_4, EndClaim(number))
    assert press(rig, 3) == (2, 1, 0)
    piece(rig, claim(rig, KEYS[:2]).number, KEYS, range(2))
    rig.wait(BEAT_NS)
    assert find(rig, KEYS[:3], SESSION_5).pages == (0, 1)
    actor.check()


def test_a_run_with_a_hole_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor = index()
    walked = walks(actor, monkeypatch)
    number = claim(rig, KEYS[:5]).number
    piece(rig, number, KEYS, range(2))
    seal(rig, number, [KEYS[2], KEYS[4]], [KEYS[1], KEYS[3]], pages=[2, 4])
    assert walked == [2], "nothing that is here comes before the last one"
    assert len(actor.residency._growing) == 2


def stripe(rig: Rig, at: range, first_page: int, depths: range = range(0)) -> None:
    """A replica has saved these KEYS, whose positions are said to be `depths`."""
    pages = range(first_page, first_page + len(at))
    keys = [KEYS[n] for n in at]
    seal(rig, NO_CLAIM, keys, parents_in(KEYS, at), pages=pages, depths=depths)


@pytest.mark.parametrize("beats", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_what_replicas_save_is_walked_when_it_is_put_in_order(
    first: int, beats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, actor = index()
    walked = walks(actor, monkeypatch)
    stripe(rig, range(first, 8, 2), 0)
    assert walked == []
    stripe(rig, range(1 - first, 8, 2), 4)
    assert len(walked) <= 1
    rig.wait(beats * BEAT_NS)
    pages = [0, 4, 1, 5, 2, 6, 3, 7] if not first else [4, 0, 5, 1, 6, 2, 7, 3]
    assert press(rig, 3) == tuple(pages[:4:-1])
    assert press(rig, 8) == tuple(pages[4::-1])


@pytest.mark.parametrize(("first", "base"), [(0, 0), (1, 0), (0, 2)])
def test_what_replicas_have_saved_goes_from_its_tail_after_a_restart(first: int, base: int) -> None:
    """Positions are said within an order, which goes on from `base` blocks."""
    memory = IndexMemory(new_ledger(WELCOME))
    rig, _ = index_in(memory)
    if base:
        save(rig, KEYS[:base])
    pages = dict(zip(range(base), range(base), strict=True))
    for part in (first, 1 - first):
        keys = range(base + part, len(KEYS), 2)
        stripe(rig, keys, len(pages), range(part, len(KEYS) - base, 2))
        pages |= zip(keys, range(len(pages), len(pages) + len(keys)), strict=True)
    rig, _ = index_in(memory, NOBODY_ELSE, IDX._replace(incarnation=Incarnation(90)))
    tail_first = tuple(pages[at] for at in sorted(pages, reverse=True))
    assert press(rig, 3) == tail_first[:3]
    assert press(rig, 8) == tail_first[3:]


def test_chains_that_are_said_to_go_round_end() -> None:
    rig, actor = index()
    for key, parent, page in ((0, 1, 0), (1, 0, 1), (2, 1, 2)):
        seal(rig, NO_CLAIM, [KEYS[key]], [KEYS[parent]], pages=[page])
    assert actor.residency._chain(PageId(2)).tolist() == [0, 1, 2]
    assert sorted(press(rig, 8)) == [0, 1, 2]
