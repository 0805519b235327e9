"""The engine thread's time per step: each half, and its methods over the steps that called them."""

from __future__ import annotations

from perf import step

LOOKUP, ORDERS = ("scheduler", "get_num_new_matched_tokens"), ("scheduler", "build_connector_meta")
LOAD = ("worker", "start_load_kv")


def test_a_method_is_measured_over_the_steps_that_called_it() -> None:
    found = [{ORDERS: 100e-6, LOAD: 50e-6}, {LOOKUP: 200e-6, ORDERS: 100e-6, LOAD: 70e-6}]
    scheduler, orders, lookup, worker, load, both = step.rows(found)
    assert scheduler[:6] == ["scheduler", "", "2", "100", "300", "300"]
    assert scheduler[6] == "pass (< 200) miss (< 200)"
    assert orders[:7] == ["", ORDERS[1], "2", "100", "100", "100", ""]
    assert lookup[:6] == ["", LOOKUP[1], "1", "200", "200", "200"]
    assert worker[:6] == ["worker", "", "2", "50", "70", "70"]
    assert load[1:6] == [LOAD[1], "2", "50", "70", "70"]
    assert both[:6] == ["both", "", "2", "150", "370", "370"]


def test_calls_of_one_step_are_added() -> None:
    engine = object.__new__(step.Engine)
    engine.spent = {}
    for _ in range(3):
        assert engine.call("worker", start_load_kv) == "done"
    ((name, seconds),) = engine.spent.items()
    assert name == LOAD and seconds > 0


def start_load_kv() -> str:
    return "done"
