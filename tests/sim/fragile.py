"""What a simulated index maps: a ledger whose writer may die at any of its words, and the hazards
of sessions, of which it sees what was written before its last barrier."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.hazards import HazardReader
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.records import BODY
from pegaflow.core.pool.table import Table
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import PageId
from pegaflow.wire.index import HazardFile

from .files import Files
from .world import Died, World

Pages = Sequence[PageId] | npt.NDArray[np.int64] | U64


def _ids(pages: Pages) -> list[PageId]:
    return [PageId(int(page)) for page in pages]


class FragileLedger(Ledger):
    """A ledger whose writer may die at any of its words."""

    fuse: int | None = None  # words until then; None: it does not
    halves = False  # it dies between the pages of the next block that has several

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Died("crashes while it writes the ledger")

    def seal_bodies(self, pages: Pages, bodies: U64) -> None:
        """With a death before a page, or between its body and its state word."""
        seconds = np.flatnonzero(bodies.view(BODY)["shard"]).tolist() if self.halves else []
        if seconds:
            super().seal_bodies(pages[: seconds[0]], bodies[: seconds[0]])
            raise Died("crashes between two pages of a block")
        if self._lasts(2 * len(pages)):
            super().seal_bodies(pages, bodies)
            return
        for at, page in enumerate(_ids(pages)):
            self._burn()
            super().seal_bodies([page], bodies[at : at + 1])
            if self.fuse == 0:
                self._words[self._at(page) // 8] = 0
            self._burn()

    def void(self, pages: Pages) -> None:
        """With a death before a page."""
        for part in self._parts(pages):
            super().void(part)

    def _parts(self, pages: Pages) -> Iterator[Pages]:
        """All of them at once, or one by one until it dies."""
        if self._lasts(len(pages)):
            yield pages
            return
        for page in _ids(pages):
            self._burn()
            yield [page]

    def leave(self, pages: Pages) -> None:
        """With a death before a page."""
        for part in self._parts(pages):
            super().leave(part)

    def stay(self, pages: Pages) -> None:
        """With a death before a page."""
        for part in self._parts(pages):
            super().stay(part)

    def _lasts(self, words: int) -> bool:
        """Whether it lives to write so many words."""
        if self.fuse is None or self.fuse < words:
            return self.fuse is None
        self.fuse -= words
        return True


class IndexMemory:
    """The memory of one index's process (actors/index/memory.py)."""

    def __init__(self, world: World, files: Files) -> None:
        self._world, self._files = world, files
        self._hazards: list[tuple[bytearray, bytearray]] = []  # as written, and as seen
        self.ledger: FragileLedger | None = None

    def open(self, welcome: Welcome) -> tuple[Ledger, Table]:
        """The ledger and its table; at times there is no room for another half of that."""
        buffer = self._files.named[welcome.ledger_path]
        self.ledger = FragileLedger(buffer)
        return self.ledger, Table(buffer, self.ledger.records, self._reserve)

    def _reserve(self, offset: int, length: int) -> str:
        if self._world.rough and self._world.rng.random() < 0.1:
            self._world.counts["no room for a table"] += 1
            return "no room"
        return ""

    def open_hazards(self, msg: HazardFile) -> HazardReader | str:
        """The file of this name."""
        written = self._files.named.get(msg.path)
        if written is None:
            return f"cannot open {msg.path}"
        seen = bytearray(written)
        self._hazards.append((written, seen))
        return HazardReader.fault(seen) or HazardReader(seen)

    def barrier(self) -> str:
        """Everything that was written before is seen."""
        for written, seen in self._hazards:
            seen[:] = written
        return ""
