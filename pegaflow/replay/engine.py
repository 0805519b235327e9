"""One engine of a replay: a process that looks up, loads, verifies, computes and saves.

It is to the cache what an inference engine is: it owns memory with KV blocks, laid out layer by
layer, and a client. Per request it looks its keys up, loads the prefix that was found, checks every
byte of it, "computes" the rest (fills in what the content must be) and saves that. Memory about to
be loaded is zeroed and the slots move on, so bytes that an earlier request left behind cannot pass
for loaded ones. A request longer than the memory goes through it in windows.

A failure of the service is a miss: the blocks are computed instead, the status is counted, and the
replay goes on. While the service is away each engine waits for it for RECONNECT_SECONDS in all.

`python -m pegaflow.replay.engine JOB` reads a Job from the JSON file JOB and writes one JSON object
per line to stdout: `Attached` first (or a line on stderr and exit status 1), then a `Record` for
each request, in order. A process that is killed loses at most the line it was writing. Ctrl-C is
for the process that started it, which then ends it.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from pegaflow.client import Client, Lease, LoadDone, LookupDone, SaveDone
from pegaflow.service import signals
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from pegaflow.wire.units import Seconds

from .content import Bytes, fill, mismatch
from .trace import Saved

CONNECT_SECONDS: Seconds = 20.0
"""The first attach: a service that has just been started is ready by then."""

RECONNECT_SECONDS: Seconds = 20.0
"""All waits for a lost service together; a restart takes far less."""

LOOKUP_SECONDS: Seconds = 1.0
"""A lookup takes far less than a millisecond; an engine would recompute after that long."""

COPY_SECONDS: Seconds = 10.0
"""A load or save of one window."""


class Cache(Protocol):
    """What an engine needs of `pegaflow.client.Client`; tests give it another one."""

    @property
    def attached(self) -> bool:
        """See `pegaflow.client.Client`, as the others."""
        ...

    @property
    def refusal(self) -> str:
        """Why the service has no session for us."""
        ...

    def connect(self, timeout: float) -> bool:
        """Wait for a session."""
        ...

    def lookup(self, keys: Sequence[bytes], *, timeout: float) -> LookupDone:
        """The longest prefix that is there."""
        ...

    def load(self, lease: Lease, blocks: Sequence[int], *, timeout: float) -> LoadDone:
        """Have the blocks of a lease written into ours."""
        ...

    def save(
        self, keys: Sequence[bytes], blocks: Sequence[int], *, parent: bytes, timeout: float
    ) -> SaveDone:
        """Offer computed blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """The engine's memory; a block is `layers` pieces of `layer_bytes` in as many regions."""

    layers: int
    layer_bytes: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        """Of all layers."""
        return self.layers * self.layer_bytes

    def layout(self) -> Layout:
        """The layout that the session copies by."""
        layers = (LayerLayout(i, 0, self.layer_bytes, self.layer_bytes) for i in range(self.layers))
        return Layout(self.blocks, tuple(layers), "uint8", "replay")

    def allocate(self) -> Bytes:
        """Zeroed memory of shape (layers, blocks, layer_bytes)."""
        memory = mmap.mmap(-1, self.blocks * self.block_bytes)
        shape = (self.layers, self.blocks, self.layer_bytes)
        return np.frombuffer(memory, dtype=np.uint8).reshape(shape)


@dataclass(frozen=True, slots=True)
class Job:
    """What one engine process is to do."""

    engine: str  # its id; the successor of a killed engine has the same
    namespace: str  # hex
    endpoint: str | None  # of the front desk; None: the default
    shape: Shape
    spawned_ns: int  # CLOCK_MONOTONIC just before the process was started
    tree: str  # the folder with the trace's blocks
    requests: list[tuple[int, int]]  # index in the trace, the last of its blocks

    @classmethod
    def load(cls, text: str) -> Job:
        """Have the blocks of a lease written into ours."""
        fields = json.loads(text)
        return cls(**{**fields, "shape": Shape(**fields["shape"])})

    def work(self) -> Iterator[tuple[int, list[bytes]]]:
        """For each request its index and the keys of its blocks."""
        saved = Saved(Path(self.tree))
        for index, end in self.requests:
            yield index, saved.block_keys(end)


@dataclass(frozen=True, slots=True)
class Attached:
    """The first line of an engine."""

    attach_seconds: float  # process started -> attached, imports included
    connect_seconds: float  # of this, the client's connect


@dataclass(slots=True)
class Record:
    """What became of one request."""

    index: int
    asked: int  # blocks
    served: int = 0  # blocks loaded and verified; a prefix of those asked
    verified_bytes: int = 0  # compared, right or wrong
    wrong_bytes: int = 0
    wrong: str = ""  # where the first wrong byte was
    lookup_seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    load_bytes: int = 0
    save_seconds: float = 0.0
    save_bytes: int = 0  # of blocks that were new to the cache
    saved: int = 0  # blocks
    known: int = 0  # blocks saved that the cache had already
    failures: dict[str, int] = field(default_factory=dict)  # "load expired" -> times


