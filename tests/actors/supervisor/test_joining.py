"""Who may open a session and who may only join one, in every order of arrival."""

from dataclasses import replace
from itertools import permutations

import pytest

from pegaflow.wire.control import Refused, Serve, Serving, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.values import FRONT_DESK, SESSION, Address
from tests.actors.group import OPEN, Group
from tests.actors.rig import CLIENT_7, CLIENT_8, MS, one, pick, said

SCHEDULER, RANKS = CLIENT_7, (CLIENT_8, Address("client", Incarnation(9)))
JOIN = replace(OPEN, opens=False)
ANOTHER = bytes([1]) * 16
"""Another generation of the same engine."""


@pytest.mark.parametrize("arrival", list(permutations((SCHEDULER, *RANKS))))
def test_all_processes_of_an_engine_find_one_session(arrival: tuple[Address, ...]) -> None:
    group = Group()
    sent: list[Envelope] = []
    for client in arrival:
        sent += group.open(OPEN if client == SCHEDULER else JOIN, client)
    serves = pick(sent, Serve)
    assert len(serves) == 1
    sent += group.answer(serves[0], Serving()) + group.settle()
    addresses = {said(sent, SessionAt, client).address for client in arrival}
    assert len(addresses) == 1


def test_a_joiner_alone_waits_and_costs_no_spare() -> None:
    group = Group()
    before = list(group.living)
    sent = group.ask(CLIENT_8, JOIN, deadline=group.now + 2000 * MS, to=FRONT_DESK)
    assert sent + group.settle() == []
    assert group.beats(1500 * MS) == [] and group.living == before
    assert len(group.boss.opens) == 1
    assert group.beats(1000 * MS) == [] and not group.boss.opens


def test_a_late_rank_of_a_superseded_engine_stays_outside() -> None:
    group = Group()
    old = group.serve()
    said(group.open(JOIN, CLIENT_8), SessionAt)
    group.exit(old)
    assert not pick(group.open(JOIN, CLIENT_8), SessionAt), "its opener is gone"
    sent = group.open(replace(OPEN, generation=ANOTHER))
    sent += group.answer(one(sent, Serve), Serving()) + group.settle()
    assert said(sent, SessionAt, SCHEDULER).address != old
    assert said(sent, Refused, CLIENT_8).status is Status.SUPERSEDED
    assert said(group.open(JOIN, CLIENT_8), Refused).status is Status.SUPERSEDED


def test_a_rank_that_comes_before_its_scheduler_while_an_old_session_lives() -> None:
    group = Group()
    old = group.serve()
    new, joins = replace(OPEN, generation=ANOTHER), replace(JOIN, generation=ANOTHER)
    assert said(group.open(joins, CLIENT_8), Refused).status is Status.SUPERSEDED
    assert said(group.open(new), Refused).status is Status.DUPLICATE
    assert not pick(group.exit(old), SessionAt)
    sent = group.open(joins, CLIENT_8) + group.open(new)
    sent += group.answer(one(sent, Serve), Serving()) + group.settle()
    assert said(sent, SessionAt, CLIENT_8) == said(sent, SessionAt, SCHEDULER)


def test_a_crashed_session_comes_back_for_all_once_the_opener_asks() -> None:
    group = Group()
    old = group.serve()
    group.exit(old)
    assert not pick(group.open(JOIN, CLIENT_8), SessionAt)
    sent = group.open()
    sent += group.answer(one(sent, Serve), Serving()) + group.settle()
    for client in (SCHEDULER, CLIENT_8):
        assert said(sent, SessionAt, client).address.name == SESSION
