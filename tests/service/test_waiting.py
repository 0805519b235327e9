"""A service that waits for an earlier one's processes says so where people look."""

import socket
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.device import poolfiles
from pegaflow.service import rundir, serve
from pegaflow.service.sdnotify import VARIABLE
from pegaflow.service.settings import Settings


def test_the_service_manager_and_the_log_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def adopt(stem: str, wanted: poolfiles.Wanted) -> poolfiles.Found:
        wanted.say("waiting for 7")
        raise UserError("it does not die")

    monkeypatch.setattr(poolfiles, "adopt", adopt)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with rundir.ServiceLock.acquire(rundir.prepare(tmp_path / "run")) as lock:
            with pytest.raises(UserError, match="does not die"):
                serve._House(Settings(run_dir=tmp_path / "run"), lock)
        assert manager.recv(4096) == b"STATUS=waiting for 7"
    out, err = capfd.readouterr()
    assert "pool_waits" in out + err and "waiting for 7" in out + err
