"""What the connector costs an engine that finds nothing: python -m perf.cold (needs vLLM)

Two real vLLM engines on the CPU, one with the connector and one without, run batches of new prompts
in turn: every block is computed, and the first engine saves it.  While one runs, the other is
stopped (SIGSTOP).  Each row is a pair of its own: so many cores for the engine's OpenMP threads,
bound to them by VLLM_CPU_OMP_THREADS_BIND or not.  The figures are the medians of tokens a second,
and of the ratios of neighbours.

Then both rest, in turn, and the wake-ups of their threads are counted: what is idle stays so.

Goal: 0.97 of the engine without it where a core is free.  Where there is none, what is saved is
copied in the engine's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from pegaflow.client import inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from perf import command, machine
from perf.coldengine import NEW_TOKENS, PROMPT_TOKENS, PROMPTS
from perf.machine import ENVIRONMENT, verdict

COLUMNS = (
    *("cores", "bound", "none tok/s", "ours tok/s", "ratio", "goal", "saved"),
    *("idle wakes/s none", "ours", "load"),
)
GOAL = 0.97
POOL = 1 << 30
SETTLE_S = 0.7  # for the saves of a batch
IDLE_S = 5.0  # over which wake-ups are counted
GOODBYE_S = 20.0  # for an engine that ends


class Engine:
    """One engine; it is stopped unless it runs a batch."""

    def __init__(self, model: str, endpoint: str, cores: int, bound: bool) -> None:
        own = sorted(os.sched_getaffinity(0))[:cores]
        more = {
            "OMP_NUM_THREADS": str(cores),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, own)) if bound else "nobind",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_USE_SPINLOOP_EXT": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "perf.coldengine", model, endpoint],
            env={**ENVIRONMENT, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def up(self) -> None:
        """Wait until it could run a batch."""
        self._answer()
        self._signal(signal.SIGSTOP)

    def run(self, seed: int) -> float:
        """Tokens a second of a batch."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        found: float = self._answer()["tokens_per_s"]
        time.sleep(SETTLE_S)
        self._signal(signal.SIGSTOP)
        return found

    def idle(self) -> float:
        """Wake-ups a second of all its threads while it has nothing to do."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        before = wakes(self._process.pid)
        time.sleep(IDLE_S)
        found = (wakes(self._process.pid) - before) / IDLE_S
        self._signal(signal.SIGSTOP)
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                answer: dict[str, Any] = json.loads(line[7:])
                return answer
        raise UserError(f"an engine ended with {self._process.wait()}")

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Let it go by itself, for it has files in /dev/shm, or end it."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()


def wakes(group: int) -> int:
    """How often the threads of a process group went to sleep so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[2]) != group:
                continue
            for status in stat.parent.glob("task/*/status"):
                words = status.read_text().split()
                total += int(words[words.index("voluntary_ctxt_switches:") + 1])
    return total


def saved(endpoint: str) -> int:
    """Bytes that were saved so far."""
    report = inspect(endpoint)
    rows = report.processes if report is not None else ()
    return sum(c.value for row in rows for c in row.counters if c.name == "bytes_sealed")


def row(model: str, endpoint: str, cores: int, bound: bool, turns: int) -> list[str]:
    """One row of the table."""
    before = saved(endpoint)
    with ExitStack() as stack:
        none, ours = (Engine(model, where, cores, bound) for where in ("", endpoint))
        for engine in (none, ours):
            stack.callback(engine.close)
        for engine in (none, ours):
            engine.up()
        figures = []
        for turn in range(turns + 1):
            seeds = (time.monotonic_ns(), time.monotonic_ns() + 1)
            pair = [engine.run(seed) for engine, seed in zip((none, ours), seeds, strict=True)]
            figures += [pair] if turn else []  # the first warms up
        rests = [f"{engine.idle():.0f}" for engine in (none, ours)]
        mebibytes = (saved(endpoint) - before) >> 20
    alone, beside = (median(column) for column in zip(*figures, strict=True))
    ratio = median(ours / none for none, ours in figures)
    free = cores < len(os.sched_getaffinity(0))
    goal = verdict(ratio, GOAL, least=True) if free else ""
    shown = (f"{alone:.0f}", f"{beside:.0f}", f"{ratio:.2f}", goal, f"{mebibytes} MiB")
    return [str(cores), "yes" if bound else "no", *shown, *rests, machine.load()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="batches of each engine")
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2], help="of the engine")
    parser.add_argument("--bound", choices=("yes", "no", "both"), default="both")
    given = parser.parse_args()
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed here")
    each = f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones each"
    table = Table(*COLUMNS, box=None, caption=f"batches of {each}; nothing is found")
    bindings = {"yes": [True], "no": [False], "both": [True, False]}[given.bound]
    with (
        tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as model,
        service.running(POOL) as endpoint,
    ):
        make = [sys.executable, "-m", "perf.coldengine", "--make", model]
        subprocess.run(make, env=ENVIRONMENT, check=True, capture_output=True)
        for cores in given.cores:
            for bound in bindings:
                table.add_row(*row(model, endpoint, cores, bound, given.turns))
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.cold", main)
