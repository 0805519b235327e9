"""Back-off and breaker."""

from collections import Counter

from pegaflow.actors.supervisor.children import Assignment, ChildRecord
from pegaflow.actors.supervisor.restarts import (
    BACKOFF_NS,
    CALM_NS,
    ENGINES_MAX,
    FAILURES_MAX,
    PERIOD_NS,
    REST_NS,
    Budget,
    Restarts,
)
from pegaflow.wire.control import OpenSession
from pegaflow.wire.identities import EngineNamespace, Incarnation
from pegaflow.wire.values import INDEX, SESSION, Address

S = 1_000_000_000
START = 100 * S


def served(number: int, engine: str) -> ChildRecord:
    """A session of this engine."""
    opener = OpenSession(engine, bytes(16), 1, 1, namespace=EngineNamespace(bytes(16)))
    assignment = Assignment(opener, 1, False, START)
    return ChildRecord(Address(SESSION, Incarnation(number)), born_ns=START, assignment=assignment)


def test_each_failure_in_a_row_waits_longer() -> None:
    budget, waits = Budget(), []
    for _ in range(len(BACKOFF_NS) + 1):
        assert not budget.failed(START, START)
        waits.append(budget.next_start_ns - START)
    assert waits == [*BACKOFF_NS, BACKOFF_NS[-1]]


def test_a_long_life_ends_the_row() -> None:
    budget = Budget()
    for _ in range(3):
        budget.failed(START, START)
    now = START + CALM_NS + 1
    budget.failed(START, now)
    assert budget.next_start_ns == now + BACKOFF_NS[0]
    assert budget.restarts == 4


def test_too_many_failures_in_a_period_open_the_breaker() -> None:
    budget = Budget()
    step = PERIOD_NS // FAILURES_MAX
    opened = [budget.failed(START + n * step, START + n * step) for n in range(FAILURES_MAX)]
    now = START + (FAILURES_MAX - 1) * step
    assert opened == [False] * (FAILURES_MAX - 1) + [True]
    assert (budget.state(now), budget.next_start_ns) == ("broken", now + REST_NS)
    assert budget.state(now + REST_NS) == "ok"


def test_after_its_rest_one_more_failure_is_enough_until_a_life_was_long() -> None:
    budget = Budget()
    for _ in range(FAILURES_MAX):
        budget.failed(START, START)
    now = START + PERIOD_NS + REST_NS
    assert budget.failed(now, now)
    assert budget.broken_until_ns == now + REST_NS
    born = now + REST_NS
    assert not budget.failed(born, born + CALM_NS + 1)
    assert not budget.failed(born + PERIOD_NS, born + PERIOD_NS)


def test_failures_far_apart_never_open_it() -> None:
    budget = Budget()
    for n in range(10 * FAILURES_MAX):
        now = START + n * PERIOD_NS
        assert not budget.failed(now, now)
        assert budget.state(now) != "broken"


def test_an_engine_that_breaks_its_sessions_delays_nobody_else() -> None:
    restarts = Restarts((SESSION, INDEX), Counter())
    for n in range(FAILURES_MAX):
        restarts.ended(served(n, "bad"), START)
    assert restarts.engine_rest_ns("bad", START) == REST_NS
    assert restarts.engine_rest_ns("bad", START + REST_NS) == 0
    assert restarts.engine_rest_ns("good", START) == 0
    sessions = restarts.kinds[SESSION]
    assert (sessions.state(START), sessions.restarts) == ("ok", FAILURES_MAX)


def test_only_so_many_engines_are_remembered() -> None:
    restarts = Restarts((SESSION,), Counter())
    for n in range(FAILURES_MAX * 2):
        restarts.ended(served(n, "bad"), START)
    for n in range(ENGINES_MAX):
        restarts.ended(served(n, f"engine {n}"), START)
    assert restarts.engine_rest_ns("bad", START) == 0
    assert len(restarts._engines) == ENGINES_MAX
