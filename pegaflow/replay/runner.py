"""Runs a replay: engine processes side by side, their records gathered, one killed if asked.

Request `i` goes to engine `i % engines`; each engine works through its own list as fast as it can.
Engines are started from the calling (main) thread, each with a job file, its own stdout pipe and a
file for stderr; one loop over a selector reads them all. A `kill` SIGKILLs its engine as soon as
half of that engine's requests are reported; when the pipe is at its end a successor of the same id
gets the requests that were not. So each request is replayed, and counted, once.

No engine outlives us: a signal waits until the one that is being started is in our list.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from pegaflow.service import signals

from .engine import Attached, Job, Record, Shape
from .trace import Trace

ENGINE = (sys.executable, "-m", "pegaflow.replay.engine")
_READ_BYTES = 1 << 16  # a pipe's default capacity
_REAP_SECONDS = 10.0  # an engine whose stdout is at its end has only its client to close
_MEMCPY_BYTES = 64 << 20  # far more than the caches hold
_MEMCPY_PASSES = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, and how."""

    trace: Trace
    engines: int
    shape: Shape  # of each engine's memory
    namespace: bytes
    endpoint: str | None = None
    kill: int | None = None  # the engine to kill half way and start again
    command: tuple[str, ...] = ENGINE  # a job file's path is appended


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    records: dict[int, Record] = field(default_factory=dict)  # by request index
    attached: list[tuple[str, Attached]] = field(default_factory=list)  # engine, in order of time
    restarted: Attached | None = None  # the successor of the killed engine
    errors: list[str] = field(default_factory=list)  # engines that failed, a line each
    seconds: float = 0.0
    memcpy: float = 0.0  # bytes per second of plain copies of blocks, before and after the replay


@dataclass(slots=True)
class _Running:
    """One engine process."""

    number: int
    requests: list[tuple[int, int]]  # its job
    process: subprocess.Popen[bytes]
    log: Path  # its stderr
    life: int = 0  # 1: the successor of a killed one
    reported: int = 0  # records read
    rest: bytes = b""  # read, but not yet a whole line
    killed: bool = False


class Runner:
    """One replay; `run` may be called once.

    Args:
        progress: called with each record as it comes, in this thread.
    """

    def __init__(self, plan: Plan, progress: Callable[[Record], None] = lambda record: None):
        self._plan = plan
        self._progress = progress
        self._outcome = Outcome()
        self._running: list[_Running] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> Outcome:
        """Replay everything; no process is left, however this ends."""
        plan, outcome = self._plan, self._outcome
        block_bytes = plan.shape.block_bytes
        before = memcpy_speed(block_bytes)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pegaflow-replay-") as folder, self._selector:
            try:
                plan.trace.save(Path(folder))
                jobs = list(enumerate(plan.trace.ends))
                for number in range(plan.engines):
                    self._start(Path(folder), number, jobs[number :: plan.engines], life=0)
                while self._running:
                    for key, _ in self._selector.select():
                        self._read(key.data, Path(folder))
            finally:
                for engine in self._running:
                    engine.process.kill()
                    engine.process.wait()
                    assert engine.process.stdout is not None
                    engine.process.stdout.close()
        outcome.seconds = time.monotonic() - began
        outcome.memcpy = float(np.median([before, memcpy_speed(block_bytes)]))
        return outcome

    def _start(self, folder: Path, number: int, requests: list[tuple[int, int]], life: int) -> None:
        plan = self._plan
        name = f"engine-{number}"
        path, log = folder / f"{name}.{life}.json", folder / f"{name}.{life}.log"
        job = Job(
            engine=name,
            namespace=plan.namespace.hex(),
            endpoint=plan.endpoint,
            shape=plan.shape,
            spawned_ns=0,
            tree=str(folder),
            requests=requests,
        )
        path.write_text(json.dumps(asdict(replace(job, spawned_ns=time.monotonic_ns()))))
        with log.open("wb") as errors, signals.held():
            process = subprocess.Popen(
                [*plan.command, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            engine = _Running(number, requests, process, log, life=life)
            self._running.append(engine)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, engine)

    def _read(self, engine: _Running, folder: Path) -> None:
        assert engine.process.stdout is not None
        data = os.read(engine.process.stdout.fileno(), _READ_BYTES)
        if not data:
            self._ended(engine, folder)
            return
        *lines, engine.rest = (engine.rest + data).split(b"\n")
        for line in lines:
            self._line(engine, json.loads(line))
        half = engine.number == self._plan.kill and 2 * engine.reported >= len(engine.requests)
        if half and not engine.life and not engine.killed:
            engine.killed = True
            engine.process.kill()

    def _line(self, engine: _Running, fields: dict[str, object]) -> None:
        if "index" not in fields:
            attached = Attached(**fields)  # type: ignore[arg-type]
            self._outcome.attached.append((f"engine-{engine.number}", attached))
            if engine.life:
                self._outcome.restarted = attached
            return
        record = Record(**fields)  # type: ignore[arg-type]
        engine.reported += 1
        self._outcome.records[record.index] = record
        self._progress(record)

    def _ended(self, engine: _Running, folder: Path) -> None:
        """Its stdout is at its end: the process is dead or about to be."""
        assert engine.process.stdout is not None
        self._selector.unregister(engine.process.stdout)
        engine.process.stdout.close()
        self._running.remove(engine)
        try:
            code = engine.process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            engine.process.kill()
            code = engine.process.wait()
        left = [job for job in engine.requests if job[0] not in self._outcome.records]
        if engine.killed:
            self._start(folder, engine.number, left, life=1)
        elif code or left:
            lines = engine.log.read_text(errors="replace").strip().splitlines()
            why = lines[-1] if lines else "it said nothing"
            self._outcome.errors.append(f"engine {engine.number} ended with status {code}: {why}")


def run(plan: Plan, progress: Callable[[Record], None] = lambda record: None) -> Outcome:
    """Replay a plan; `progress` is called with each record. Call it from the main thread.

    Raises:
        OSError: the first engine process could not be started.
    """
    return Runner(plan, progress).run()


def memcpy_speed(block_bytes: int) -> float:
    """Bytes per second of copying scattered blocks between two buffers with numpy; a median."""
    count = max(2, _MEMCPY_BYTES // block_bytes)
    source = np.ones((count, block_bytes), dtype=np.uint8)
    target = np.ones((count, block_bytes), dtype=np.uint8)
    step = next(n for n in range(count // 2 + 1, 2 * count) if np.gcd(n, count) == 1)
    pairs = [(n, n * step % count) for n in range(count)]
    speeds = []
    for _ in range(_MEMCPY_PASSES):
        began = time.perf_counter()
        for a, b in pairs:
            target[a] = source[b]
        speeds.append(count * block_bytes / (time.perf_counter() - began))
    return float(np.median(speeds))
