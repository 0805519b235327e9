"""One engine under chaos: it looks up, loads, computes and saves, and believes no byte.

`python -m perf.chaosload ENDPOINT NAME SEED [CHAINS]` runs until its standard input ends and writes
what happened to its standard output, one JSON object a line: `sealed` whenever a lookup has
returned more of a chain than any before, `sums` four times a second and at the end.  It may be
killed at any time: what it has written counts.

The bytes of a block follow from its key, so that every engine knows what any other has saved.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
import traceback
from collections import Counter
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from pegaflow.client import Client
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status

LAYERS = 2
PIECE = 16 << 10  # bytes of one block in one layer
CHAINS = 64  # if the command line says no other number
CHAIN = 12  # blocks of one chain
BLOCKS = 48  # of one engine: few, so that all are written again and again
SUMS_S = 0.25
COMPUTE_S = 0.02  # what a prompt costs without a cache

TIMEOUTS = {"lookup": 0.5, "load": 2.0, "save": 2.0}
"""Seconds that an engine gives each call."""

_COUNT = np.arange(LAYERS * PIECE // 8, dtype=np.uint64).reshape(LAYERS, -1)


def keys(chain: int) -> list[bytes]:
    """The block hashes of a chain."""
    return [b"%016x%016x" % (chain, block) for block in range(CHAIN)]


def content(key: bytes) -> npt.NDArray[np.uint64]:
    """The words of a block, by layer."""
    word = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
    return _COUNT * np.uint64(0x9E3779B97F4A7C15) + np.uint64(word)


class Engine:
    """A client and its memory."""

    def __init__(self, endpoint: str, name: str) -> None:
        stride = BLOCKS * PIECE
        self.memory = np.zeros(LAYERS * stride, np.uint8)
        self.view = self.memory.view(np.uint64).reshape(LAYERS, BLOCKS, PIECE // 8)
        self.client = Client(name, b"chaos" * 4, endpoint=endpoint)
        layers = tuple(LayerLayout(0, i * stride, PIECE, PIECE) for i in range(LAYERS))
        self.client.register(Layout(BLOCKS, layers, "uint8", "chaos"), [self.memory])

    def compute(self, block: int, key: bytes) -> None:
        """What the model would write."""
        self.view[:, block] = content(key)

    def spoil(self, block: int) -> None:
        """Bytes of no key."""
        self.view[:, block] = np.uint64(0xDEADDEADDEADDEAD)

    def holds(self, block: int, key: bytes) -> bool:
        """Whether these are the bytes of this key."""
        return bool(np.array_equal(self.view[:, block], content(key)))


class Load:
    """What an engine does, and what it finds."""

    def __init__(self, engine: Engine, seed: int, chains: int) -> None:
        self.engine, self.chains = engine, chains
        self.rng = random.Random(seed)
        self.sums: Counter[str] = Counter()
        self.waits: dict[str, float] = {}  # longest of each call
        self.sealed: dict[int, int] = {}  # chain -> most blocks that a lookup has returned
        self.exceptions: list[str] = []

    def turn(self) -> None:
        """One prompt."""
        engine, client = self.engine, self.engine.client
        chain = min(self.rng.randrange(self.chains), self.rng.randrange(self.chains))
        names = keys(chain)[: self.rng.randrange(1, CHAIN + 1)]
        blocks = self.rng.sample(range(BLOCKS), len(names))
        for block in blocks:
            engine.spoil(block)
        known = min(self.sealed.get(chain, 0), len(names))
        began = time.monotonic()
        found = client.lookup(names, timeout=TIMEOUTS["lookup"])
        self._waited("lookup", began)
        self.sums["lookups"] += 1
        if found.status is not Status.OK:
            self.sums["lookups_failed"] += 1
            time.sleep(COMPUTE_S)
        self.sums["misses_caused"] += max(0, known - found.blocks)
        have = 0
        if found.lease is not None:
            if found.blocks > self.sealed.get(chain, 0):
                self.sealed[chain] = found.blocks
                say({"sealed": [chain, found.blocks]})
            began = time.monotonic()
            loaded = client.load(found.lease, blocks[: found.blocks], timeout=TIMEOUTS["load"])
            self._waited("load", began)
            client.release(found.lease)
            failed = set(loaded.failed) if loaded.status is Status.OK else set(blocks)
            self.sums["loads_failed"] += loaded.status is not Status.OK
            self.sums[f"loads_{loaded.status.label}"] += 1
            for block, key in zip(blocks[: found.blocks], names, strict=False):
                if block not in failed:
                    self.sums["blocks_loaded"] += 1
                    self.sums["wrong_bytes"] += not engine.holds(block, key)
            have = 0 if failed else found.blocks
        for block, key in zip(blocks[have:], names[have:], strict=True):
            engine.compute(block, key)
        if have == len(names):
            return
        began = time.monotonic()
        parent = names[have - 1] if have else b""
        saved = client.save(names[have:], blocks[have:], parent=parent, timeout=TIMEOUTS["save"])
        self._waited("save", began)
        self.sums["blocks_saved"] += saved.saved
        self.sums["saves_failed"] += saved.status is not Status.OK
        self.sums[f"saves_{saved.status.label}"] += 1

    def _waited(self, call: str, began: float) -> None:
        self.waits[call] = max(self.waits.get(call, 0.0), time.monotonic() - began)

    def run(self) -> None:
        """Until nobody wants to hear of it any more."""
        due = 0.0
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                self.turn()
            except Exception:  # the point of the exercise: none may come
                self.exceptions.append(traceback.format_exc(limit=-3))
            if time.monotonic() >= due:
                due = time.monotonic() + SUMS_S
                self.report()
        self.report()

    def report(self) -> None:
        """Write all sums so far."""
        said = {"sums": dict(self.sums), "waits": self.waits, "exceptions": self.exceptions}
        say(said)


def say(said: dict[str, object]) -> None:
    """One line, at once."""
    print(json.dumps(said), flush=True)


def main() -> None:
    """One engine."""
    endpoint, name, seed, *chains = sys.argv[1:]
    engine = Engine(endpoint, name)
    Load(engine, int(seed), int(chains[0]) if chains else CHAINS).run()
    engine.client.close()


if __name__ == "__main__":
    main()
