"""What is asked for one request, and what of it is understood."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.common.hints import KINDS, NO_HINTS, SHOWN_MAX, Hints, hints


def action(payload: Any, kind: str = "pegaflow", version: str = "1") -> Any:
    return SimpleNamespace(action_type=kind, action_version=version, payload=payload)


def envelope(*actions: Any) -> Any:
    return SimpleNamespace(actions=list(actions))


def test_a_client_says_it_under_our_prefix() -> None:
    said = {"pegaflow.skip_save": True, "pegaflow.skip_load": False, "do_remote_prefill": True}
    assert hints(said, None, NO_HINTS) == (Hints(skip_save=True), "")
    waits = Hints(wait_for_full_prefix=True)
    assert hints(None, None, waits) == (waits, "")
    assert hints({"pegaflow.wait_for_full_prefix": False}, None, waits) == (NO_HINTS, "")


def test_a_router_says_it_in_an_action_of_ours_and_the_client_overrules_it() -> None:
    told = envelope(action({"skip_save": True, "skip_load": True}), action({"x": 1}, kind="pin"))
    assert hints(None, told, NO_HINTS) == (Hints(skip_save=True, skip_load=True), "")
    assert hints({"pegaflow.skip_load": False}, told, NO_HINTS) == (Hints(skip_save=True), "")


def test_what_is_accepted_for_later_changes_nothing() -> None:
    said = {"pegaflow.pin": True, "pegaflow.ttl_s": 1.5, "pegaflow.priority": -3}
    assert hints(said, None, NO_HINTS) == (NO_HINTS, "")


NONSENSE: tuple[Any, ...] = (
    None,
    "yes",
    [],
    {},
    float("nan"),
    float("inf"),
    object(),
    b"",
    0,
    0.0,
    -1,
    True,
)
RIGHT: Mapping[str, tuple[Any, ...]] = {"priority": (0, -1)}


@pytest.mark.parametrize("name", KINDS)
def test_a_value_of_another_type_is_named_and_ignored(name: str) -> None:
    for value in NONSENSE:
        if value in RIGHT.get(name, ()) and not isinstance(value, bool | float):
            continue
        if value is True and "true" in KINDS[name][1]:
            continue
        found, ignored = hints({f"pegaflow.{name}": value}, None, NO_HINTS)
        assert found == NO_HINTS and name in ignored and KINDS[name][1] in ignored, value


def test_an_unknown_name_is_named_and_the_rest_holds() -> None:
    said = {"pegaflow.skip_saves": True, "pegaflow.skip_save": True}
    found, ignored = hints(said, None, NO_HINTS)
    assert found == Hints(skip_save=True) and "'skip_saves' is unknown" in ignored


def test_a_long_name_is_cut_in_the_log() -> None:
    assert len(hints({"pegaflow." + "x" * 9999: 1}, None, NO_HINTS)[1]) < 2 * SHOWN_MAX


@pytest.mark.parametrize("params", ["skip", 3, [("pegaflow.skip_save", True)]])
def test_parameters_that_are_none(params: Any) -> None:
    found, ignored = hints(params, None, NO_HINTS)
    assert found == NO_HINTS and "kv_transfer_params" in ignored


@pytest.mark.parametrize(
    "told",
    [
        "skip",
        envelope(action({"skip_save": True}, version="2")),
        envelope(action(["skip_save"])),
        envelope(action({3: True})),
        envelope(None, 7, action(None)),
        SimpleNamespace(actions=7),
    ],
)
def test_hints_that_are_none(told: Any) -> None:
    assert hints({3: 4}, told, NO_HINTS)[0] == NO_HINTS
