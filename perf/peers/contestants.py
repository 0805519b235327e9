"""Who takes part in a table of perf/peers: where each is installed, and the process that drives it.

A peer lives in a virtual environment of its own, FOLDER/NAME, which `python -m perf.peers.install`
makes, with the versions pinned that were tried.  Whoever is not installed has a line under the
table instead of its rows, so every table can be made without any peer.

A contestant gets `perf` alone from this checkout, by a link in a temporary folder, and whatever
else it needs from its own environment: there the original's package is called `pegaflow` too.
What ends a table ends its contestants: first by the end of their orders, else by a signal, and
after END_S seconds by SIGKILL to all that they have started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf.machine import ENVIRONMENT
from perf.peers.obey import Size

END_S = 30.0
OURS, BEFORE = "ours", "before"


@dataclass(frozen=True)
class Peer:
    """How a peer is installed, and what drives it."""

    module: str
    requirements: tuple[str, ...]  # exact versions; nothing that these depend on comes with them
    over: str = ""  # what the environment must have that it is laid over, if it is


PEERS = {
    "original": Peer("perf.peers.original", ("pegaflow-llm==0.25.1",)),
    "lmcache": Peer(
        "perf.peers.lmcache",
        ("lmcache==0.5.6", "opentelemetry-exporter-prometheus==0.66b2"),
        over="vLLM for the CPU, as tests/connectors/vllm/install.sh makes it",
    ),
}
"""Mooncake Store is not among them: the wheel of 0.3.13.post1 that needs no CUDA,
mooncake-transfer-engine-non-cuda, cannot be imported where there is no libibverbs.so.1."""


def default_folder() -> Path:
    """Where the environments are if nobody says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "pegaflow", "peers")


def interpreter(folder: Path, name: str) -> Path:
    """The Python of a peer's environment."""
    return folder / name / "bin" / "python"


@dataclass(frozen=True)
class Entry:
    """One contestant of a table."""

    name: str
    python: str
    module: str
    path: tuple[str, ...]  # where Python finds more, after `perf`

    def missing(self) -> str:
        """Why it cannot take part, in one line; empty if it can."""
        if Path(self.python).exists():
            return ""
        return f"{self.name}: not installed (python -m perf.peers.install {self.name})"


def entries(against: str | None, peers: Path | None = None) -> list[Entry]:
    """Ours, another checkout, and the peers, in the order of their rows.

    Args:
        peers: the folder of their environments; None: none takes part.
    """
    ours = "perf.peers.ours"
    found = [Entry(OURS, sys.executable, ours, (ENVIRONMENT["PYTHONPATH"],))]
    if against:
        checkout = Path(against).absolute()
        if not (checkout / "pegaflow" / "__init__.py").exists():
            raise UserError(f"--against {against}: no checkout of PegaFlow is there")
        found.append(Entry(BEFORE, sys.executable, ours, (str(checkout),)))
    if peers is not None:
        for name, peer in PEERS.items():
            found.append(Entry(name, str(interpreter(peers, name)), peer.module, ()))
    return found


class Handle:
    """A contestant that runs."""

    def __init__(self, name: str, process: subprocess.Popen[str], said: Path) -> None:
        self.name = name
        self._process = process
        self._said = said

    def ask(self, what: str, *arguments: Any) -> Any:
        """Order something; its answer.

        Raises:
            UserError: it did not work; with the contestant's own words.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps([what, arguments]), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = self._said.read_text(errors="replace").strip().splitlines()
            raise UserError(f"{self.name} has ended: {words[-1] if words else 'it said nothing'}")
        answer = json.loads(line)
        if "failed" in answer:
            raise UserError(f"{self.name}: {answer['failed']}")
        return answer["answer"]

    def end(self) -> None:
        """Until nothing of it is left."""
        process = self._process
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(entry: Entry, size: Size, *more: str) -> Iterator[Handle]:
    """Start a contestant, ready for orders.

    Args:
        more: of its command line, if it is of PegaFlow.

    Raises:
        UserError: it cannot be had.
    """
    # A short path: sockets are in it.
    with tempfile.TemporaryDirectory(prefix="p-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "perf").symlink_to(Path(__file__).absolute().parents[1])
        said = folder / "said"
        path = os.pathsep.join((name, *entry.path))
        command = [entry.python, "-P", "-m", entry.module]
        command += [str(number) for number in (size.pool, size.blocks, size.block)]
        handle: Handle | None = None
        try:
            with said.open("wb") as log, signals.held():
                process = subprocess.Popen(
                    [*command, *more],
                    env={**os.environ, "PYTHONPATH": path, "TMPDIR": name},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=name,
                    text=True,
                    start_new_session=True,
                )
                handle = Handle(entry.name, process, said)
            handle.answer()
            yield handle
        finally:
            if handle is not None:
                handle.end()


@contextmanager
def all_running(
    chosen: Sequence[Entry], size: Size, ways: dict[str, str] | None = None
) -> Iterator[tuple[list[Handle], list[str]]]:
    """Start all that can be had; and a line for each other one."""
    with ExitStack() as stack:
        handles, lines = [], []
        for entry in chosen:
            missing = entry.missing()
            if missing:
                lines.append(missing)
                continue
            more = (ways or {}).get(entry.name, "auto")
            own = (more,) if entry.module == "perf.peers.ours" else ()
            try:
                handles.append(stack.enter_context(running(entry, size, *own)))
            except UserError as error:
                if entry.name == OURS:
                    raise
                lines.append(str(error))
        yield handles, lines
