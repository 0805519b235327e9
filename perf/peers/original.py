"""The original, PegaFlow in Rust (`pegaflow-llm` on PyPI), as a contestant: see obey.py.

Its server wants a GPU.  As released, 0.25.1 ends at its start where there is none: first "Unable to
dynamically load the "cuda" shared library", and with that library alone "failed to initialize
python/tensor CUDA runtime", since it imports torch.  So it is started here as it is in its wheel,
by its own command, with a stand-in for both: cuda.c has the twenty-odd calls of CUDA that it makes,
where a copy to or from the device is a `memcpy` on the thread that asked for it, and host.py says
the few words of torch.  What is measured is thus the original's server, its RPC, its index and its
pool; not a GPU, and not its copy kernels ("direct" is its way by plain copies).

The engine is its own client class, `EngineRpcClient`: register_context_batch, save, query_prefetch
(which leases what it finds), load, release.  A save ends when its RPC returns; what was saved can
be found a little later.  A load ends when the word in shared memory says so that its engine polls.
"""

from __future__ import annotations

import importlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf.peers.obey import Contestant, Failed, Size, free_port, in_threads, main, timed

INSTANCE, LAYER = "perf", "layer"
START_S, FIND_S, LOAD_S, STOP_S = 60.0, 5.0, 60.0, 10.0
COMPILERS = ("cc", "gcc", "clang")


class Original(Contestant):
    """An engine of one layer."""

    def __init__(self, size: Size, endpoint: str, pegaflow: Any) -> None:
        self._file = os.memfd_create("perf-engine")
        super().__init__(size)
        self._states = pegaflow.PyLoadState
        self._client = pegaflow.EngineRpcClient(endpoint)
        self._requests = 0
        path, length = f"/proc/{os.getpid()}/fd/{self._file}", 2 * self.half
        ok, why = self._client.register_context_batch(
            INSTANCE,
            "perf",
            0,  # tensor-parallel rank, and pipeline-parallel rank
            0,
            1,  # how many of both there are
            1,
            0,  # the device
            [LAYER],
            [wrapper(path, length)],
            [2 * size.blocks],
            [size.block],
            [0],
            [1],
            "direct",
            False,
        )
        if not ok:
            raise Failed(f"not registered: {why}")

    def make_memory(self, size: int) -> mmap.mmap:
        """The server maps it, as it would map a GPU's."""
        os.ftruncate(self._file, size)
        return mmap.mmap(self._file, size)

    def save_blocks(self, keys: list[bytes]) -> float:
        saves = [(LAYER, list(range(len(keys))), keys)]
        seconds, (ok, why) = timed(lambda: self._client.save(INSTANCE, 0, 0, 0, saves))
        if not ok:
            raise Failed(f"not saved: {why}")
        self._client.release(self._find(keys, FIND_S))
        return seconds

    def load_blocks(self, keys: list[bytes]) -> float:
        lease = self._find(keys, FIND_S)
        count = len(keys)
        loads = [(lease, [list(range(count, 2 * count))])]

        def load() -> int:
            state = self._states()
            self._client.load(INSTANCE, 0, 0, state.shm_name(), [[LAYER]], loads)
            until = time.monotonic() + LOAD_S
            while not state.is_ready() and time.monotonic() < until:
                time.sleep(0)  # an engine looks once a step; here its core is idle meanwhile
            return int(state.get_state())

        seconds, state = timed(load)
        if state != 1:
            raise Failed(f"not loaded: state {state}")
        return seconds

    def lookups(self, keys: int, count: int, at_once: int) -> list[float]:
        def lookup() -> float:
            wanted, name = self.next_chain(keys), self._name()
            seconds, found = timed(lambda: self._client.query_prefetch(INSTANCE, wanted, name))
            hits = getattr(found, "num_hit_blocks", 0)
            if hits != keys:
                raise Failed(f"{hits} of {keys} blocks found")
            self._client.release(found.lease)
            return seconds

        return in_threads(lookup, count, at_once)

    def close(self) -> None:
        self._client.unregister_context(INSTANCE)

    def _find(self, keys: list[bytes], patience: float) -> bytes:
        until = time.monotonic() + patience
        while True:
            found = self._client.query_prefetch(INSTANCE, keys, self._name())
            hits = getattr(found, "num_hit_blocks", 0)
            if hits == len(keys):
                return bytes(found.lease)
            if hits:
                self._client.release(found.lease)
            if time.monotonic() > until:
                raise Failed(f"{hits} of {len(keys)} blocks found after a save")
            time.sleep(0.001)

    def _name(self) -> str:
        self._requests += 1
        return f"perf-{self._requests}"


def wrapper(path: str, size: int) -> bytes:
    """What its RPC takes for a GPU's memory, a Python pickle: this one calls host.Shared."""
    return b"cperf.peers.host\nShared\n(V%b\nI%d\ntR." % (path.encode(), size)


def stand_in(folder: Path) -> None:
    """Compile the stand-in for CUDA under both of its names, and that for torch.

    Raises:
        Failed: there is no C compiler.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Failed("needs a C compiler for what stands in for a GPU")
    source = Path(__file__).with_name("cuda.c")
    library = folder / "libcuda.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(library, folder / "libcudart.so")
    (folder / "torch.py").write_text("from perf.peers.host import cuda, empty\n")


def make(size: Size, stack: ExitStack) -> Original:
    """Start the server, and an engine of it."""
    try:
        pegaflow = importlib.import_module("pegaflow.pegaflow")
    except ImportError as error:
        raise Failed(f"cannot be imported: {error}") from error
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stand_in(folder)
    address, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = dict(os.environ)
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        environment[name] = os.pathsep.join(filter(None, (str(folder), os.environ.get(name))))
    command = [str(Path(sys.executable).with_name("pegaflow-server"))]
    command += ["--devices", "0", "--addr", address, "--http-addr", http]
    command += ["--pool-size", str(size.pool), "--disable-numa-affinity", "--log-level", "warn"]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    stack.callback(stop, server)
    client = connect(server, f"http://{address}", pegaflow)
    stack.callback(client.shutdown)
    return Original(size, f"http://{address}", pegaflow)


def connect(server: subprocess.Popen[bytes], endpoint: str, pegaflow: Any) -> Any:
    """A client, once the server answers."""
    until = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < until:
        try:
            client = pegaflow.EngineRpcClient(endpoint)
            if client.health()[0]:
                return client
        except pegaflow.PegaFlowError:
            pass
        time.sleep(0.05)
    raise Failed("its server does not start")


def stop(server: subprocess.Popen[bytes]) -> None:
    """It goes when it is asked to; else it is killed, and so are we, who are of its group."""
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(make)
