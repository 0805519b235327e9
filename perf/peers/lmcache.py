"""LMCache's multiprocess server (`lmcache` on PyPI), as a contestant: see obey.py.

It runs without a GPU, its engines then copy by themselves into its shared memory ("engine-driven").
It does want torch, so its environment is laid over another one that has a torch for the CPU.

The engine speaks to it by its own request client.  What others call a block is a chunk here, of
TOKENS tokens of one layer, and its key is the tokens from the beginning: a lookup sends those of
all its blocks.  A save asks for slots, copies, and commits; a load looks up, asks for slots, copies
and commits, and its time is without the lookup, as everybody's.  Usage reports are switched off.
"""

from __future__ import annotations

import importlib
import mmap
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf.peers.obey import Contestant, Failed, Size, free_port, in_threads, main, timed

MODEL, INSTANCE = "perf", 1
TOKENS, ELEMENT = 16, 2  # of a chunk; bytes of a float16
START_S, TIMEOUT_S, STOP_S = 90.0, 30.0, 10.0
ROOM = 1.25  # it evicts before it is full
SILENT = {
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_LOG_LEVEL": "WARNING",
    "LMCACHE_DISABLE_BANNER": "1",
    "PYTHONHASHSEED": "0",
}


class LMCache(Contestant):
    """An engine of one layer whose chunks are blocks."""

    def __init__(self, size: Size, client: Any) -> None:
        super().__init__(size)
        types = importlib.import_module("lmcache.v1.multiprocess.custom_types")
        self._key_type = types.IPCCacheServerKey
        self._client = client
        self._requests = 0
        payload = types.RegisterEngineDrivenContextPayload(
            instance_id=INSTANCE,
            model_name=MODEL,
            world_size=1,
            block_size=TOKENS,
            num_layers=1,
            hidden_dim_size=size.block // TOKENS // ELEMENT,
            dtype_str="float16",
            use_mla=True,
        )
        done = client.register_kv_cache_engine_driven_context(payload).result(timeout=TIMEOUT_S)
        if not done.shm_name:
            raise Failed("it lends no shared memory")
        with open(f"/dev/shm/{done.shm_name.lstrip('/')}", "r+b") as file:
            self._pool = memoryview(mmap.mmap(file.fileno(), done.pool_size))

    def save_blocks(self, keys: list[bytes]) -> float:
        key = self._key(self._tokens(self.chains, len(keys)), 0)

        def save() -> bool:
            lent = self._client.prepare_store(key, INSTANCE).result(timeout=TIMEOUT_S).context
            slots = lent.get("slots") or []
            if len(slots) != len(keys):
                raise Failed(f"{len(slots)} slots for {len(keys)} blocks")
            with memoryview(self.memory) as memory:
                for block, slot in zip(lent["chunk_indices"], slots, strict=True):
                    first, here = slot["offset"], block * self.size.block
                    self._pool[first : first + self.size.block] = memory[
                        here : here + self.size.block
                    ]
            return bool(self._client.commit_store(key, INSTANCE, b"").result(timeout=TIMEOUT_S))

        seconds, done = timed(save)
        if not done:
            raise Failed("not saved")
        self._client.end_session(key.request_id).result(timeout=TIMEOUT_S)
        return seconds

    def load_blocks(self, keys: list[bytes]) -> float:
        tokens = self._tokens(self.chains, len(keys))
        asked = self._key(tokens, None)
        self._found(asked, len(keys))
        key = self._key(tokens, 0, asked.request_id)

        def load() -> bool:
            lent = self._client.prepare_retrieve(key, INSTANCE).result(timeout=TIMEOUT_S)
            slots = lent.context.get("slots") or []
            if not lent.success or len(slots) != len(keys):
                raise Failed(f"{len(slots)} slots for {len(keys)} blocks to load")
            with memoryview(self.memory) as memory:
                for block, slot in enumerate(slots):
                    first, here = slot["offset"], self.half + block * self.size.block
                    memory[here : here + self.size.block] = self._pool[
                        first : first + self.size.block
                    ]
            return bool(self._client.commit_retrieve(key, INSTANCE).result(timeout=TIMEOUT_S))

        seconds, done = timed(load)
        if not done:
            raise Failed("not loaded")
        self._client.end_session(key.request_id).result(timeout=TIMEOUT_S)
        return seconds

    def lookups(self, keys: int, count: int, at_once: int) -> list[float]:
        def lookup() -> float:
            self.chain = self.chain % self.chains + 1
            key = self._key(self._tokens(self.chain, keys), None)
            seconds, _ = timed(lambda: self._found(key, keys))
            self._client.free_lookup_locks(key, 1).result(timeout=TIMEOUT_S)
            self._client.end_session(key.request_id).result(timeout=TIMEOUT_S)
            return seconds

        return in_threads(lookup, count, at_once)

    def close(self) -> None:
        self._client.unregister_kv_cache_engine_driven_context(INSTANCE).result(timeout=STOP_S)
        self._client.close()

    def _found(self, key: Any, count: int) -> None:
        self._client.lookup(key, 1).result(timeout=TIMEOUT_S)
        asked = self._client.wait_prefetch_status(key.request_id, TIMEOUT_S)
        found = asked.result(timeout=TIMEOUT_S)
        if found != count:
            raise Failed(f"{found} of {count} blocks found")

    def _tokens(self, chain: int, blocks: int) -> tuple[int, ...]:
        return (chain, *range(1, blocks * TOKENS))

    def _key(self, tokens: tuple[int, ...], worker: int | None, request: str = "") -> Any:
        self._requests += 1
        return self._key_type(
            model_name=MODEL,
            world_size=1,
            worker_id=worker,
            token_ids=tokens,
            start=0,
            end=len(tokens),
            request_id=request or f"perf-{self._requests}",
            num_kv_readers=1,
        )


