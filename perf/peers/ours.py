"""PegaFlow, in the version that can be imported, as a contestant: see obey.py.

The tables compare this checkout with another one by it, so it uses what both have: the client, and
a service as the demonstration starts one.  What a version finds without a message it is asked for
first (`Client.find`); a version without that gets its lookups by message.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from pegaflow.client import Client, Lease, LoadDone, LookupDone, inspect
from pegaflow.replay import service
from pegaflow.wire.layout import LayerLayout, Layout
from perf.peers.obey import Contestant, Failed, Size, main, timed

ENGINE = "perf"
CONNECT_S, GROW_S, TIMEOUT_S = 20.0, 60.0, 60.0
STOPPED_TIMEOUT_S = 0.5  # what an engine has patience for
STOPPED = ("supervisor", "index", "allocator", "session")
"""The supervisor first: it would kill and replace the others after 3 s of silence."""


class Ours(Contestant):
    """An engine of one layer."""

    def __init__(self, size: Size, endpoint: str, way: str) -> None:
        super().__init__(size)
        self._endpoint = endpoint
        self._client = Client(ENGINE, b"perf" * 4, endpoint=endpoint, way=way)
        layer = LayerLayout(0, 0, size.block, size.block)
        layout = Layout(2 * size.blocks, (layer,), "uint8")
        self._client.register(layout, [np.frombuffer(self.memory, np.uint8)])
        if not self._client.connect(CONNECT_S):
            raise Failed(f"no session: {self._client.refusal}")
        self._find: Callable[[list[bytes]], LookupDone | None] = getattr(
            self._client, "find", lambda keys: None
        )

    def save_blocks(self, keys: list[bytes]) -> float:
        blocks = range(len(keys))
        seconds, done = timed(lambda: self._client.save(keys, blocks, timeout=TIMEOUT_S))
        if done.saved != len(keys):
            raise Failed(f"{done.saved} of {len(keys)} blocks saved: {done.status.name}")
        return seconds

    def load_blocks(self, keys: list[bytes]) -> float:
        lease = self._client.lookup(keys, timeout=TIMEOUT_S).lease
        if lease is None or lease.blocks != len(keys):
            raise Failed(f"{lease.blocks if lease else 0} of {len(keys)} blocks found")
        seconds, done = timed(lambda: self._load(lease, TIMEOUT_S))
        if done.status.name != "OK":
            raise Failed(f"not loaded: {done.status.name}")
        return seconds

    def _load(self, lease: Lease, timeout: float) -> LoadDone:
        first = self.size.blocks
        return self._client.load(lease, range(first, first + lease.blocks), timeout=timeout)

    def lookups(self, keys: int, count: int, at_once: int) -> list[float]:
        """Answers are taken as they come; so many lookups have a lease or wait for one."""
        client = self._client
        held: deque[Lease] = deque()
        began: dict[int, float] = {}
        found: list[float] = []
        while len(found) < count:
            if len(began) < at_once and len(began) + len(found) < count:
                wanted = self.next_chain(keys)
                start = time.perf_counter()
                done = self._find(wanted)
                if done is not None:
                    found.append(time.perf_counter() - start)
                    self._hold(held, done, keys, at_once)
                    client.poll(0)  # as each step does
                    continue
                began[client.start_lookup(wanted, timeout=TIMEOUT_S)] = start
            full = len(began) == at_once or len(began) + len(found) == count
            for ended in client.poll(TIMEOUT_S if full else 0.0):
                now = time.perf_counter()
                assert isinstance(ended, LookupDone)
                found.append(now - began.pop(ended.ticket))
                self._hold(held, ended, keys, at_once)
                if at_once == 1:  # the release is done before the next one, as a peer's RPC is
                    client.lookup([bytes(32)], timeout=TIMEOUT_S)
        for lease in held:
            client.release(lease)
        return found

    def _hold(self, held: deque[Lease], done: LookupDone, keys: int, at_once: int) -> None:
        if done.lease is None or done.blocks != keys:
            raise Failed(f"{done.blocks} of {keys} blocks found: {done.status.name}")
        held.append(done.lease)
        if len(held) >= at_once:
            self._client.release(held.popleft())

    def stopped(self, keys: int, seconds: float) -> dict[str, Any]:
        """Lookups, and a load after every hundredth, while nobody of the service runs."""
        times: list[float] = []
        failed = {"lookups": 0, "loads": 0}
        loads = 0
        pids = self._pids()
        with ExitStack() as stack:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
                stack.callback(os.kill, pid, signal.SIGCONT)
            until = time.monotonic() + seconds
            while time.monotonic() < until and failed["lookups"] < 3:
                took, done = self._now(self.next_chain(keys))
                if done.lease is None or done.blocks != keys:
                    failed["lookups"] += 1
                    continue
                times.append(took)
                if len(times) % 100:
                    self._client.release(done.lease)
                    continue
                loads += 1
                if self._load(done.lease, STOPPED_TIMEOUT_S).status.name == "OK":
                    self.compare(done.lease.blocks)
                else:
                    failed["loads"] += 1
        self._client.poll(1.0)
        return {"times": times, "loads": loads, "failed": failed}

    def _now(self, keys: list[bytes]) -> tuple[float, LookupDone]:
        def lookup() -> LookupDone:
            found = self._find(keys)
            return found if found else self._client.lookup(keys, timeout=STOPPED_TIMEOUT_S)

        return timed(lookup)

    def _pids(self) -> list[int]:
        report = inspect(self._endpoint, 5.0)
        if report is None:
            raise Failed("its service does not answer")
        rows = [(row.address.name, row.pid) for row in report.processes]
        return [pid for wanted in STOPPED for name, pid in rows if name == wanted]

    def close(self) -> None:
        self._client.close()


def grown(endpoint: str) -> None:
    """Wait until the pool has grown to its end, in a version that says so."""
    until = time.monotonic() + GROW_S
    while time.monotonic() < until:
        report = inspect(endpoint, 1.0)
        rows = report.processes if report is not None else ()
        counters = [{c.name: c.value for c in row.counters} for row in rows]
        told = [found for found in counters if found.get("pool_capacity_bytes")]
        if any(not found.get("pool_absent_bytes") for found in told):
            return
        time.sleep(0.05)
    raise Failed("its pool does not grow")


def make(size: Size, stack: ExitStack) -> Ours:
    """Start the service, and an engine of it."""
    endpoint = stack.enter_context(service.running(size.pool))
    grown(endpoint)
    return Ours(size, endpoint, way=sys.argv[4])


if __name__ == "__main__":
    main(make)
