"""Bugs of a session's GPU code, planted into what stands in for it here (gpu.py): seeds find them.

What of the product runs in the simulator has its planted bugs in `mutants/`."""

from typing import Any

import pytest

from .gpu import Gpus
from .scenario import Scenario

SEEDS = 6


def found(sign: str, bait: str) -> None:
    """One of a few seeds finds something that looks so."""
    for seed in range(SEEDS):
        try:
            Scenario(seed, bait).run()
        except AssertionError as error:
            if sign in str(error).splitlines()[-1]:
                return
    pytest.fail(f"not found in {SEEDS} seeds")


def test_a_copy_that_does_not_wait_for_the_engines_event_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare = Gpus.prepare

    def at_once(self: Gpus, copy: Any) -> None:
        prepare(self, copy)
        copy.mark = 0

    monkeypatch.setattr(Gpus, "prepare", at_once)
    found("wrong bytes", "on GPUs, nothing else, GPU hangs, engine saves")


def test_the_end_of_one_copy_that_is_taken_for_anothers_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if all lanes of a process ended in the order in which they were asked."""
    open_: dict[Gpus, list[Any]] = {}
    prepare, end = Gpus.prepare, Gpus.end

    def asked(self: Gpus, copy: Any) -> None:
        open_.setdefault(self, []).append(copy)
        prepare(self, copy)

    def oldest(self: Gpus, copy: Any) -> None:
        end(self, open_[self].pop(0))

    monkeypatch.setattr(Gpus, "prepare", asked)
    monkeypatch.setattr(Gpus, "end", oldest)
    found("wrong bytes", "on GPUs, GPU drags, engine loads, engine loads, engine loads")