def make(size: Size, stack: ExitStack) -> LMCache:
    """Start the server, and an engine of it."""
    os.environ.update(SILENT)
    try:
        factory = importlib.import_module("lmcache.v1.multiprocess.transport.factory")
    except ImportError as error:
        raise Failed(f"cannot be imported: {error}") from error
    ports = free_port(), free_port()
    shared = f"perf_{os.getpid()}"
    command = server_command(sys.executable, ports, shared, chunk=TOKENS, pool=size.pool)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stack.callback(stop, server, shared)
    client = factory.RequestClientFactory.create(f"tcp://127.0.0.1:{ports[0]}")
    until = time.monotonic() + START_S
    while not answers(client):
        if server.poll() is not None or time.monotonic() > until:
            raise Failed("its server does not start")
    return LMCache(size, client)


def server_command(
    python: str, ports: tuple[int, int], shared: str, *, chunk: int, pool: int
) -> list[str]:
    """The command line of its server.

    Args:
        python: of its environment.
        ports: for engines, and for HTTP.
        shared: the name of its memory.
        chunk: tokens.
        pool: bytes that it has to hold.
    """
    command = [python, "-P", "-m", "lmcache.cli.main", "server", "--port", str(ports[0])]
    command += ["--http-port", str(ports[1]), "--chunk-size", str(chunk)]
    command += ["--eviction-policy", "LRU", "--l1-size-gb", f"{ROOM * pool / 2**30:g}"]
    command += ["--no-l1-use-lazy", "--supported-transfer-mode", "engine_driven"]
    return [*command, "--shm-name", shared]


def answers(client: Any) -> bool:
    """Whether the server does, within a second."""
    future = client.get_chunk_size()
    return bool(future.wait(timeout=1.0))


def stop(server: subprocess.Popen[bytes], shared: str) -> None:
    """End it; who is killed leaves its memory."""
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for left in Path("/dev/shm").glob(f"*{shared}"):
        left.unlink()


if __name__ == "__main__":
    main(make)
