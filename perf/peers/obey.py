"""A contestant's end of the tables of perf/peers: it does what its table orders, and says the time.

Each contestant is a process of its own, in whatever environment it needs, so that they share
nothing and any of them can be missing.  An order is one line of JSON on stdin, the name of a method
and its arguments; the answer is one on stdout, `{"answer": ...}`, or `{"failed": "one line"}` if it
did not work.  What a library prints by itself goes to stderr.  The end of stdin, or SIGTERM, ends
the process and with it the service that it has started.

This module imports the standard library alone, for it runs in environments that have nothing else.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

ORDERS = ("fill", "lookups", "save", "load", "stopped")


@dataclass(frozen=True)
class Size:
    """What a contestant is started for."""

    pool: int  # bytes
    blocks: int  # of a save, a load and a chain
    block: int  # bytes


class Failed(Exception):
    """An order did not work; its text is one line."""


class Contestant(ABC):
    """An engine and its service.

    The engine's memory has twice the blocks of a save: the first half is saved, the other loaded.
    Each save is a chain of its own, so nothing that is saved was there before.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.memory = self.make_memory(2 * size.blocks * size.block)
        self.half = size.blocks * size.block
        self.memory[: self.half] = os.urandom(self.half)
        self._zeros = bytes(self.half)
        self.memory[self.half :] = self._zeros
        self.chains = 0  # saved so far
        self.chain = 0  # looked up last

    def make_memory(self, size: int) -> mmap.mmap:
        """An engine's: anonymous, and its own."""
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    @abstractmethod
    def save_blocks(self, keys: list[bytes]) -> float:
        """Save the first half under these keys; seconds until the engine may go on."""

    @abstractmethod
    def load_blocks(self, keys: list[bytes]) -> float:
        """Load these into the second half; seconds, without the lookup."""

    @abstractmethod
    def lookups(self, keys: int, count: int, at_once: int) -> list[float]:
        """Seconds of each lookup of so many keys, which are all there; leases are given back."""

    def stopped(self, keys: int, seconds: float) -> dict[str, Any]:
        """What the engine still gets while its service is stopped.

        Returns:
            The seconds of each lookup as `times`, and how many of lookups and loads failed.
        """
        raise Failed("nothing without its service")

    def fill(self, chains: int) -> int:
        """Save until there are so many chains."""
        while self.chains < chains:
            self.save()
        return self.chains

    def save(self) -> float:
        """Save all blocks under keys that are new; seconds."""
        self.chains += 1
        return self.save_blocks(keys_of(self.chains, self.size.blocks))

    def load(self) -> float:
        """Load what was saved last, and compare it; seconds."""
        seconds = self.load_blocks(keys_of(self.chains, self.size.blocks))
        self.compare(self.size.blocks)
        return seconds

    def compare(self, blocks: int) -> None:
        """The second half begins with what was saved, so many blocks; then it is cleared.

        Raises:
            Failed: it does not.
        """
        end = blocks * self.size.block
        with memoryview(self.memory) as whole:
            if whole[:end] != whole[self.half : self.half + end]:
                raise Failed("wrong bytes were loaded")
        self.memory[self.half :] = self._zeros

    def next_chain(self, keys: int) -> list[bytes]:
        """The keys of another lookup."""
        self.chain = self.chain % self.chains + 1
        return keys_of(self.chain, keys)

    @abstractmethod
    def close(self) -> None:
        """End the engine; its service ends by the stack that it was started on."""


def keys_of(chain: int, count: int) -> list[bytes]:
    """Block hashes of 32 bytes: the first of a chain."""
    return [b"%016x%016x" % (chain, block) for block in range(count)]


def in_threads(lookup: Callable[[], float], count: int, at_once: int) -> list[float]:
    """Seconds of each of so many calls, by so many threads: for whoever cannot do otherwise."""
    if at_once == 1:
        return [lookup() for _ in range(count)]
    found: list[list[float]] = [[] for _ in range(at_once)]

    def work(own: list[float]) -> None:
        for _ in range(max(count // at_once, 1)):
            own.append(lookup())

    threads = [threading.Thread(target=work, args=(own,)) for own in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seconds for own in found for seconds in own]


def free_port() -> int:
    """A TCP port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it returns."""
    began = time.perf_counter()
    answer = call()
    return time.perf_counter() - began, answer


def main(make: Callable[[Size, ExitStack], Contestant]) -> None:
    """Be a contestant, until there are no more orders.

    Args:
        make: starts engine and service; what has to be ended goes onto the stack.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with ExitStack() as stack:
        try:
            contestant = make(Size(*map(int, sys.argv[1:4])), stack)
        except Failed as error:
            say(failed=str(error))
            return
        stack.callback(contestant.close)
        say(answer="ready")
        for line in sys.stdin:
            what, arguments = json.loads(line)
            assert what in ORDERS, what
            try:
                say(answer=getattr(contestant, what)(*arguments))
            except Failed as error:
                say(failed=str(error))
