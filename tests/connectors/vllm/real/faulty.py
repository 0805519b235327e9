"""The connector with a client that misbehaves on demand: named as `kv_connector_module_path`.

The file $PEGAFLOW_TEST_FAULT holds the name of a fault (see `FaultyClient`); a fault that strikes
once empties it.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pegaflow.connectors.vllm.worker
from pegaflow.client import Client, Done, Lease, LoadDone
from pegaflow.connectors.vllm.connector import PegaKVConnector
from pegaflow.wire.status import Status

__all__ = ["PegaKVConnector"]

SLOW_S = 1.0


class FaultyClient(Client):
    """`kill session`, `kill PID at load`, `kill PID at save` and `kill service PGID` (once), `fail
    tail` and `fail all`, `fail one` (the tail, and at rank 1 alone), `slow load`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file = Path(os.environ["PEGAFLOW_TEST_FAULT"])
        self._faulty: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._late: list[tuple[float, Done]] = []

    def _take(self, fault: str) -> bool:
        if self._file.read_text() != fault:
            return False
        self._file.write_text("")
        return True

    def _strike(self, moment: str) -> None:
        fault = self._file.read_text()
        if fault.startswith("kill") and fault.endswith(f"at {moment}") and self._take(fault):
            os.kill(int(fault.split()[1]), signal.SIGKILL)

    def start_load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float
    ) -> int:
        """Kills somebody once the session was asked, or remembers what to do with the answer."""
        ticket = super().start_load(lease, blocks, first=first, timeout=timeout)
        self._faulty[ticket] = (self._file.read_text(), tuple(blocks))
        if self._take("kill session"):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._strike("load")
        return ticket

    def start_save(self, *args: Any, **kwargs: Any) -> int:
        """Kills somebody, or the whole service, while there is something to save."""
        fault = self._file.read_text()
        if fault.startswith("kill service") and self._take(fault):
            os.killpg(int(fault.split()[2]), signal.SIGKILL)
        self._strike("save")
        return super().start_save(*args, **kwargs)

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Answers, some of them worse than they were, some later."""
        if self._late:
            timeout = min(timeout, 0.01)
        now = time.monotonic()
        answers = [self._spoil(done) for done in super().poll(timeout)]
        for done in answers:
            fault, _ = self._faulty.get(done.ticket, ("", ()))
            self._late.append((now + SLOW_S if fault == "slow load" else now, done))
        due = [done for at, done in self._late if at <= now]
        self._late = [late for late in self._late if late[0] > now]
        return due

    def _spoil(self, done: Done) -> Done:
        fault, blocks = self._faulty.get(done.ticket, ("", ()))
        if not isinstance(done, LoadDone) or not fault.startswith("fail"):
            return done
        if fault == "fail one" and self._rank != 1:
            return done
        failed = blocks if fault == "fail all" else blocks[len(blocks) // 2 :]
        assert self._memory is not None
        junk = np.full(self._slot_bytes, 0x3F, np.uint8)
        for block in failed:
            self._memory.load(junk, block)
        return LoadDone(done.ticket, Status.COPY_FAILED, failed)


vars(pegaflow.connectors.vllm.worker)["Client"] = FaultyClient
