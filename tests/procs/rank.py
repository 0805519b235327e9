"""One process of an engine with some ranks: its scheduler or a rank, told what to do line by line.

python -m tests.procs.rank ENDPOINT GENERATION RANK WORLD REPLICAS

RANK is -1 for the scheduler; REPLICAS ranks hold the same bytes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pegaflow.client import Client, Lease
from pegaflow.wire.layout import LayerLayout, Layout

from .service import PATIENCE_S, content, eventually, keys

ENGINE, WORLD, BLOCKS, BYTES = "pair", 2, 32, 16384


class Process:
    """The other end: a process like this one, and what it says."""

    def __init__(
        self, endpoint: str, generation: int, rank: int, *, world: int = WORLD, replicas: int = 1
    ) -> None:
        numbers = map(str, (generation, rank, world, replicas))
        command = [sys.executable, "-m", __name__, endpoint, *numbers]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def tell(self, what: str, *arguments: int) -> None:
        """Let it begin; `hear` waits for the end."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps([what, *arguments]) + "\n")
        self.popen.stdin.flush()

    def hear(self) -> Any:
        """What came of it."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"the process ended with {self.popen.wait()}"
        return json.loads(line)

    def ask(self, what: str, *arguments: int) -> Any:
        """Tell and hear."""
        self.tell(what, *arguments)
        return self.hear()

    def kill(self) -> None:
        """SIGKILL, and it is gone."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


class _Actor:
    def __init__(
        self, endpoint: str, generation: int, rank: int, *, world: int, replicas: int
    ) -> None:
        self.shard = rank // replicas
        self.client = Client(
            ENGINE,
            b"ranks" * 4,
            world=world,
            opens=rank < 0,
            generation=generation.to_bytes(16, "big"),
            endpoint=endpoint,
        )
        self.memory = np.zeros((BLOCKS, BYTES), np.uint8)
        if rank >= 0:
            layout = Layout(BLOCKS, (LayerLayout(0, 0, BYTES, BYTES),), "uint8")
            self.client.register(layout, [self.memory.reshape(-1)], rank=rank, replicas=replicas)

    def connect(self) -> list[object]:
        return [self.client.connect(PATIENCE_S), *self.client.ways]

    def refused(self) -> str:
        self.client.poll(0.0)  # it has not looked at the world for a while
        eventually(
            "it is refused", lambda: not self.client.connect(0.1) and bool(self.client.refusal)
        )
        return self.client.refusal

    def lookup(self, seed: int, count: int) -> list[int]:
        found = self.client.lookup(keys(count, seed), timeout=PATIENCE_S)
        lease = found.lease
        return [lease.session, lease.number, lease.blocks] if lease else [0, 0, 0]

    def save(self, order: int, seed: int, count: int) -> list[object]:
        for block in range(count):
            self.memory[block] = content((BYTES,), self._seed(seed, block))
        hashes, blocks = keys(count, seed), list(range(count))
        ticket = self.client.start_save(hashes, blocks, timeout=PATIENCE_S, order=order)
        while True:
            for done in self.client.poll(1.0):
                if done.ticket == ticket:
                    return [done.status.name, getattr(done, "saved", 0)]

    def load(self, session: int, number: int, count: int, seed: int) -> list[object]:
        """Into the last blocks; whether the bytes are those that this rank has computed."""
        targets = list(range(BLOCKS - count, BLOCKS))
        lease = Lease(session, number, count)
        done = self.client.load(lease, targets, timeout=PATIENCE_S)
        wanted = [content((BYTES,), self._seed(seed, block)) for block in range(count)]
        same = np.array_equal(self.memory[targets], np.array(wanted))
        return [done.status.name, bool(same)]

    def _seed(self, seed: int, block: int) -> int:
        return (seed * WORLD + self.shard) * BLOCKS + block


def main() -> None:
    endpoint, *numbers = sys.argv[1:]
    generation, rank, world, replicas = map(int, numbers)
    actor = _Actor(endpoint, generation, rank, world=world, replicas=replicas)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(getattr(actor, what)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
