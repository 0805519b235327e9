"""The runner over stand-in engines: every request once, a killed engine's too."""

import sys
from pathlib import Path

import pytest

from pegaflow.replay import report
from pegaflow.replay.ceiling import infinite
from pegaflow.replay.engine import Record, Shape
from pegaflow.replay.runner import Outcome, Plan, memcpy_speed, run

from .counting import traced

STUB = (sys.executable, str(Path(__file__).with_name("stub_engine.py")))
TRACE = traced([[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(9)])


def replay(kind: str, engines: int = 2, kill: int | None = None) -> Outcome:
    shape = Shape(2, 4096, 8)
    space = kind.encode().ljust(16)
    return run(Plan(TRACE, engines, shape, space, kill=kill, command=STUB))


def test_each_request_is_replayed_once() -> None:
    outcome = replay("", engines=3)
    assert sorted(outcome.records) == list(range(9))
    assert sorted(name for name, _ in outcome.attached) == ["engine-0", "engine-1", "engine-2"]
    assert outcome.restarted is None and not outcome.errors
    assert outcome.memcpy > 0 and outcome.seconds > 0


def test_a_killed_engines_successor_does_the_rest() -> None:
    outcome = replay("wait", kill=1)
    assert sorted(outcome.records) == list(range(9))
    assert outcome.restarted is not None and not outcome.errors
    assert [name for name, _ in outcome.attached].count("engine-1") == 2


def test_an_engine_that_fails_is_named_in_one_line() -> None:
    outcome = replay("die")
    assert sorted(outcome.errors) == [
        "engine 0 ended with status 1: it fell over",
        "engine 1 ended with status 1: it fell over",
    ]
    assert report.problem(outcome, TRACE, 2) == outcome.errors[0]
    assert replay("refuse", engines=1).errors == [
        "engine 0 ended with status 1: no service answers"
    ]


def test_progress_sees_every_record() -> None:
    seen: list[Record] = []
    run(Plan(TRACE, 2, Shape(1, 4096, 1), bytes(16), command=STUB), seen.append)
    assert sorted(record.index for record in seen) == list(range(9))


def test_an_exception_leaves_no_process() -> None:
    def stop(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Plan(TRACE, 2, Shape(1, 4096, 1), b"wait".ljust(16), command=STUB), stop)


def test_the_result_for_people() -> None:
    outcome = replay("wrong")
    lines = dict(report.rows(outcome, infinite(TRACE)))
    assert lines["blocks asked"] == "36" and lines["blocks served"] == "18"
    assert lines["bytes wrong"] == "27 (first in layer 1)"
    assert lines["hit rate"] == "50.0 %; an infinite cache: 0.0 %"
    assert lines["lookup"] == "p50 100 us, p99 100 us"
    assert lines["failures"] == "1 x save expired"
    assert report.summary(outcome) == (
        "Of 36 blocks asked for in 9 requests 18 were served from the cache: each of their 3600 "
        "bytes was compared, and 27 bytes were wrong. The other 18 were computed: none of them "
        "were saved."
    )
    assert report.problem(outcome, TRACE, 2) == "27 wrong bytes, the first in layer 1"


def test_the_restarted_engine_has_a_line_whatever_became_of_it() -> None:
    name, said = report.restarted(replay("wait", kill=1), 1)
    assert name == "restarted engine"
    assert said == "attached 10 ms after it asked, 200 ms after its process was started"
    fallen = report.restarted(replay("die", kill=1), 1)
    assert fallen == (name, "none: engine 1 ended before it could be killed")


def test_nothing_answered_is_said() -> None:
    assert report.summary(Outcome()) == "No request was answered."


def of(*records: Record) -> Outcome:
    return Outcome(records={record.index: record for record in records})


def test_nothing_served_is_a_problem_only_if_something_could_be() -> None:
    apart, twice = traced([[1, 2], [3]]), traced([[1, 2], [3], [1, 2]])
    assert report.problem(of(Record(0, 2, saved=2), Record(1, 1, saved=1)), apart, 2) == ""
    lost = [Record(0, 2, saved=2), Record(1, 1, saved=1), Record(2, 2, saved=2)]
    for engines in (1, 2, 3):
        said = report.problem(of(*lost), twice, engines)
        assert said == "nothing was served, where an infinite cache would serve 2 blocks"


def test_requests_that_share_blocks_and_run_side_by_side_are_no_problem() -> None:
    both = traced([[1], [1]])
    outcome = of(Record(0, 1, saved=1), Record(1, 1, known=1))
    assert report.problem(outcome, both, 2) == ""
    assert report.summary(outcome) == (
        "Of 2 blocks asked for in 2 requests none were served from the cache. The other 2 were "
        "computed: 1 of them was saved, 1 another engine had saved meanwhile, since requests run "
        "side by side."
    )
    said = "nothing was served, where an infinite cache would serve 1 block"
    assert report.problem(outcome, both, 1) == said, "one engine has its own blocks before"
    assert report.problem(of(Record(0, 1, saved=1), Record(1, 1, saved=1)), both, 2) == said


def test_one_of_a_thing_is_one() -> None:
    one = of(Record(0, 1, saved=1))
    assert report.summary(one) == (
        "Of 1 block asked for in 1 request none were served from the cache. The other 1 was "
        "computed: 1 of them was saved."
    )
    served = of(Record(0, 1, served=1, verified_bytes=4096))
    assert report.summary(served) == (
        "Of 1 block asked for in 1 request 1 was served from the cache: each of its 4096 bytes "
        "was compared, and every one was right."
    )
    wrong = of(Record(0, 1, served=1, verified_bytes=9, wrong_bytes=1, wrong="layer 1"))
    assert "and 1 byte was wrong." in report.summary(wrong)
    assert report.problem(wrong, TRACE, 2) == "1 wrong byte, the first in layer 1"


def test_speeds_name_large_copies_apart() -> None:
    large = Record(0, 1, load_seconds=0.001, load_bytes=report.LARGE_BYTES)
    small = Record(1, 1, load_seconds=0.001, load_bytes=4096)
    speeds = report.total([large, small]).load
    assert speeds.large == pytest.approx(report.LARGE_BYTES / 0.001)
    assert speeds.overall == pytest.approx((report.LARGE_BYTES + 4096) / 0.002)
    assert report.total([small]).save == report.Speeds(0.0, 0.0)


def test_memcpy_is_measured_for_any_block_size() -> None:
    assert memcpy_speed(1 << 20) > 0
    assert memcpy_speed(48 << 20) > 0
