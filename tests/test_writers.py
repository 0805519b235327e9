"""Who may write the pool: every child by a lock, and no orphan of an earlier life."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pegaflow import writers
from pegaflow.errors import UserError

HOLD = (
    "import signal, sys; from pathlib import Path; from pegaflow import writers\n"
    "writers.hold(Path(sys.argv[1])); print('held', flush=True); signal.pause()"
)


def holder(run_dir: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    child.stdout.close()
    return child


def test_every_orphan_is_killed_even_a_stopped_one(tmp_path: Path) -> None:
    children = [holder(tmp_path) for _ in range(3)]
    children[0].send_signal(signal.SIGSTOP)
    assert sorted(writers.end_orphans(tmp_path)) == sorted(c.pid for c in children)
    assert [c.wait(10) for c in children] == [-signal.SIGKILL] * 3
    assert writers.end_orphans(tmp_path) == []


def test_nobody_there_is_nobody_killed(tmp_path: Path) -> None:
    assert writers.end_orphans(tmp_path) == []
    assert (tmp_path / writers.FILE).stat().st_mode & 0o777 == 0o600


def test_a_link_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / writers.FILE).symlink_to(tmp_path / "elsewhere")
    for touch in (writers.hold, writers.end_orphans):
        with pytest.raises(UserError, match="cannot open"):
            touch(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_an_orphan_that_we_cannot_see_keeps_us_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_holder", lambda fd: 0)
    with pytest.raises(UserError, match="another pid namespace"):
        writers.end_orphans(tmp_path)


def test_a_pid_that_is_somebody_elses_by_now_is_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [os.getpid(), None, None]
    monkeypatch.setattr(writers, "_holder", lambda fd: answers.pop(0))
    assert writers.end_orphans(tmp_path) == [os.getpid()], "we are still here to say so"
