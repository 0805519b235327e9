"""Every table of perf/ comes out, in its quick form; its figures mean nothing here.

And its command leaves neither a process nor a pool, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.service.serve import kept_pools
from perf.machine import ENVIRONMENT
from tests.procs.service import UNIGNORED, eventually

TIMEOUT_S = 110.0
TABLES = {
    "codec": "decode, read",
    "latency": "/echo",
    "copies": "save/out",
    "attach": "spare",
    "fresh": "first/later",
    "saves": "under way",
    "step": "half",
    "recovery": "10,240",
    "peers.lookups": "zmq echo",
    "peers.copies": "process_vm",
    "peerlink": "own-sums",
}
WITHOUT_SERVICE = ("codec", "peerlink")
COMMANDS = ("latency", "copies", "peers.copies")
"""One with the service that has no memory, one with the real one, and one whose contestants have
services of their own."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the commands put what is temporary; a short path, since sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-t-") as name:
        yield Path(name)


def start(table: str, folder: Path) -> subprocess.Popen[str]:
    """The quick form of a command, in a process group of its own."""
    return subprocess.Popen(
        [*UNIGNORED, sys.executable, "-m", f"perf.{table}", "--quick"],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def pools(folder: Path) -> list[str]:
    """Those of services whose run directory is in there, alive or not."""
    return [pool.path for pool in kept_pools() if Path(pool.run_dir).is_relative_to(folder)]


def processes(folder: Path) -> dict[int, str]:
    """The command lines of those that name something in there, or work in there."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
            place = path.with_name("cwd").readlink()
        except OSError:
            continue
        if str(folder) in line or place.is_relative_to(folder):
            found[int(path.parent.name)] = line
    return found


def serving(folder: Path) -> list[int]:
    """Its service, once there is an index."""
    lines = processes(folder)
    there = any(" index " in line for line in lines.values()) and pools(folder)
    return [pid for pid, line in lines.items() if " serve " in line] if there else []


def nothing_is_left(folder: Path) -> None:
    assert pools(folder) == []
    eventually("no process is left", lambda: not processes(folder))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_printed(table: str, folder: Path) -> None:
    command = start(table, folder)
    printed, said = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == 0, said
    assert TABLES[table] in printed and "load" in printed.splitlines()[-1], printed
    nothing_is_left(folder)


@pytest.mark.parametrize(
    ("table", "number"),
    [
        *((table, signal.SIGINT) for table in COMMANDS),
        *((table, signal.SIGTERM) for table in TABLES if table not in WITHOUT_SERVICE),
    ],
)
def test_after_a_signal(table: str, number: int, folder: Path) -> None:
    command = start(table, folder)
    eventually("the service is there", lambda: bool(serving(folder)), patience=TIMEOUT_S)
    os.kill(command.pid, number)
    assert (command.communicate(timeout=TIMEOUT_S)[1], command.returncode) == ("", -number)
    nothing_is_left(folder)


def test_after_its_service_was_killed(folder: Path) -> None:
    """Which cannot remove its pool then."""
    command = start("copies", folder)
    eventually("the service is there", lambda: bool(serving(folder)), patience=TIMEOUT_S)
    os.killpg(serving(folder)[0], signal.SIGKILL)
    said = command.communicate(timeout=TIMEOUT_S)[1]
    assert command.returncode == 1 and said.startswith("perf.copies: ") and said.count("\n") == 1
    nothing_is_left(folder)


def test_contestants_end_when_their_table_was_killed(folder: Path) -> None:
    """Their folders are left, which nobody else knows."""
    command = start("peers.copies", folder)
    eventually("the service is there", lambda: bool(serving(folder)), patience=TIMEOUT_S)
    os.kill(command.pid, signal.SIGKILL)
    command.communicate(timeout=TIMEOUT_S)
    eventually("no process is left", lambda: not processes(folder), patience=TIMEOUT_S)
    assert pools(folder) == []
