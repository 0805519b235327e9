"""The README's systemd unit: systemd takes every line of it, and it has what a host needs."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from pegaflow.actors.supervisor.shutdown import DRAIN_NS
from pegaflow.service import settings

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def unit() -> str:
    """The text of the unit."""
    (found,) = re.findall(r"```ini\n(\[Unit\]\n.*?)```", README, re.S)
    return str(found)


def service() -> dict[str, str]:
    """Its [Service] section."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit())
    return dict(parser["Service"])


def test_what_ends_a_service_starts_it_again_and_nobody_waits_for_ever() -> None:
    found = service()
    assert found["Type"] == "notify" and found["Restart"] == "on-failure"
    assert 1 <= int(found["WatchdogSec"]) <= 60
    drain = settings.Settings.drain_timeout + DRAIN_NS / 1e9
    assert int(found["TimeoutStopSec"]) > drain
    assert -1000 < int(found["OOMScoreAdjust"]) < 0
    assert found["User"] not in ("", "root")
    assert found["KillMode"] == "mixed", "the supervisor ends its children in their order"
    assert "StartLimitIntervalSec=0" in unit(), "it is tried for ever"


def test_its_command_line_is_ours() -> None:
    found = service()
    words = found["ExecStart"].split()
    assert Path(words[0]).name == "pegaflow" and words[1] == "serve"
    assert words[2:] == ["--run-dir", f"/run/{found['RuntimeDirectory']}"]
    assert found["RuntimeDirectoryMode"] == "0700"
    assert found["RuntimeDirectoryPreserve"] == "yes", "the next start finds what this one left"
    assert found["ExecReload"].endswith("kill -HUP $MAINPID")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_it(tmp_path: Path) -> None:
    (tmp_path / "pegaflow").write_text("#!/bin/sh\n")
    (tmp_path / "pegaflow").chmod(0o755)
    path = tmp_path / "pegaflow.service"
    path.write_text(unit().replace("/opt/pegaflow/bin", str(tmp_path)))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "pegaflow.service" in line]
    assert ours == [], done.stderr
