"""The copies of a session's process: bounce files, engines' memory, and both with the pool.

Everything here runs in the worker threads, but for `unmap`.  A copy is cut into as many parts as
there are threads, so that a single large load is moved by all of them.
"""

import os
from collections.abc import Callable

from xxhash import xxh3_64_intdigest

from pegaflow.actors.runtime.workers import Part
from pegaflow.device.engine.process_vm import ForeignMemory
from pegaflow.device.engine.staged import Bounce
from pegaflow.device.memory import SharedFile
from pegaflow.wire.jobs import (
    Done,
    FillPages,
    MapEngine,
    OpenBounce,
    ReadBlocks,
    SumPages,
    WriteBlocks,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import U64s

PART_BYTES = 1 << 20
"""Least bytes of a part: to wake another thread costs as much as copying some hundred KiB."""


class Copies:
    """One session's mappings.

    Args:
        pool: the pool's file.
        stem: path that the names of our bounce files begin with.
        threads: how many parts a copy is worth cutting into.
    """

    def __init__(self, pool: SharedFile, stem: str, threads: int) -> None:
        self._pool = pool
        self._stem = stem
        self._threads = threads
        self._bounces: dict[int, Bounce] = {}  # by mapping
        self._engines: dict[int, ForeignMemory] = {}  # by mapping

    def parts(self, job: Message) -> list[Part]:
        """A job as parts for the threads, or one part if it is no copy."""
        if isinstance(job, FillPages):
            fill = self._bounces[job.mapping].fill
            pool = self._pool.map

            def fill_part(first: int, last: int) -> Done:
                fill(pool, job.slots[first:last], job.offsets[first:last], job.length)
                return Done(Status.OK)

            return self._cut(len(job.slots), job.length, fill_part)
        if isinstance(job, SumPages):
            return [lambda: Done(Status.OK, "", self._sums(job.offsets, job.length))]
        if isinstance(job, ReadBlocks | WriteBlocks):
            engine = self._engines[job.mapping]
            move = engine.read if isinstance(job, ReadBlocks) else engine.write
            address = self._pool.address
            sums = job.checksums if isinstance(job, WriteBlocks) else ()

            def move_part(first: int, last: int) -> Done:
                blocks, offsets = job.blocks[first:last], job.offsets[first:last]
                bad = self._differing(offsets, sums[first:last], engine.payload) if sums else ()
                if bad:
                    return Done(Status.CORRUPT, "the pool does not hold what was saved", bad)
                return Done(*move(address, blocks, offsets, job.deadline))

            return self._cut(len(job.blocks), engine.payload, move_part)
        if isinstance(job, OpenBounce):
            return [lambda: self._open_bounce(job)]
        assert isinstance(job, MapEngine), job
        return [lambda: self._map(job)]

    def _cut(self, count: int, size: int, part: Callable[[int, int], Done]) -> list[Part]:
        """Parts of about equal size over `count` blocks of `size` bytes."""
        cuts = max(1, min(self._threads, count, count * size // PART_BYTES))
        edges = [count * n // cuts for n in range(cuts + 1)]
        return [
            lambda first=first, last=last: part(first, last)  # type: ignore[misc]
            for first, last in zip(edges, edges[1:], strict=False)
        ]

    def _sums(self, offsets: U64s, length: int) -> tuple[int, ...]:
        """Checksums of the pool's bytes; never 0, which means that there is none."""
        with memoryview(self._pool.map) as pool:
            return tuple(xxh3_64_intdigest(pool[at : at + length]) or 1 for at in offsets)

    def _differing(
        self, offsets: tuple[int, ...], sums: tuple[int, ...], length: int
    ) -> tuple[int, ...]:
        """The offsets where the pool does not hold what was sealed."""
        triples = zip(offsets, sums, self._sums(offsets, length), strict=True)
        return tuple(at for at, sealed, found in triples if sealed not in (0, found))

    def _open_bounce(self, job: OpenBounce) -> Done:
        name = f"{job.slots}x{job.page_size}.{os.urandom(4).hex()}.bounce"
        bounce = Bounce(f"{self._stem}.{name}", job.slots, job.page_size)
        why = bounce.reserve()
        if why:
            bounce.file.unlink()
            return Done(Status.NO_SPACE, f"no room for a bounce file in /dev/shm: {why}")
        self._bounces[job.mapping] = bounce
        return Done(Status.OK, bounce.file.path, bounce.file.id)

    def _map(self, job: MapEngine) -> Done:
        self._engines[job.mapping] = ForeignMemory(
            pid=job.pid,
            started=job.started,
            bases=tuple(job.bases),
            layout=job.layout,
            scratch=job.scratch,
            proof=job.proof,
        )
        return Done(Status.OK)

    def unmap(self, mapping: int) -> None:
        """Running copies of this mapping stop at their next chunk; new ones are not asked for."""
        engine = self._engines.pop(mapping, None)
        if engine is not None:
            engine.closed = True
        bounce = self._bounces.pop(mapping, None)
        if bounce is not None:
            bounce.file.unlink()

    def close(self) -> None:
        """Remove what only this process used."""
        for bounce in self._bounces.values():
            bounce.file.unlink()
