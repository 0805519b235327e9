"""docs/failures.md names tests, events, metrics and processes: all of them are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pegaflow.actors.roster import ROSTER

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"\btest_[a-z_0-9]+\b")


def rows() -> list[list[str]]:
    """The cells of every row."""
    text = (ROOT / "docs" / "failures.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "who"]


ROWS = rows()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
METRICS = (ROOT / "docs" / "metrics.md").read_text()
PRODUCT = "\n".join(
    path.read_text()
    for folder in ("actors", "pegaflow", "wire")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]}")
def test_what_a_row_names_is_there(row: list[str]) -> None:
    who, when, engine, operator, metrics, shown = row
    tests = NAMED.findall(shown)
    assert who and when and engine and tests
    assert [name for name in tests if f"def {name}(" not in SOURCE] == []
    assert [m for m in re.findall(r"`(pegaflow_\w+)`", metrics) if f"`{m}`" not in METRICS] == []
    events = re.findall(r"`([a-z]+_[a-z_]+)`", operator)
    assert [event for event in events if f'"{event}"' not in PRODUCT] == []


def test_every_process_is_killed_and_stopped() -> None:
    for name in [*(spec.name for spec in ROSTER), "supervisor", "whole group"]:
        moments = " ".join(row[1] for row in ROWS if row[0] == name)
        assert "killed" in moments and "stopped" in moments, name
