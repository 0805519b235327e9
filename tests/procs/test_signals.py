"""Real signals to real processes, at every moment: no traceback, no process left, and each of them
does what the table of the README says."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pegaflow.replay.trace import BUNDLED
from pegaflow.service import signals

from .service import PATIENCE_S, UNIGNORED, Engine, Service, eventually, keys, logged

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it whole."""
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


def lines(service: Service, event: str) -> list[dict[str, Any]]:
    """Lines of the log of this name."""
    return [line for line in logged(service.log()) if line["event"] == event]


def group_of(leader: int) -> dict[int, list[str]]:
    """Command lines of the living processes of a process group, by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found[int(path.parent.name)] = command
    return found


def mask(pid: int, name: str) -> set[int]:
    """SigBlk, SigIgn or SigCgt of a process."""
    (line,) = re.findall(rf"^{name}:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return {n for n in range(1, 65) if int(line, 16) >> (n - 1) & 1}


class Command:
    """A command of ours that leads a process group, as a shell starts it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*UNIGNORED, sys.executable, "-m", "pegaflow", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                process_group=0,
                env={**os.environ, "TMPDIR": str(folder)},
                cwd=ROOT,
            )

    def held(self) -> bool:
        """Whether our first line has run."""
        return signal.SIGINT in mask(self.process.pid, "SigBlk")

    def children(self) -> int:
        """Processes of its group, without itself."""
        return len(group_of(self.process.pid)) - 1

    def when(self, what: str, check: Callable[[], bool], number: int) -> int:
        """Signal the whole group at a moment, as a terminal does; the exit status."""

        def now() -> bool:
            assert self.process.poll() is None, self.errors.read_text()
            return check()

        eventually(what, now)
        os.killpg(self.process.pid, number)
        return self.process.wait(PATIENCE_S)

    def clean(self) -> None:
        """Nothing was said of it, and nobody is left."""
        said = self.errors.read_text()
        assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
        eventually("nobody is left", lambda: not group_of(self.process.pid))


def serve(folder: Path) -> Command:
    """A service that is just being started."""
    (folder / "run").mkdir(mode=0o700)
    words = ["serve", "--run-dir", str(folder / "run"), "--pool-size", "64MiB"]
    words += ["--http-addr", "none", "--log-format", "json"]
    return Command(folder, *words)


Moment = Callable[[Command], bool]

