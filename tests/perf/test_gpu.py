"""What perf.gpu writes, whatever becomes of its parts."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pegaflow.core.errors import UserError
from pegaflow.wire.layout import fault
from perf import gpu, gpuhost, gpulayouts, gputables
from perf.gpucard import METHODS
from perf.gpuparts import Rows, failing
from perf.gputables import EXTENT, FULL, GIB, QUICK, shape_of

ROWS = [{"segment": "4 KiB", "save": "1"}, {"segment": "1 MiB", "note": "x"}]


def test_a_table_has_all_heads_in_the_order_of_the_rows() -> None:
    assert gpu.table(ROWS).splitlines() == [
        "| segment | save | note |",
        "| --- | --- | --- |",
        "| 4 KiB | 1 |  |",
        "| 1 MiB |  | x |",
    ]


def test_what_each_part_has_found_is_kept_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"

    def rows_of(part: str, quick: bool, show: Callable[[dict[str, str]], None]) -> Rows:
        show(ROWS[0])
        if part == "copies":
            raise UserError("no room")
        return ROWS

    monkeypatch.setattr(gpu, "rows_of", rows_of)
    assert gpu.run_part("host", folder, quick=True)
    assert not gpu.run_part("copies", folder, quick=True)
    found = json.loads((folder / "gpu.json").read_text())
    assert found["host"]["rows"] == ROWS
    assert found["copies"]["rows"] == [ROWS[0], {"failed": "UserError: no room"}]
    written = (folder / "gpu.md").read_text()
    assert written.count("## ") == 2 and "UserError: no room" in written
    printed = capsys.readouterr().out
    assert "copies: segment 4 KiB, save 1\n" in printed and written.splitlines()[1] in printed


@pytest.mark.parametrize("case", gpulayouts.cases(), ids=lambda case: case.name)
def test_each_layout_is_sound(case: gpulayouts.Case) -> None:
    assert fault(case.layout, case.region_bytes) == ""


def test_what_fails_is_a_row_and_the_rest_goes_on() -> None:
    rows: Rows = []
    for method in ("direct", "kernel"):
        with failing(rows, method=method):
            if method == "direct":
                raise UserError("wrong bytes")
            rows.append({"method": method})
    assert rows == [{"method": "direct", "failed": "wrong bytes"}, {"method": "kernel"}]


def test_a_part_for_which_nothing_is_left_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    given = argparse.Namespace(out=str(tmp_path), quick=True, seconds=20.0)
    assert not gpu.run_apart("bare", given, time.monotonic() + 20.0)
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["bare"]["rows"]
    assert row == {"failed": "not started: too little of --seconds 20 is left"}


def test_all_parts_have_ten_minutes() -> None:
    assert sum(gpu.PARTS.values()) < 2 * 600


@pytest.mark.parametrize("segment", FULL.segments)
def test_a_shape_has_about_the_bytes_that_are_asked_for(segment: int) -> None:
    shape = shape_of(segment, GIB)
    assert 0.9 * GIB <= shape.total <= GIB and shape.total // shape.blocks <= EXTENT
    assert shape_of(segment, QUICK.moved).blocks >= 2


@pytest.mark.parametrize(
    ("program", "seconds", "answer"),
    [
        ("print('first'); print('last')", 60.0, "last"),
        ("raise ValueError('no driver')", 60.0, "not known: ValueError: no driver"),
        ("import threading; threading.Event().wait()", 1.0, "it hangs (after 1 s)"),
    ],
)
def test_a_question_has_an_answer_whatever_becomes_of_its_process(
    program: str, seconds: float, answer: str
) -> None:
    assert gpuhost.ask(program, "it hangs", seconds) == answer


@pytest.mark.parametrize("fails_at", ["attach", "save"])
def test_an_engine_whose_copies_fail_leaves_its_session(
    monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Its memory is freed next, which a session may not have open then."""
    did: list[str] = []

    class Failing:
        """Of an engine what the table uses."""

        def __init__(self, *arguments: object, **more: object) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            def call(*arguments: object, **more: object) -> None:
                did.append(name)
                if name == fails_at:
                    raise UserError("no session")

            return call

    monkeypatch.setattr(gputables, "Engine", Failing)
    monkeypatch.setattr(gputables, "registered", lambda endpoint, name: (0, 0))
    with pytest.raises(UserError, match="no session"):
        gputables.copied(
            SimpleNamespace(card=None),  # type: ignore[arg-type]
            "",
            shape_of(4096, 1 << 20),
            bus=SimpleNamespace(),  # type: ignore[arg-type]
            method=METHODS[0],
            turns=1,
        )
    assert did[-1] == "close"