class Engine:
    """Replays requests through one client whose registered memory is `memory`.

    Args:
        memory: (layers, blocks, layer_bytes); registered with the cache already.
        namespace: the one that the cache has of us; the bytes of a block are made from it.
    """

    def __init__(self, cache: Cache, shape: Shape, memory: Bytes, namespace: bytes) -> None:
        self._cache = cache
        self._shape = shape
        self._memory = memory  # (layers, blocks, layer_bytes)
        self._namespace = namespace
        self._next = 0  # the slot after the last one used
        self._patience = RECONNECT_SECONDS  # what is left of it

    def replay(self, requests: Iterable[tuple[int, Sequence[bytes]]]) -> Iterator[Record]:
        """One record per request, as soon as it is done."""
        for index, keys in requests:
            yield self.request(index, keys)

    def request(self, index: int, keys: Sequence[bytes]) -> Record:
        """Serve one request from the cache as far as it goes, compute and save the rest.

        Args:
            index: of the request in its trace.
            keys: of all its blocks, head first; they may be more than the memory has.
        """
        self._reconnect()
        record = Record(index, len(keys))
        failures: Counter[str] = Counter()
        hitting = True
        for start in range(0, len(keys), self._shape.blocks):
            window = keys[start : start + self._shape.blocks]
            slots = self._slots(len(window))
            hit = self._load(window, slots, record, failures) if hitting else 0
            hitting = hit == len(window)
            if not hitting:
                parent = keys[start + hit - 1] if start + hit else b""
                self._save(window[hit:], slots[hit:], parent, record, failures=failures)
        record.failures = dict(failures)
        return record

    def _load(
        self, keys: Sequence[bytes], slots: list[int], record: Record, failures: Counter[str]
    ) -> int:
        """Load and verify the longest prefix of these keys; its length."""
        began = time.perf_counter()
        found = self._cache.lookup(keys, timeout=LOOKUP_SECONDS)
        record.lookup_seconds.append(time.perf_counter() - began)
        if found.status is not Status.OK:
            failures[f"lookup {found.status.words}"] += 1
        if found.lease is None:
            return 0
        blocks = slots[: found.blocks]
        self._memory[:, blocks] = 0
        began = time.perf_counter()
        done = self._cache.load(found.lease, blocks, timeout=COPY_SECONDS)
        seconds = time.perf_counter() - began
        if done.status is not Status.OK:
            failures[f"load {done.status.words}"] += 1
        failed = set(done.failed)
        good = next((n for n, slot in enumerate(blocks) if slot in failed), len(blocks))
        if good == len(blocks):
            record.load_seconds += seconds
            record.load_bytes += good * self._shape.block_bytes
        for key, slot in zip(keys[:good], blocks[:good], strict=True):
            self._verify(key, slot, record)
        record.served += good
        return good

    def _verify(self, key: bytes, slot: int, record: Record) -> None:
        held = self._memory[:, slot]
        record.verified_bytes += held.size
        first = mismatch(held, self._namespace, key, 0)
        if first is None:
            return
        wanted = np.empty_like(held)
        fill(wanted, self._namespace, key, 0)
        record.wrong_bytes += int(np.count_nonzero(wanted != held))
        layer, offset = divmod(first, self._shape.layer_bytes)
        record.wrong = record.wrong or f"block {key.hex()[:16]}, layer {layer}, byte {offset}"

    def _save(
        self,
        keys: Sequence[bytes],
        slots: list[int],
        parent: bytes,
        record: Record,
        *,
        failures: Counter[str],
    ) -> None:
        """Compute these blocks and save them."""
        for key, slot in zip(keys, slots, strict=True):
            fill(self._memory[:, slot], self._namespace, key, 0)
        began = time.perf_counter()
        done = self._cache.save(keys, slots, parent=parent, timeout=COPY_SECONDS)
        seconds = time.perf_counter() - began
        record.saved += done.saved
        record.known += done.known
        if done.status is not Status.OK:
            failures[f"save {done.status.words}"] += 1
        elif done.saved:
            record.save_seconds += seconds
            record.save_bytes += done.saved * self._shape.block_bytes

    def _slots(self, count: int) -> list[int]:
        slots = [(self._next + n) % self._shape.blocks for n in range(count)]
        self._next = (self._next + count) % self._shape.blocks
        return slots

    def _reconnect(self) -> None:
        if self._cache.attached or self._patience <= 0:
            return
        began = time.monotonic()
        self._cache.connect(self._patience)
        self._patience -= time.monotonic() - began


def main(arguments: Sequence[str]) -> int:
    """Carry out a job; the exit status."""
    signals.obedient()
    (path,) = arguments
    with open(path, encoding="utf-8") as file:
        job = Job.load(file.read())
    memory = job.shape.allocate()
    namespace = bytes.fromhex(job.namespace)
    client = Client(job.engine, namespace, endpoint=job.endpoint)
    client.register(job.shape.layout(), list(memory))
    began = time.monotonic_ns()
    if not client.connect(CONNECT_SECONDS):
        print(client.refusal or "no session was given to us", file=sys.stderr)
        return 1
    now = time.monotonic_ns()
    _report(Attached((now - job.spawned_ns) / 1e9, (now - began) / 1e9))
    for record in Engine(client, job.shape, memory, namespace).replay(job.work()):
        _report(record)
    client.close()
    return 0


def _report(line: Attached | Record) -> None:
    data = (json.dumps(asdict(line)) + "\n").encode()
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
