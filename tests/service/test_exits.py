"""How a child's end is told."""

import signal
import subprocess
import sys

import pytest

from pegaflow.service import exits


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-signal.SIGBUS, "killed by SIGBUS"),
        (-40, "killed by signal 40"),
    ],
)
def test_words(code: int, words: str) -> None:
    assert exits.words(code) == words


def test_a_real_death() -> None:
    died = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"])
    assert exits.words(died.returncode) == "killed by SIGTERM"
