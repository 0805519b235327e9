"""Log lines: their form, what is hidden in them, and how repeats are counted."""

from __future__ import annotations

import gc
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pegaflow.service import logs


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The log of a process that has been taken over; everything is given back after the test."""
    root, out = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    for where, hook in (
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
    ):
        monkeypatch.setattr(where, hook, getattr(where, hook))
    logs.configure(stream=out, actor="gateway")
    logs.take_over()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield out
    logging.captureWarnings(False)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_lines_carry_the_process_and_what_is_bound() -> None:
    out = io.StringIO()
    log = logs.get_logger(engine="e1")
    logs.configure(stream=out, actor="session", incarnation=7)
    log.bind(request="r9").warning("load.late", after_ms=12)
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "actor": "session",
        "incarnation": 7,
        "engine": "e1",
        "request": "r9",
        "event": "load.late",
        "level": "warning",
        "after_ms": 12,
    }


def test_the_level_is_obeyed() -> None:
    out = io.StringIO()
    logs.configure(level="error", stream=out)
    logs.get_logger().warning("no")
    logs.get_logger().error("yes")
    assert [line["event"] for line in lines(out)] == ["yes"]


def test_a_terminal_gets_a_line_for_people() -> None:
    out = Terminal()
    logs.configure(stream=out, actor="index")
    logs.get_logger().info("index.ready", pages=3)
    assert "index.ready" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_form_can_be_forced() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.configure(format="json", stream=terminal)
    logs.get_logger().info("a")
    logs.configure(format="console", stream=pipe)
    logs.get_logger().info("b")
    assert lines(terminal)[0]["event"] == "a"
    assert "b" in pipe.getvalue() and "\x1b" not in pipe.getvalue()


def test_an_exception_is_in_its_json_line() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    try:
        raise ValueError("why")
    except ValueError:
        logs.get_logger().exception("job.failed")
    assert "ValueError: why" in lines(out)[0]["exception"]


@pytest.mark.parametrize("method", ["info", "warning", "error", "critical"])
def test_keys_and_payloads_are_not_shown_above_debug(method: str) -> None:
    out = io.StringIO()
    logs.configure(level="debug", stream=out)
    getattr(logs.get_logger(), method)("x", key=b"secret", keys=[b"secret"] * 3, at=[1, 2])
    (line,) = lines(out)
    assert (line["key"], line["keys"], line["at"]) == ("<6 bytes>", "<3 keys>", [1, 2])


def test_debug_shows_their_beginning() -> None:
    out = io.StringIO()
    logs.configure(level="debug", stream=out)
    logs.get_logger().debug("x", keys=[b"\x01\x02"], data=memoryview(bytes(100)))
    (line,) = lines(out)
    assert line["keys"] == ["0102"]
    assert line["data"] == "00" * 32 + "..."


def test_repeats_are_counted_per_event_and_key() -> None:
    clock = Clock()
    repeats = logs.Repeats(clock, interval_s=10)
    assert [repeats.passes("e", "a") for _ in range(3)] == [0, None, None]
    assert repeats.passes("e", "b") == 0
    assert repeats.passes("f", "a") == 0
    clock.now += 10
    assert repeats.passes("e", "a") == 2
    clock.now += 10
    assert repeats.passes("e", "a") == 0


def test_forgetting_costs_one_extra_line() -> None:
    repeats = logs.Repeats(Clock())
    for key in range(logs.REPEAT_KEYS + 1):
        assert repeats.passes("e", key) == 0
    assert repeats.passes("e", 0) == 0
    assert repeats.passes("e", logs.REPEAT_KEYS) is None


def test_the_next_line_tells_how_many_were_suppressed() -> None:
    out, clock = io.StringIO(), Clock()
    logs.configure(stream=out, clock=clock)
    log = logs.get_logger()
    for _ in range(5):
        log.warning("frame.dropped", repeats="peer", why="stale")
    clock.now += logs.REPEAT_INTERVAL_S
    log.warning("frame.dropped", repeats="peer", why="stale")
    log.warning("frame.dropped", why="each of these passes")
    assert [line.get("suppressed") for line in lines(out)] == [None, 4, None]
    assert "repeats" not in out.getvalue()


def test_what_cannot_be_written_is_lost() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        logs.configure(format="json", stream=full)
        logs.get_logger().error("first")
        logs.get_logger().error("second")
        full.flush()  # nothing is left behind that would fail when the process ends


def test_libraries_speak_in_our_lines_and_no_faster(taken_over: io.StringIO) -> None:
    library = logging.getLogger("uvicorn.error")
    for number in range(300):
        library.warning("Invalid request %d received.\n", number)
    library.info("Uvicorn running")
    (line,) = lines(taken_over)
    assert line.pop("timestamp")
    assert line == {
        "actor": "gateway",
        "event": "library_log",
        "level": "warning",
        "library": "uvicorn.error",
        "said": "Invalid request 0 received.",
    }


def test_a_library_that_says_nonsense_is_no_error(taken_over: io.StringIO) -> None:
    (ours, *_) = logging.getLogger().handlers
    ours.handle(logging.LogRecord("asyncio", logging.ERROR, "", 0, "%d %d", ("one",), None))
    assert lines(taken_over) == []


def test_exceptions_and_warnings_are_lines_too(taken_over: io.StringIO) -> None:
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("asyncio").exception("a task failed")
    warnings.warn("an old call", DeprecationWarning, stacklevel=1)
    failing = threading.Thread(target=lambda: dict[str, int]()["missing"], name="http")
    failing.start()
    failing.join()
    Failing()
    gc.collect()
    sys.excepthook(ValueError, ValueError("outer"), None)
    said = lines(taken_over)
    events = [(line["event"], line.get("library", line.get("thread"))) for line in said]
    assert events == [
        ("library_log", "asyncio"),
        ("library_log", "py.warnings"),
        ("uncaught", "http"),
        ("uncaught", "nobody's"),
        ("uncaught", "main"),
    ]
    for line, words in zip(said, ("inner", None, "missing", "finalizer", "outer"), strict=True):
        assert words is None or words in line["exception"]


class Failing:
    def __del__(self) -> None:
        raise RuntimeError("of a finalizer")


def test_the_level_can_be_changed_for_loggers_that_are_there() -> None:
    out = io.StringIO()
    logs.configure(level="info", stream=out)
    log = logs.get_logger()
    log.debug("no")
    logs.set_level("debug")
    log.debug("yes")
    logs.set_level("error")
    log.warning("no")
    assert [line["event"] for line in lines(out)] == ["yes"]


REOPENED = """
import os, sys
from pathlib import Path
from pegaflow.service import logs
logs.configure()
path = Path(sys.argv[1])
assert logs.file() == str(path), logs.file()
logs.get_logger().info("first")
path.rename(path.with_suffix(".1"))
assert logs.file() == str(path.with_suffix(".1"))
assert logs.reopen(str(path)) == ""
logs.get_logger().info("second")
print("printed", file=sys.stderr)
assert os.path.samefile("/proc/self/fd/1", path)
path.unlink()
assert logs.file() == ""
path.symlink_to("elsewhere")
assert "symbolic" in logs.reopen(str(path))
path.unlink()
os.mkfifo(path)
assert logs.reopen(str(path)) != ""
assert logs.reopen("/nowhere/log") == "No such file or directory"
logs.get_logger().info("third")
"""


def test_a_file_that_was_moved_away_gets_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as log:
        path.chmod(0o640)
        command = [sys.executable, "-c", REOPENED, str(path)]
        done = subprocess.run(command, stdout=log, stderr=log)
    assert done.returncode == 0, (tmp_path / "log.1").read_text()
    assert '"first"' in (tmp_path / "log.1").read_text()
    assert "second" not in (tmp_path / "log.1").read_text()


def test_what_is_no_file_needs_no_successor() -> None:
    script = "from pegaflow.service import logs; assert logs.file() == ''"
    with open("/dev/full", "wb") as device:
        for stream in (subprocess.PIPE, device):
            subprocess.run([sys.executable, "-c", script], stderr=stream, check=True)
