"""A real service for a test: started, watched, stopped, and everything it left behind counted."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.client import Client, LookupDone, inspect
from pegaflow.service.serve import shm_stem
from pegaflow.wire.control import ProcessRow, Report
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.values import SESSION, Address

PATIENCE_S = 20.0
"""How long a test waits for something that must happen, on a machine with two busy cores."""

START_S = 60.0
"""The same for a service that starts: five interpreters that import all they need."""

SPARES = 2
"""Sessions kept ready by a service that was told nothing else."""

UNIGNORED = ("env", "--default-signal=INT,HUP")
"""Starts a command which those signals end, though whoever runs the tests ignores them (nohup)."""


def logged(log: str) -> list[dict[str, Any]]:
    """The lines of a log in JSON, even where the stacks of another process, which are written piece
    by piece, have one of them in their midst."""
    decoder = json.JSONDecoder()
    return [
        decoder.raw_decode(log, found.start())[0] for found in re.finditer(r'\{"actor": .*\}', log)
    ]


def eventually(what: str, check: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    """Wait until `check` holds; the select is a pause that no signal of a child disturbs."""
    until = time.monotonic() + patience
    while not check():
        assert time.monotonic() < until, f"not within {patience} s: {what}"
        select.select([], [], [], 0.01)


class Service:
    """`pegaflow serve` as a child process in its own process group."""

    def __init__(
        self,
        run_dir: Path,
        *,
        pool_size: str = "64MiB",
        http_addr: str = "none",
        extra: tuple[str, ...] = (),
    ) -> None:
        self.run_dir = run_dir
        self.endpoint = str(run_dir / "pegaflow.sock")
        self._command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(run_dir)]
        self._command += ["--pool-size", pool_size, "--http-addr", http_addr]
        self._command += ["--log-format", "json", *extra]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Pid of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> "Service":
        """Start it and wait until allocator, index and a spare are up."""
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        log = (self.run_dir / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )
        eventually("the service is up", self.up, START_S)
        return self

    def up(self) -> bool:
        """Whether the core is up and a session can be had."""
        assert self._process is not None and self._process.poll() is None, self.log()
        report = inspect(self.endpoint, timeout=0.5)
        states = [(r.address.name, r.state) for r in report.processes] if report else []
        return {("allocator", "up"), ("index", "up"), ("session", "spare")} <= set(states)

    def report(self) -> Report:
        """What the front desk says, as soon as a busy supervisor answers: its silence does not mean
        that nobody is there."""
        told: list[Report] = []

        def answered() -> bool:
            told.extend(filter(None, [inspect(self.endpoint, timeout=0.5)]))
            return bool(told)

        eventually("the front desk answers", answered)
        return told[0]

    def processes(self, name: str = "") -> list[ProcessRow]:
        """The living processes, of one name or all."""
        return [r for r in self.report().processes if not name or r.address.name == name]

    def at_rest(self, engines: int = 0) -> dict[Address, int]:
        """The pids of all, once nobody comes or goes: so many engines are served, and the others'
        sessions have ended; each spare that was given to one is replaced."""
        calm = ["serving"] * engines + ["spare"] * SPARES
        rows: list[ProcessRow] = []

        def rests() -> bool:
            rows[:] = self.processes()
            return self.up() and sorted(r.state for r in rows if r.address.name == SESSION) == calm

        eventually(f"{engines} engines are served, and nobody comes or goes", rests)
        return {row.address: row.pid for row in rows}

    def session_of(self, engine: str) -> ProcessRow:
        """The session that serves this engine, as soon as a busy supervisor says so."""
        found: list[ProcessRow] = []

        def seen() -> bool:
            found.extend(r for r in self.processes("session") if r.engine == engine)
            return bool(found)

        eventually(f"the session of {engine} is shown", seen)
        return found[0]

    def counter(self, name: str) -> int:
        """A number summed over all processes, as of their last beats."""
        return sum(c.value for r in self.processes() for c in r.counters if c.name == name)

    def status(self) -> dict[str, Any]:
        """`pegaflow status --format json`, parsed."""
        command = [sys.executable, "-m", "pegaflow", "status", "--run-dir", str(self.run_dir)]
        out = subprocess.run([*command, "--format", "json"], capture_output=True, check=True)
        parsed: dict[str, Any] = json.loads(out.stdout)
        return parsed

    def log(self) -> str:
        """Everything the service has said."""
        return (self.run_dir / "log").read_text()

    def status_text(self) -> str:
        """`pegaflow status`, its lines joined."""
        command = [sys.executable, "-m", "pegaflow", "status", "--run-dir", str(self.run_dir)]
        out = subprocess.run(command, capture_output=True, check=True, text=True)
        return " ".join(out.stdout.split())

    def settled(self) -> None:
        """Wait until three books agree: what the allocator counts as held is what the sessions
        state, what it counts as sealed is what the index has, and all of it is the pool."""
        parts = ("free", "held", "sealed", "absent", "waste")

        def adds_up() -> bool:
            total = self.counter("pool_capacity_bytes")
            return (
                total > 0
                and total == sum(self.counter(f"pool_{p}_bytes") for p in parts)
                and self.counter("pool_held_bytes") == self.counter("session_held_bytes")
                and self.counter("pool_sealed_bytes") == self.counter("resident_bytes")
            )

        eventually("free + held + sealed = total", adds_up)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it by a signal; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def resume(self) -> None:
        """Let a stopped supervisor go on, if it still lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the whole group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def left_over(self) -> list[str]:
        """Processes of the group that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[2]) == self.pid and fields[0] != "Z":
                found.append(path.parent.name)
        return found

    def __enter__(self) -> "Service":
        try:
            return self.start()
        except AssertionError as err:  # it must not burn beside all tests that follow
            self.__exit__(AssertionError, err, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            finally:
                if self._process.poll() is None:
                    self.kill()
        for path in Path("/dev/shm").glob(f"{shm_stem(self.run_dir)}.*"):
            path.unlink()  # of a life that was killed; the next one here would do it


class Patient(Client):
    """A client that waits for a lookup as long as a test does: an engine would compute after a
    second, which is what a busy machine may take."""

    def lookup(self, keys: Sequence[bytes], *, timeout: float = PATIENCE_S) -> LookupDone:
        """As of any client."""
        return super().lookup(keys, timeout=timeout)


class Filled:
    """What an engine of a test has in its blocks."""

    view: npt.NDArray[np.uint8]  # blocks are its second axis

    def fill(self, blocks: list[int], seed: int) -> None:
        """Content of a block that depends on seed, layer and its place in `blocks`."""
        for place, block in enumerate(blocks):
            self.view[:, block] = content(self.view[:, block].shape, seed + place)

    def holds(self, blocks: list[int], seed: int) -> bool:
        """Whether these blocks have the content that `fill` gives."""
        return all(
            np.array_equal(self.view[:, b], content(self.view[:, b].shape, seed + i))
            for i, b in enumerate(blocks)
        )


class Engine(Filled):
    """A client with a small KV memory of its own: `blocks` blocks of `layers` x `bytes_`."""

    def __init__(
        self,
        service: Service,
        name: str = "engine",
        *,
        blocks: int = 64,
        layers: int = 2,
        bytes_: int = 32768,
        generation: bytes | None = None,
        way: str = "auto",
    ) -> None:
        stride = blocks * bytes_
        self.layout = Layout(
            blocks,
            tuple(LayerLayout(0, i * stride, bytes_, bytes_) for i in range(layers)),
            "uint8",
            "test",
        )
        self.memory: npt.NDArray[np.uint8] = np.zeros(layers * stride, np.uint8)
        self.view = self.memory.reshape(layers, blocks, bytes_)
        self.client: Client = Patient(
            name, b"tests" * 4, endpoint=service.endpoint, generation=generation, way=way
        )
        self.client.register(self.layout, [self.memory])

    def attach(self) -> "Engine":
        """Connect, or fail the test."""
        assert self.client.connect(PATIENCE_S), self.client.refusal
        return self

    def refused(self, why: str) -> str:
        """Wait until it knows that it is not let in, for a reason with these words; the reason."""
        client = self.client
        eventually(
            f"it is refused: {why}", lambda: not client.connect(0.1) and why in client.refusal
        )
        return client.refusal

    def __enter__(self) -> "Engine":
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()


def content(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.uint8]:
    """Bytes that no other seed has."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def keys(count: int, seed: int = 0) -> list[bytes]:
    """Block hashes of 32 bytes."""
    return [b"%16d%16d" % (seed, i) for i in range(count)]
