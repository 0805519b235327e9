"""Standard streams that are closed, full, unread or narrow: no traceback, no foreign descriptor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PEGAFLOW = [sys.executable, "-m", "pegaflow"]

# Opens a file first of all, as the service opens its lock, and says which numbers it got.
OPENER = """
import os, sys
from pegaflow.service import streams
streams.settle()
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("lost")
print("lost", file=sys.stderr)
assert sys.stdin.read() == ""
os.write(fd, repr([fd > 2, *(os.get_inheritable(n) for n in range(3))]).encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_takes_no_file_of_ours(closed: tuple[int, ...], tmp_path: Path) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [sys.executable, "-c", OPENER, str(tmp_path / "file")],
        preexec_fn=close,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "[True, True, True, True]"


@pytest.mark.parametrize("command", [["config", "show"], ["config", "limits", "--format", "json"]])
def test_a_full_disk_is_one_line(command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*PEGAFLOW, *command], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"pegaflow: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", [["config", "show"], ["config", "limits", "--format", "json"]])
def test_a_reader_that_has_gone_is_no_matter(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PEGAFLOW, *command], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def run(command: list[str], change: Callable[[dict[str, str]], None]) -> tuple[int, str]:
    env = dict(os.environ)
    change(env)
    done = subprocess.run([*PEGAFLOW, *command], env=env, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_what_the_locale_cannot_write_is_escaped(tmp_path: Path) -> None:
    def ascii_out(env: dict[str, str]) -> None:
        env.update(PYTHONIOENCODING="ascii", PEGAFLOW_RUN_DIR=str(tmp_path / "é"))

    code, said = run(["config", "show"], ascii_out)
    assert code == 0 and "\\xe9" in said.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("command", ["serve", "purge", "status"])
def test_a_name_that_is_no_text_is_one_line(command: str, tmp_path: Path) -> None:
    """Bytes that are no UTF-8; and UTF-8 where the locale knows ASCII alone."""

    def narrow(env: dict[str, str]) -> None:
        env.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")

    for name, change in ((b"\xff", lambda env: None), ("é".encode(), narrow)):
        run_dir = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        code, said = run([command, "--run-dir", run_dir], change)
        assert code == 1
        assert said.startswith("pegaflow: ") and said.count("\n") == 1
        assert "is not UTF-8 in this locale: choose another path, or set LC_ALL=C.UTF-8" in said
    assert list(tmp_path.iterdir()) == []
