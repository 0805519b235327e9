"""What the pages of an engine mean: its shards' blocks, as they were when the last rank came.

It stays while ranks come and go.  Ranks that register other blocks make another space: no page, no
lease and no order of the one before is theirs.
"""

from dataclasses import dataclass

from pegaflow.core.pool.columns import Places, column, offsets_of, said
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import Geometry, slot_size
from pegaflow.wire.control import Serve, Welcome
from pegaflow.wire.identities import Namespace
from pegaflow.wire.units import Share
from pegaflow.wire.values import Packed

from .ranks import Rank, namespace, shards

USED_SHARE: Share = 1 / 4
"""Of the pool: pages of one engine's open saves are no more.  An engine that never ends its saves,
be it stopped or ill, must not keep the others from theirs."""


@dataclass(frozen=True, slots=True)
class Space:
    """The pages of a complete engine."""

    namespace: Namespace
    page_size: int
    payload_bytes: int  # bytes of a page that mean something to the rank with the largest block
    shard_of: tuple[int, ...]  # the shard of each rank
    verify: bool  # a checksum is made of each page
    used_bytes_max: int  # of the pages of open saves; 0: any number
    geometry: Geometry  # the pool's

    @property
    def ranks(self) -> int:
        """Ranks of the engine."""
        return len(self.shard_of)

    @property
    def shards(self) -> int:
        """Pages of a block."""
        return self.shard_of[-1] + 1

    @property
    def block_bytes(self) -> int:
        """Bytes of the pool that a block takes."""
        return slot_size(self.page_size) * self.shards

    def offsets(self, pages: U64 | Places) -> Packed[int]:
        """Where these pages are in the pool."""
        return said(offsets_of(self.geometry, column(pages), self.page_size))


def space_of(welcome: Welcome, serve: Serve, ranks: dict[int, Rank]) -> Space:
    """The space of ranks that are all there."""
    return Space(
        namespace=namespace(serve, ranks),
        page_size=max(rank.page_size for rank in ranks.values()),
        payload_bytes=max(rank.payload_bytes for rank in ranks.values()),
        shard_of=shards(ranks),
        verify=welcome.verify,
        used_bytes_max=int(welcome.pool_bytes * USED_SHARE) if welcome.max_pinned_bytes else 0,
        geometry=Geometry(welcome.pool_bytes, welcome.extent_bytes),
    )
