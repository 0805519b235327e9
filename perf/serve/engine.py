"""`vllm serve` for perf.serve: an engine, its own prefix cache, and what it has counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf.peers.obey import free_port
from perf.serve.contestants import Contestant, answers
from perf.serve.cores import Cores, on

FOUND = "vllm:external_prefix_cache_hits_total"
START_S, STOP_S, FREE_S = 240.0, 30.0, 30.0
SETTLE_S = 1.0  # for what is saved after the last answer
KV_GIB, MAX_TOKENS, REQUESTS = 1, 4096, 16
ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--seed", "0", "--no-enable-log-requests"),
    *("--max-model-len", str(MAX_TOKENS), "--max-num-seqs", str(REQUESTS)),
)
SETTINGS = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
    "VLLM_SERVER_DEV_MODE": "1",  # to be told to forget its own cache
    "VLLM_USE_SPINLOOP_EXT": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
}


class Engine:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def forget(self) -> None:
        """Its own prefix cache is empty: what is found from here on was found by the connector.

        Raises:
            UserError: blocks are held although every request was answered.
        """
        time.sleep(SETTLE_S)
        until = time.monotonic() + FREE_S
        while time.monotonic() < until:
            asked = urllib.request.Request(f"{self.url}/reset_prefix_cache", method="POST")
            with urllib.request.urlopen(asked, timeout=FREE_S) as answer:
                if json.load(answer)["success"]:
                    return
            time.sleep(0.2)
        raise UserError("an engine does not give its blocks back")

    def found(self) -> int:
        """Tokens that its connector has found so far."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=FREE_S) as answer:
            return counted(answer.read().decode(), FOUND)


def counted(page: str, name: str) -> int:
    """The sum of a counter over its labels, on a page of metrics."""
    lines = (line.split() for line in page.splitlines() if not line.startswith("#"))
    return sum(round(float(line[-1])) for line in lines if line and line[0].split("{")[0] == name)


@contextmanager
def running(
    contestant: Contestant, model: Path, told: str, *, cores: Cores, log: Path
) -> Iterator[Engine]:
    """Start it; it answers.

    Args:
        told: its --kv-transfer-config; empty: it has no connector.
        log: where all it says goes.

    Raises:
        UserError: it does not start, with its last words.
    """
    port = free_port()
    command = [str(contestant.python), "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command += [*ARGUMENTS, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--kv-transfer-config", told] if told else []
    threads = {
        "OMP_NUM_THREADS": str(len(cores.engine)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(cores.engine))),
    }
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as said, signals.held(), on(cores.engine):
            process = subprocess.Popen(
                command,
                env={**os.environ, **SETTINGS, **threads, "PYTHONPATH": contestant.path},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{port}"
        answers(process, f"{url}/health", START_S, log)
        yield Engine(url)
    finally:
        if process is not None:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """By itself if it can, for it has files in /dev/shm; nothing that it started is left."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
