"""Who takes part in perf.serve: the service that each needs, and what its engine is told of it.

`none` has no connector.  `native` is vLLM's own offloading; its class refuses an engine on the CPU
only because of the worker that copies, in whose place it has that of tests/connectors/vllm/real
(offloaded.py), which copies at once in the engine's thread.  Its memory is of the engine's process,
so an engine that has been started again finds nothing.  `lmcache` is LMCache's multiprocess server
with its own chunks (256 tokens) and its own connector, as perf.peers.install has installed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.service import signals
from perf.machine import ENVIRONMENT
from perf.peers import lmcache
from perf.peers.contestants import interpreter
from perf.peers.obey import free_port

NONE, OURS, LMCACHE, NATIVE = "none", "ours", "lmcache", "native"
CHUNK_TOKENS = 256  # LMCache's default
LOOK_S = 0.1


@dataclass(frozen=True)
class Contestant:
    """One of them."""

    name: str
    python: Path  # of its engine
    path: str  # where Python finds more: PYTHONPATH of its engine
    service: Callable[[int], AbstractContextManager[str]]
    """A service with so many bytes, while it runs; what the engine is told, empty for nothing."""
    needs: str = "vllm.version"  # a module

    def missing(self) -> str:
        """Why it cannot take part, in one line; empty if it can."""
        if not self.python.exists():
            return f"{self.name}: no {self.python}"
        environment = {**os.environ, "PYTHONPATH": self.path, "VLLM_TARGET_DEVICE": "cpu"}
        command = [str(self.python), "-P", "-c", f"import {self.needs}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return f"{self.name}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        return ""


def contestants(python: Path, peers: Path) -> list[Contestant]:
    """All, in the order of their turns.

    Args:
        python: of the environment with vLLM.
        peers: the folder of perf.peers.install.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    checkout = os.pathsep.join(filter(None, (ENVIRONMENT["PYTHONPATH"], inherited)))
    theirs = interpreter(peers, LMCACHE)
    return [
        Contestant(NONE, python, inherited, lambda _: nullcontext("")),
        Contestant(OURS, python, checkout, ours, needs="pegaflow.client"),
        Contestant(LMCACHE, theirs, "", lambda size: server(theirs, size), needs="lmcache"),
        Contestant(NATIVE, python, checkout, native, needs="vllm.v1.kv_offload.tiering.spec"),
    ]


def told(connector: str, module: str | None, extra: dict[str, Any]) -> str:
    """The --kv-transfer-config of an engine."""
    said = {"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    if module is not None:
        said["kv_connector_module_path"] = module
    return json.dumps(said)


@contextmanager
def ours(size: int) -> Iterator[str]:
    """PegaFlow."""
    with service.running(size) as endpoint:
        yield told("PegaKVConnector", "pegaflow.connector", {"pegaflow.endpoint": endpoint})


@contextmanager
def native(size: int) -> Iterator[str]:
    """vLLM's own, without a process of its own; what its engine leaves of its memory is removed."""
    extra = {"spec_name": "HostSpec", "spec_module_path": "tests.connectors.vllm.real.offloaded"}
    said = json.loads(told("OffloadingConnector", None, {**extra, "cpu_bytes_to_use": size}))
    name = f"perf-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield json.dumps({**said, "engine_id": name})
    finally:
        for left in Path("/dev/shm").glob(f"vllm_offload_*{name}*"):
            left.unlink()


@contextmanager
def server(python: Path, size: int) -> Iterator[str]:
    """LMCache's.

    Raises:
        UserError: it does not start.
    """
    port, http = free_port(), free_port()
    shared = f"perf_{os.getpid()}_{port}"
    command = lmcache.server_command(
        str(python), (port, http), shared, chunk=CHUNK_TOKENS, pool=size
    )
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as name:
        log = Path(name, "log")
        try:
            with log.open("wb") as said, signals.held():
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **lmcache.SILENT, "PYTHONPATH": ""},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            answers(process, f"http://127.0.0.1:{http}/healthcheck", lmcache.START_S, log)
            extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
            module = "lmcache.integration.vllm.lmcache_mp_connector"
            yield told("LMCacheMPConnector", module, extra)
        finally:
            if process is not None:
                lmcache.stop(process, shared)


def answers(process: subprocess.Popen[bytes], url: str, patience_s: float, log: Path) -> None:
    """Wait until a process answers at its address.

    Args:
        log: where all it says goes.

    Raises:
        UserError: it has ended, or takes too long; with its last words.
    """
    until = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5.0):
                return
        except OSError:
            time.sleep(LOOK_S)
    words = log.read_text(errors="replace").strip().splitlines()
    raise UserError(f"nothing answers at {url}: {words[-1] if words else 'nothing was said'}")
