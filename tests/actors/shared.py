"""What a session shares with an index: the ledger with its table, and its hazards."""

import numpy as np

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.hazards import Opened
from pegaflow.core.errors import UserError
from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import HazardReader, Hazards, LentRows, cut, hazard_bytes
from pegaflow.core.pool.ledger import Header, Ledger, Record
from pegaflow.core.pool.table import Table, TableReader, file_bytes
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Incarnation, Key, PageId, Stamp
from tests.naming import as_pages

from .rig import EXTENT, POOL

GEOMETRY = Geometry(POOL, EXTENT)


class Shared:
    """Ledger and table, as an index writes them, and the hazard file of one session.

    Args:
        rows: of the hazard file.
        refusal: why there are no hazards.
        geometry: the pool's.
    """

    def __init__(self, rows: int = 64, refusal: str = "", geometry: Geometry = GEOMETRY) -> None:
        self.geometry = geometry
        pool, extent, each = geometry.pool_bytes, geometry.extent_bytes, geometry.records_per_extent
        self.records = geometry.extents * each
        self.buffer = bytearray(file_bytes(self.records))
        self.ledger = Ledger.format(
            self.buffer,
            Header(
                bytes(16),
                b"boot",
                pool,
                extent,
                records_per_extent=each,
                incarnation=Incarnation(1),
            ),
        )
        self.table = Table(self.buffer, self.records, lambda at, length: "")
        assert self.table.begin(0) == ""
        self.table.publish()
        self.file = bytearray(hazard_bytes(rows, sections=2))
        self.refusal = refusal
        self.opened = 0  # hazard files so far
        self._stamp = 1000  # of the newest seal
        self._prints: dict[PageId, int] = {}  # first page of a block -> its fingerprint

    def open_hazards(self, welcome: Welcome) -> Opened:
        """What the device does."""
        if self.refusal:
            raise UserError(self.refusal)
        self.opened += 1
        own, lent = cut(self.file, 2)
        return Opened(Hazards(own), LentRows(lent), "hazards", (7, 8))

    def open_finder(self, welcome: Welcome) -> Finder:
        """What the device does."""
        reader = TableReader(self.buffer, self.records)
        return Finder(Ledger(self.buffer), reader, self.geometry)

    def seal(
        self,
        actor: Session,
        keys: tuple[Key, ...],
        at: tuple[int, ...],
        sums: tuple[int, ...] = (),
    ) -> None:
        """These blocks of the session's engine are in memory, in these pages, under new stamps."""
        pages, space = as_pages(*at), actor.engine.space
        assert space is not None and len(pages) == len(keys) * space.shards
        for n, page in enumerate(pages):
            self._stamp += 1
            block, shard = divmod(n, space.shards)
            record = Record(
                stamp=Stamp(self._stamp),
                seal=self._stamp - shard,
                shard=shard,
                shards=space.shards,
                payload_bytes=space.payload_bytes,
                namespace=space.namespace,
                key=keys[block],
                checksum=sums[n] if sums else None,
                depth=block,
            )
            self.ledger.seal([page], [record])
        prints = fingerprints(space.namespace, keys)
        self.table.add(prints, pages, space.shards)
        self._prints.update(zip(pages[:: space.shards], prints.tolist(), strict=True))

    def evict(self, *at: int) -> None:
        """As an index does that has not seen our hazards."""
        pages = as_pages(*at)
        self.ledger.void(pages)
        firsts = [page for page in pages if page in self._prints]
        prints = np.array([self._prints.pop(page) for page in firsts], np.uint64)
        self.table.remove(prints, firsts)

    @property
    def named(self) -> list[int]:
        """The pages that hazards name."""
        return sorted(HazardReader(self.file).pages().tolist())
