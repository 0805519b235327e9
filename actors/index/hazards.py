"""What sessions keep by their own word: hazards.  See wire/index.py.

A session writes into its hazard file which blocks it is using, and tells nobody.  So before
anything is freed every file that we have noted is read, behind a barrier that makes visible what
was written before it.  A file is dropped when its session is proven dead, never before, and is
known by the session's life, so the next owner of the name has none until it has said so.

Where the barrier is refused no hazard can be honoured: sessions are told so, and look up by
message.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pegaflow.actors.runtime.contract import Effect, Note, On, Part, Reply, Sender, on
from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.hazards import HazardReader, Pages
from pegaflow.wire.control import LogLevel
from pegaflow.wire.index import HazardFile, HazardsNoted
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import SESSION, Address, U64s

from .memory import Memory

WHY_CHARS: Count = 1000
"""Of a reason that is told: it has a path in it, which may be of any length."""

Mask = npt.NDArray[np.bool_]


class Hazards(Part):
    """The hazard files of the living."""

    def __init__(self, memory: Memory, counts: Counter[str]) -> None:
        self._memory, self._counts = memory, counts
        self._files: dict[Address, tuple[U64s, HazardReader]] = {}  # by session: which file it is
        self._refused = ""  # why no barrier is to be had
        self._said = False  # that this is so

    def handlers(self) -> Iterable[On]:
        """Sessions announce their files."""
        return (on(HazardFile, self._on_hazard_file, SESSION),)

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Its hazards end."""
        self._files.pop(dead, None)
        return []

    def beat(self, now: int) -> list[Effect]:
        """Say once that there is no barrier."""
        if self._said or not self._refused:
            return []
        self._said = True
        return [Note("hazards_refused", (("why", self._refused),), LogLevel.WARNING)]

    def gauges(self) -> dict[str, int]:
        """How many files are read before anything is freed."""
        return {"hazard_files": len(self._files)}

    def remarks(self) -> tuple[str, ...]:
        """Lookups are slower than they could be."""
        why = f"every lookup is asked of the index: no memory barrier ({self._refused})"
        return (why,) if self._refused else ()

    def noted(self, session: Address) -> bool:
        """Whether its file is read."""
        return session in self._files

    def pages(self) -> Pages:
        """What hazards name, as far as one can see without a barrier.

        Returns:
            First pages of blocks, each once, ascending.
        """
        named = [reader.pages() for _, reader in self._files.values()]
        return distinct(np.concatenate([np.empty(0, np.int64), *named]))

    def standing(self, first: Pages, stamps: U64) -> Mask:
        """Which blocks somebody is using.

        Args:
            first: page of each, whose record says that it is leaving, so that nobody begins to use
                it.
            stamps: beside `first`.

        Returns:
            Whether it is used, beside `first`; without a barrier all are.
        """
        found = np.zeros(len(first), np.bool_)
        if not self._files or not len(first):
            return found
        self._refused = self._memory.barrier()
        if self._refused:
            return ~found
        for _, reader in self._files.values():
            found |= reader.named(first, stamps)
        return found

    def _on_hazard_file(self, sender: Sender, msg: HazardFile, now: int) -> list[Effect]:
        status, why = self._note_file(sender.address, msg)
        if why:
            self._counts["hazard_files_refused"] += 1
        return [Reply(sender, HazardsNoted(status, why))]

    def _note_file(self, session: Address, msg: HazardFile) -> tuple[Status, str]:
        known = self._files.get(session)
        if known is not None:  # what it has written there stands until it is dead
            same = tuple(known[0]) == tuple(msg.file)
            return (Status.OK, "") if same else (Status.BAD_REQUEST, "another file was noted")
        self._refused = self._memory.barrier()
        if self._refused:
            return Status.NOT_READY, self._refused
        opened = self._memory.open_hazards(msg)
        if isinstance(opened, str):
            return Status.GONE, opened[:WHY_CHARS]
        self._files[session] = msg.file, opened
        return Status.OK, ""