MOMENTS: dict[str, Moment] = {
    "the first line has run": lambda command: command.held(),
    "one child is there": lambda command: command.children() >= 1,
    "two children are there": lambda command: command.children() >= 2,
    "four children are there": lambda command: command.children() >= 4,
}
"""Within the first second of `serve`: its own imports, and those of each child."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_service_is_stopped_in_the_middle_of_its_start(
    tmp_path: Path, moment: str, number: int
) -> None:
    command = serve(tmp_path)
    assert command.when(moment, lambda: MOMENTS[moment](command), number) == 0
    command.clean()
    assert signals.name(number) in command.errors.read_text()


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_other_signal_ends_a_service_in_the_middle_of_its_start(
    tmp_path: Path, moment: str
) -> None:
    command = serve(tmp_path)
    eventually(moment, lambda: MOMENTS[moment](command))
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN):
        os.killpg(command.process.pid, number)
    eventually("it serves", lambda: "pool_ready" in command.errors.read_text())
    assert command.when("it serves", lambda: command.children() >= 4, signal.SIGTERM) == 0
    command.clean()
    assert "child_gone" not in command.errors.read_text()


def spawned(command: Command, what: str) -> bool:
    """Whether a process with this word in its command line is in the group, or a service that the
    command has started (which has a session of its own)."""
    mine = group_of(command.process.pid)
    theirs = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text()
    return any(what in " ".join(words) for words in mine.values()) or (
        what == "serve" and any(pid not in mine for pid in map(int, theirs.split()))
    )


DEMO = ("demo", "--pool-size", "64MiB")
REPLAY = ("replay", str(BUNDLED), "--run-dir", "RUN_DIR")
COMMANDS: dict[str, tuple[tuple[str, ...], Moment]] = {
    "demo, at its first line": (DEMO, lambda command: command.held()),
    "demo, whose service starts": (DEMO, lambda command: spawned(command, "serve")),
    "demo, whose engines start": (DEMO, lambda command: spawned(command, "replay.engine")),
    "replay, at its first line": (REPLAY, lambda command: command.held()),
    "replay, whose engines start": (REPLAY, lambda command: spawned(command, "replay.engine")),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", signals.ENDING)
def test_a_command_dies_of_the_signal_and_cleans_up(
    service: Service, name: str, number: int
) -> None:
    words, moment = COMMANDS[name]
    arguments = [str(service.run_dir) if word == "RUN_DIR" else word for word in words]
    with tempfile.TemporaryDirectory() as short:  # enough for a socket's path below it
        folder = Path(short)
        command = Command(folder, *arguments)
        assert command.when(name, lambda: moment(command), number) == -number
        command.clean()
        assert command.errors.read_text() == ""
        assert [p.name for p in folder.iterdir()] == ["stderr"], "its folders are gone"


def test_a_terminal_that_is_closed_ends_no_service(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    service = Service(run_dir)
    on_a_terminal = (
        "import fcntl, os, sys, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    ours, theirs = pty.openpty()
    run_dir.mkdir(mode=0o700)
    service._process = subprocess.Popen(
        [sys.executable, "-c", on_a_terminal, *service._command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    service.log = lambda: ""  # type: ignore[method-assign]
    try:
        eventually("the service is up", service.up)
        before = {row.address: row.pid for row in service.processes()}
        os.close(ours)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # lines that nobody can read any more
            os.kill(service.pid, number)
        with Engine(service) as engine:
            engine.fill([0], seed=1)
            assert engine.client.save(keys(1), [0]).saved == 1
            assert before.items() <= {row.address: row.pid for row in service.processes()}.items()
        assert service.stop() == 0
    finally:
        service.__exit__(None, None, None)
    assert service.left_over() == []


def test_a_hangup_reads_the_configuration_and_opens_the_log_anew(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('log_level = "info"\n')
    with Service(tmp_path / "run", extra=("--config", str(settings))) as service:
        settings.write_text('log_level = "debug"\nspares = 1\n')
        log = service.run_dir / "log"
        log.rename(service.run_dir / "log.1")
        os.kill(service.pid, signal.SIGHUP)
        eventually(
            "the log is a new one", lambda: log.exists() and bool(lines(service, "reloaded"))
        )
        (line,) = lines(service, "reloaded")
        assert (line["log_level"], line["after_a_restart"]) == ("debug", "spares")
        (session, *_) = service.processes("session")
        os.kill(session.pid, signal.SIGKILL)
        eventually(
            "a child that is spawned now logs there, and at the new level",
            lambda: any(said["actor"] == "session" for said in lines(service, "actor_started")),
        )
        for row in service.processes():
            of_it = f"/proc/{row.pid}/fd/2"
            eventually("it writes to the new file", partial(os.path.samefile, of_it, log))
        settings.write_text("log_level = 5\n")
        os.kill(service.pid, signal.SIGHUP)
        eventually("a mistake is one line", lambda: bool(lines(service, "config_not_read")))
        assert lines(service, "reloaded")[-1]["log_level"] == "debug"
        assert service.up()


def test_the_state_is_written_to_the_log_on_request(service: Service) -> None:
    with Engine(service, "shown"):
        session = service.session_of("shown")
        os.kill(service.pid, signal.SIGUSR1)
        eventually("it is there", lambda: len(lines(service, "child_state")) >= 5)
    (whole,) = lines(service, "service_state")
    assert whole["state"] == "up" and whole["children"] >= 5
    rows = {line["pid"]: line for line in lines(service, "child_state")}
    assert rows[session.pid]["engine"] == "shown" and rows[session.pid]["state"] == "serving"


def test_debug_lines_are_turned_on_and_off(service: Service) -> None:
    def turned() -> str:
        before = len(lines(service, "log_level_set"))
        os.kill(service.pid, signal.SIGUSR2)
        eventually("it is said", lambda: len(lines(service, "log_level_set")) > before)
        return str(lines(service, "log_level_set")[-1]["log_level"])

    def respawned() -> int:
        before = service.at_rest()
        os.kill(next(before[one] for one in before if one.name == "session"), signal.SIGKILL)
        eventually(
            "a spare comes up",
            lambda: any(
                row.address not in before and row.state == "spare"
                for row in service.processes("session")
            ),
        )
        return len(lines(service, "actor_started"))

    assert turned() == "debug"
    loud = respawned()
    assert loud > 0
    assert turned() == "info"
    assert respawned() == loud


STRANGE = [n for n in signals.SENT if n not in signals.STOP] + sorted(signals.NOTHING)


def test_no_signal_ends_a_service_or_a_child_but_those_that_say_so(service: Service) -> None:
    meant = {signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    before = service.at_rest()
    for number in STRANGE:
        for pid in before.values():
            if pid != service.pid or number not in meant:
                os.kill(pid, number)
    for number in signals.STOP:
        for pid in before.values():
            if pid != service.pid:
                os.kill(pid, number)
    named = {signals.name(n) for n in STRANGE if n not in meant | signals.NOTHING}
    eventually(
        "each is named once",
        lambda: {line["signal"] for line in lines(service, "signal_ignored")} == named,
    )
    assert "Current thread" in service.log(), "a child shows its threads on SIGUSR1"
    with Engine(service, "after") as engine:
        engine.fill([0], seed=2)
        assert engine.client.save(keys(1, seed=2), [0], timeout=PATIENCE_S).saved == 1
        assert before.items() <= {row.address: row.pid for row in service.processes()}.items()


def is_stopped(pid: int, wanted: bool = True) -> bool:
    """Whether a process is stopped, or is not."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return (stat.rsplit(")", 1)[1].split()[0] == "T") is wanted


