"""Every signal has one meaning, and the README says it; commands end as a signal wants them to."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pegaflow.service import signals
from tests.procs.service import UNIGNORED

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TABLE = README[README.index("| signal | |") : README.index("Its children leave")]


def rows() -> dict[str, str]:
    """The meaning of each signal, by its name without SIG."""
    found = {}
    for names, meaning in re.findall(r"^\| ([A-Z0-9, to]+) \| (.*) \|$", TABLE, re.M):
        for name in re.findall("[A-Z0-9]+", names):
            assert name not in found, f"{name} has two meanings"
            found[name] = meaning
    return found


def test_the_readme_has_every_signal_of_this_system() -> None:
    aliases = {"SIGCLD": "CHLD", "SIGPOLL": "IO", "SIGIOT": "ABRT"}
    names = {aliases.get(name, name.removeprefix("SIG")) for name in signal.Signals.__members__}
    assert names - set(rows()) == set()


def test_each_has_the_meaning_that_its_set_has() -> None:
    def named(meaning: str) -> set[int]:
        return {
            getattr(signal, f"SIG{name}")
            for name, said in rows().items()
            if said.startswith(meaning)
        }

    assert named("drain and stop") == signals.STOP
    assert named("a fault") == signals.FAULTS
    assert named("nothing") == signals.NOTHING
    assert named("job control") == signals.JOB_CONTROL | {signal.SIGSTOP}
    own = named("stop at once") | named("open the log") | named("write") | named("log at")
    assert own == {signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    meant = signals.STOP | signals.FAULTS | signals.NOTHING | signals.JOB_CONTROL | own
    rest = set(signal.valid_signals()) - meant - {signal.SIGKILL, signal.SIGSTOP}
    assert rest <= signals.SENT
    assert {n for n in rest if n < signal.SIGRTMIN} == named("a line") - {
        signal.SIGRTMIN,
        signal.SIGRTMAX,
    }


def test_every_signal_has_a_name() -> None:
    assert signals.name(signal.SIGHUP) == "SIGHUP"
    assert signals.name(signal.SIGRTMIN + 2) == "SIGRTMIN+2"


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [
        *UNIGNORED,
        sys.executable,
        "-c",
        "import os, signal\nfrom pegaflow.service import signals\n" + script,
    ]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_comes_before_a_command_is_ready_waits() -> None:
    done = run(
        "signals.hold()\n"
        "for n in signals.SENT: os.kill(os.getpid(), n)\n"
        "print('alive', flush=True)\n"
        "import faulthandler; faulthandler.enable()\n"
        "heard = list(signals.Signals().read())\n"
        "print({h.number for h in heard} == signals.SENT, {h.sender for h in heard})\n"
        "print(os.getpid())\n"
    )
    alive, heard, pid = done.stdout.splitlines()
    assert (alive, heard) == ("alive", f"True {{{pid}}}"), done.stderr


def test_a_burst_of_signals_is_heard_and_ends_nobody() -> None:
    done = run(
        "import faulthandler; faulthandler.enable()\n"
        "signals.hold()\n"
        "heard = signals.Signals()\n"
        "for n in sorted(signals.SENT) * 20: os.kill(os.getpid(), n)\n"
        "print({h.number for h in heard.read()} == signals.SENT)\n"
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_command_cleans_up_and_dies_of_the_first_signal(number: int) -> None:
    done = run(
        "signals.interruptible()\n"
        "try:\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {number})\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        for n in signals.ENDING: os.kill(os.getpid(), n)\n"
        "        print('clean')\n"
        "except signals.Interrupted as end:\n"
        "    signals.die_of(end.number)\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("clean\n", "", -number)


@pytest.mark.parametrize("thread", [False, True])
def test_a_signal_waits_for_the_end_of_a_critical_stretch(thread: bool) -> None:
    done = run(
        "import threading, time\n"
        "signals.interruptible()\n"
        + ("threading.Thread(target=signal.pause, daemon=True).start()\n" if thread else "")
        + "try:\n"
        "    with signals.held():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        sum(range(100000))\n"
        "        print('whole')\n"
        "    print('not reached')\n"
        "except signals.Interrupted as end:\n"
        "    print(end.number == signal.SIGTERM)\n"
    )
    assert done.stdout == "whole\nTrue\n", done.stderr


def test_who_is_started_meanwhile_is_deaf_until_it_says_otherwise() -> None:
    inner = (
        "import os, signal; from pegaflow.service import signals\n"
        "for n in signals.SENT: os.kill(os.getpid(), n)\n"
        "signals.deaf()\n"
        "for n in signals.SENT - {signal.SIGUSR1} | signals.STOP: os.kill(os.getpid(), n)\n"
        "print('alive')\n"
    )
    done = run(
        "import subprocess, sys\n"
        "signals.interruptible()\n"
        "with signals.held():\n"
        f"    child = subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
        "os._exit(child.wait())\n"
    )
    assert done.stdout == "alive\n" and done.returncode == 0, done.stderr


def test_what_nohup_ignores_stays_ignored() -> None:
    done = run(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signals.interruptible()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('alive')\n"
    )
    assert done.stdout == "alive\n"


WATCHED = """
import _signal, sys
open_to = []
def hook(event, given):
    if event == "import" and {_signal.SIGINT, _signal.SIGUSR1} - _signal.pthread_sigmask(0, ()):
        open_to.append(given[0])
sys.addaudithook(hook)
from pegaflow.service.entry import pegaflow
sys.argv = ["pegaflow", "--version"]
try:
    pegaflow()
finally:
    print(*open_to)
"""
"""An installed script, and the modules that are imported while a signal may end it."""


def test_signals_wait_before_anything_else_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *version, imported = done.stdout.splitlines()
    assert version and version[0].startswith("pegaflow ")
    assert set(imported.split()) <= {
        "pegaflow",
        "pegaflow.service",
        "pegaflow.service.entry",
        "_signal",
    }
