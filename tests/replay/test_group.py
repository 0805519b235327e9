"""A service of one's own: however its use ends, the one who used it learns why."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.service import signals


class Process:
    """A service that ends when it is told to."""

    def __init__(self, *arguments: object, **more: object) -> None:
        self.told = False

    def terminate(self) -> None:
        self.told = True

    def wait(self, timeout: float | None = None) -> int:
        assert self.told
        return 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool cannot be removed."""

    def purge(run_dir: Path) -> None:
        raise UserError("another service lives in it")

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(service, "_purge", purge)


@pytest.mark.usefixtures("taken")
def test_what_went_wrong_first_is_raised_and_the_rest_a_note(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="first") as raised,
        service.group(tmp_path / "run", tmp_path / "log", ()) as process,
    ):
        raise ValueError("first")
    assert raised.value.__notes__ == ["and then: another service lives in it"]
    assert process.told  # type: ignore[attr-defined]


@pytest.mark.usefixtures("taken")
def test_a_pool_that_cannot_be_removed_is_told_when_nothing_else_went_wrong(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="another service lives in it"),
        service.group(tmp_path / "run", tmp_path / "log", ()),
    ):
        pass


def test_the_last_lines_of_its_log_are_told_when_its_use_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log goes with the directory."""

    def wait(process: object, endpoint: str, log: Path) -> None:
        log.write_text("".join(f"line {n}\n" for n in range(100)))

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(service, "_wait", wait)
    with service.running(1 << 20):
        pass
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="wrong bytes"), service.running(1 << 20):
        raise UserError("wrong bytes")
    told = [f"line {n}" for n in range(100 - service.TOLD_LINES, 100)]
    assert capsys.readouterr().err.splitlines() == told
    with pytest.raises(signals.Interrupted), service.running(1 << 20):
        raise signals.Interrupted(signal.SIGTERM)  # by whoever waits no longer for what it does
    assert capsys.readouterr().err.splitlines() == told
    with pytest.raises(signals.Interrupted), service.running(1 << 20):
        raise signals.Interrupted(signal.SIGINT)
    assert capsys.readouterr().err == "", "who presses Ctrl-C has seen enough"
