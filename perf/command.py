"""How the commands of perf/ end: nothing that they started is left, whatever ends them.

What the user can put right is one line.  SIGINT, SIGTERM and SIGHUP raise an exception in the main
thread, as in the commands of `pegaflow`, so that a service stops and its pool goes, and so does a
process that runs beside it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pegaflow.service import cli, signals
from perf.machine import ENVIRONMENT


def run(program: str, main: Callable[[], None]) -> None:
    """Run the command of this name, and end."""
    signals.interruptible()
    cli.run(program, main)


@contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A process that does the same all the time, and is killed in the end."""
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals.held():
            process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()