def test_job_control_stops_everybody_and_goes_on(service: Service) -> None:
    before = service.at_rest()
    for number in (signal.SIGTSTP, signal.SIGCONT):
        os.killpg(service.pid, number)
        for pid in before.values():
            eventually("it does so", partial(is_stopped, pid, number == signal.SIGTSTP))
    assert before.items() <= {row.address: row.pid for row in service.processes()}.items()


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGPWR])
def test_quit_waits_for_nobody_and_a_power_failure_is_a_stop(tmp_path: Path, number: int) -> None:
    with Service(tmp_path / "run") as service, Engine(service):
        if number == signal.SIGQUIT:
            for address, pid in service.at_rest(engines=1).items():
                if address.name == "session":
                    os.kill(pid, signal.SIGSTOP)
        assert service.stop(number) == 0
        assert service.left_over() == []
        assert lines(service, "stopping")[0]["signal"] == signals.name(number)


def test_an_abort_shows_where_it_hangs_and_ends_everybody(tmp_path: Path) -> None:
    service = Service(tmp_path / "run")
    service._command = ["bash", "-c", 'ulimit -c 0; exec "$0" "$@"', *service._command]
    with service:
        assert service.stop(signal.SIGABRT) == -signal.SIGABRT
        eventually("nobody is left", lambda: service.left_over() == [])
        assert "Fatal Python error: Aborted" in service.log() and "_turn" in service.log()


class Manager:
    """A service manager with a watchdog, as far as a service sees it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.path = path

    def pings(self) -> int:
        """Signs of life since the last look."""
        found = 0
        while select.select([self.socket], [], [], 0)[0]:
            found += b"WATCHDOG=1" in self.socket.recv(4096)
        return found


WATCHDOG_S = 1


def test_a_hung_supervisor_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manager = Manager(Path(folder, "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
        monkeypatch.setenv("WATCHDOG_USEC", str(WATCHDOG_S * 1_000_000))
        with manager.socket, Service(tmp_path / "run") as service:
            eventually("it gives signs of life", lambda: manager.pings() > 0)
            (index,) = service.processes("index")
            assert b"WATCHDOG" not in Path(f"/proc/{index.pid}/environ").read_bytes()
            os.kill(index.pid, signal.SIGSTOP)
            eventually("a child that hangs takes none away", lambda: manager.pings() > 0)
            os.kill(service.pid, signal.SIGSTOP)
            eventually("it is stopped", lambda: is_stopped(service.pid))
            manager.pings()
            assert not select.select([manager.socket], [], [], 2 * WATCHDOG_S)[0]
            os.kill(service.pid, signal.SIGCONT)
            eventually("it lives again", lambda: manager.pings() > 0)
