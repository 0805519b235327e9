"""The owner that runs in another process, and what its pool has in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import Piece
from pegaflow.device.link.verbs_link import VerbsLink
from tests.device.link.verbsrig import MIB, TOKEN, Host

LENGTH = 32 * MIB


class Remote:
    """Its life; `kill` ends it, and so does the end of the test.

    Args:
        user: who it runs as, and `memlock` the bytes that it may lock then.
    """

    def __init__(self, *names: str, user: int | None = None, memlock: int | None = None) -> None:
        limit = ["prlimit", f"--memlock={memlock}"] if memlock is not None else []
        self.process = subprocess.Popen(
            [*limit, sys.executable, "-m", "tests.rdma.owner", str(LENGTH), str(4 * MIB), *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=user,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.first = self._hear()

    def fill(self, seed: int) -> bytes:
        """What its pool has from now on."""
        self._tell(f"fill {seed}")
        return np.random.default_rng(seed).bytes(LENGTH)

    def loop(self, seed: int) -> None:
        self._tell(f"loop {seed}")

    def link(self, reader: Host) -> VerbsLink:
        offer = self._tell(f"admit 1 {reader.reader.ask().hex()}")["offer"]
        return reader.reader.connect(bytes.fromhex(offer), TOKEN)

    def signal(self, number: signal.Signals) -> None:
        """Stop it, have it go on, or kill it; the kernel has done so when this returns."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()
        elif number == signal.SIGSTOP:
            os.waitpid(self.process.pid, os.WUNTRACED)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _tell(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


def pieces(content: bytes, size: int, count: int, first: int = 0) -> list[Piece]:
    """The first of its pages in another order, with their checksums."""
    view = memoryview(content)
    return [
        Piece(remote=at, local=(n + first) * size, bytes=size, sum=page_sum(view[at : at + size]))
        for n, at in enumerate(range((count - 1) * size, -1, -size))
    ]
