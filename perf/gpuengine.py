"""An engine on a GPU that does the same until it is killed: python -m perf.gpuengine ENDPOINT NAME

`hold` attaches and waits; `busy` saves and loads without an end.  It prints a line when it is
served, and of a busy one the line is followed by another after each save and each load.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf import command
from perf.gpucard import METHODS, Card, Engine, GpuShape, Memory, environment, new_keys

SERVED = "served"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("name")
    parser.add_argument("--way", choices=("hold", "busy"), default="hold")
    parser.add_argument("--method", choices=METHODS, default="auto")
    parser.add_argument("--shape", type=int, nargs=3, default=(8, 2, 16384))
    parser.add_argument("--ranks", type=int, nargs=2, default=(0, 1), help="its own, and all")
    parser.add_argument("--generation", default="")
    return parser.parse_args()


def main() -> None:
    """Serve as an engine."""
    given = arguments()
    shape = GpuShape(*given.shape)
    card = Card()
    rank, world = given.ranks
    engine = Engine(
        given.endpoint,
        given.name,
        shape.layout,
        card=card,
        regions=[Memory(card, 2 * shape.total)],
        method=given.method,
        rank=rank,
        world=world,
        generation=bytes.fromhex(given.generation) or None,
    )
    engine.attach()
    print(SERVED, flush=True)
    if given.way == "hold":
        while True:
            engine.client.poll(1.0)
    for turn in itertools.count(1):
        keys = new_keys(shape.blocks, turn)
        engine.save(keys, range(shape.blocks))
        print("saved", flush=True)
        engine.load(keys, range(shape.blocks, 2 * shape.blocks))
        print("loaded", flush=True)


class Child:
    """Such an engine in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self, word: str) -> None:
        """Wait until it has said so, once more.

        Raises:
            UserError: it has ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise UserError(f"the engine has ended before it was {word}")

    def kill(self) -> None:
        """By SIGKILL, wherever it is."""
        self._process.kill()
        self._process.wait()


@contextmanager
def child(endpoint: str, name: str, *options: str) -> Iterator[Child]:
    """Start one; it is killed in the end."""
    process: subprocess.Popen[str] | None = None
    line = [sys.executable, "-m", "perf.gpuengine", endpoint, name, *options]
    try:
        with signals.held():
            process = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True)
        yield Child(process)
    finally:
        if process is not None:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    command.run("perf.gpuengine", main)
