"""Whether a cache service is there; and one of one's own, for a demonstration or a benchmark.

A service of one's own is the real `pegaflow serve` in a new temporary run directory and in a
session of its own, so that Ctrl-C reaches us and not the group behind our back. Whatever ends us (a
signal too, where `signals.interruptible` was called) stops it with SIGTERM; whoever does not go by
then is killed with its whole group, and the directory is removed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pegaflow.client import Client, inspect
from pegaflow.client.place import as_url, client_trust, ipc_path
from pegaflow.client.presence import look
from pegaflow.core.errors import UserError
from pegaflow.service import signals
from pegaflow.service.rundir import front_desk
from pegaflow.service.settings import Settings
from pegaflow.wire.message import WireError
from pegaflow.wire.units import Count, Seconds

START_SECONDS: Seconds = 30.0
"""A pool on a slow machine; usually a fraction of a second."""

STOP_SECONDS: Seconds = 10.0
"""Twice what the service promises."""

CHECK_SECONDS: Seconds = 2.0
"""A service that is there answers within milliseconds, a busy one within a beat."""

TOLD_LINES: Count = 30
"""Of the log, where whoever has started the service fails: more than one death has to say."""

_LOOK_SECONDS = 0.02  # how often we look for the socket


def missing(endpoint: str | None) -> str:
    """Why no service is to be had there, in one line; empty if one answers.

    Args:
        endpoint: of its front desk; None for the default one.
    """
    where = as_url(endpoint)
    why = f"no service answers at {where}: start one with `pegaflow serve`"
    try:
        path = ipc_path(where)
        if path is not None:
            seen = look(path, client_trust(None))
            why = seen.advice
            if not seen.listens:
                return why
        report = inspect(where, CHECK_SECONDS)
    except WireError as error:
        return f"the service at {where} is of another version: {error}"
    except (ValueError, OSError) as error:
        return f"no service can be asked at {where}: {error}"
    return "" if report else why


@contextmanager
def running(
    pool_bytes: int, extent_bytes: int = Settings.extent_size, extra: Sequence[str] = ()
) -> Iterator[str]:
    """Start a service with a pool of this size; its endpoint, once engines can attach.

    Args:
        pool_bytes: size of the pool.
        extent_bytes: unit in which page sizes share it.
        extra: more of the command line of `pegaflow serve`.

    Raises:
        UserError: it does not start; the line is the service's own.
    """
    with tempfile.TemporaryDirectory(prefix="pegaflow-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        arguments = ["--pool-size", str(pool_bytes), "--extent-size", str(extent_bytes)]
        arguments += ["--http-addr", "none", "--log-level", "warning", *extra]
        with group(folder / "run", folder / "log", arguments) as process:
            endpoint = front_desk(folder / "run")
            _wait(process, endpoint, folder / "log")
            try:
                yield endpoint
            except (Exception, signals.Interrupted) as why:
                if not (isinstance(why, signals.Interrupted) and why.number == signal.SIGINT):
                    _tell(folder / "log")  # what it has said of its reason goes with the directory
                raise


@contextmanager
def group(
    run_dir: Path,
    log: Path,
    arguments: Sequence[str],
    program: str = "pegaflow",
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """`pegaflow serve`, just started: neither a process nor a pool of it is left afterwards.

    Args:
        run_dir: its run directory, which must be nobody else's.
        log: where all it says goes.
        arguments: more of the command line of `serve`.
        program: the module that is run, `pegaflow` or one that does the same.
        environment: of the service; ours if None.

    Raises:
        UserError: the pool cannot be removed; if something else went wrong before, that is raised,
            and has this as a note.
    """
    command = [sys.executable, "-m", program, "serve", "--run-dir", str(run_dir)]
    command += ["--no-keep-pool", *arguments]
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as said, signals.held():
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        yield process
    except BaseException as error:
        if process is not None:
            try:
                _end(process, run_dir)
            except UserError as second:  # what went wrong first is what its reader has to know
                error.add_note(f"and then: {second}")
        raise
    _end(process, run_dir)


def _end(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    stop(process)
    _purge(run_dir)


def _purge(run_dir: Path) -> None:
    """Remove the pool of a service that was killed; every other has done it by itself."""
    from pegaflow.service import serve  # all that a service consists of

    if run_dir.is_dir():
        serve.purge(run_dir)


def _tell(log: Path) -> None:
    """Write the last lines of the service's log to stderr."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    sys.stderr.write("".join(lines[-TOLD_LINES:]))


def _wait(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if not os.path.exists(endpoint):
            time.sleep(_LOOK_SECONDS)
            continue
        probe = Client(f"probe-{os.getpid()}", bytes(16), endpoint=endpoint)
        there = probe.connect(1.0)
        probe.close()
        if there:
            return
    lines = log.read_text(errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("pegaflow: ") if lines else "it said nothing"
    raise UserError(f"the service did not start: {said}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a service that leads its process group, or kill it with the group."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
