"""Which blocks are there: looked up without a message, by whoever has the memory mapped.

The table (table.py) says which pages may hold the blocks.  Their stamps are read, hazards are
published (hazards.py), and after that, never before, the ledger's records decide: sealed, under
that stamp, of this namespace and key.  The leading run that passes is the answer, its hazards keep
it in place, and those of the others are cleared.  A record that is torn, or of another block, ends
the run: the table is a hint.

A hazard names the first page of a block and keeps all of its pages, since the index lets all of
them leave before it reads hazards, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.values import LIST_MAX

from .fingerprints import U64, fingerprints
from .geometry import Geometry, slot_size
from .hazards import Hazards, Pages, Rows
from .ledger import LEAVING, MAX_KEY, RECORD_BYTES, SEALED, Ledger, sums_of
from .records import ROW
from .table import TableReader

Mask = npt.NDArray[np.bool_]

# Words of a record, and bytes of it, where ledger.py puts them.
_STATE, _STAMP, _SEAL = 0, 1, 2
_PAYLOAD_BYTES = 7  # half a word
_SHARD_AT = 24
_SHARD = Struct("=HHI")  # which, of how many, bytes of payload
_NAMESPACE_AT = _SHARD_AT + _SHARD.size


class Run(NamedTuple):
    """Blocks that are in place, and stay there until their hazards are cleared."""

    blocks: int
    payload_bytes: int  # in each page
    pages: Pages  # `shards` per block, block-major
    records: U64  # of the ledger, as they were read; beside `pages`
    bytes_: int  # of the pool, in their slots
    rows: Rows  # their hazards, one per block
    cut: bool  # more is here, beyond `most_bytes` or the hazards that are left
    goes_on: bool = False  # a tier may have the next block

    @property
    def stamps(self) -> U64:
        """Beside `pages`."""
        return self.records[:, _STAMP]

    @property
    def checksums(self) -> U64:
        """Beside `pages`; 0 where it was never computed."""
        sums: U64 = self.records.view(ROW)["checksum"].reshape(-1)
        return sums


class Sight(NamedTuple):
    """What was seen of each of some blocks; nothing keeps it so."""

    here: Mask  # it is in memory
    below: Mask | None  # a tier may have it; None: that is not known of each block


class _Wanted(NamedTuple):
    """What a lookup is for."""

    namespace: Namespace
    keys: Sequence[Key]
    longest: int  # bytes of a key
    shards: int


class Finder:
    """Finds runs of blocks in the memory of one pool."""

    def __init__(self, ledger: Ledger, table: TableReader, geometry: Geometry) -> None:
        self._records = ledger.rows()
        self._stamps = self._records[:, _STAMP]
        self._table = table
        self._per_extent = geometry.records_per_extent

    def find(
        self,
        namespace: Namespace,
        keys: Sequence[Key],
        hazards: Hazards,
        *,
        shards: int,
        most_bytes: int,
        between: Callable[[str], object] = bool,
    ) -> Run | None:
        """Find the leading run of these keys that is here, and keep it in place.

        Args:
            hazards: the run's are among them, until the caller clears them.
            shards: pages of each block; blocks of others are not found.
            most_bytes: of the pool, that the run may take.
            between: told what was done last: "probed", "published".

        Returns:
            The run as far as it fits `most_bytes`, the hazards that are left, and a list; it may
            have no block.  None: only the index can say.
        """
        if self._table.closed or not keys:
            return None
        wanted = _Wanted(namespace, keys, max(map(len, keys)), shards)
        if wanted.longest > MAX_KEY:
            return None
        names = fingerprints(namespace, keys, wanted.longest)
        found = self._table.find(names)
        if found is None:
            return None
        between("probed")
        pages = self._candidates(found)[: LIST_MAX // shards]
        try:
            stamps = self._stamps[pages]
        except IndexError:  # a page beyond the pool: this is no table
            return None
        rows = hazards.publish(pages, stamps)
        between("published")
        count = len(rows)
        every = self._passing(pages[:count], stamps[:count], wanted)
        run = _run(*every, rows, most_bytes=most_bytes, cut=count < len(pages))
        if run.blocks < count:
            hazards.clear(rows[run.blocks :])
        if run.blocks < len(keys) and self._table.may_go_on(int(names[run.blocks])):
            return run._replace(goes_on=True)
        return run

    def see(self, namespace: Namespace, keys: Sequence[Key], *, shards: int) -> Sight | None:
        """Look at blocks, in any order, without keeping them.

        Args:
            shards: pages of each block; blocks of others are not seen.

        Returns:
            None: only the index can say.
        """
        longest = max(map(len, keys), default=MAX_KEY + 1)
        if longest > MAX_KEY:
            return None
        names = fingerprints(namespace, keys, longest)
        found = self._table.find(names)
        if found is None:
            return None
        here = (found >= 0) & (found < len(self._records))
        records = self._records.take(np.where(here, found, 0), axis=0)
        rows = records.view(ROW)[:, 0]
        here &= _are_sealed(records) & (rows["shard"] == 0) & (rows["shards"] == shards)
        expected, width = _expected(namespace, keys, longest)
        part = records.view(np.uint8)[:, _NAMESPACE_AT : _NAMESPACE_AT + width]
        here &= (part == np.frombuffer(expected, np.uint8).reshape(-1, width)).all(axis=1)
        return Sight(here, self._table.below(names))

    def sealed(self, pages: Pages, stamps: U64) -> bool:
        """Whether all of these pages hold now what was sealed in them under these stamps.  One that
        is leaving does: it is not free before it is void, and who has a hazard makes it stay.

        Args:
            pages: any of a run's, not only first ones.
            stamps: beside `pages`, those of the run.
        """
        records = self._records.take(pages, axis=0)
        return bool((_hold_blocks(records) & (records[:, _STAMP] == stamps)).all())

    def kept(self, namespace: Namespace, pages: Pages, stamps: U64, shards: int) -> U64 | None:
        """Look at blocks that somebody else has found.

        Args:
            namespace: that all of them are to be of.
            pages: of the blocks, `shards` each, block-major; any numbers.
            stamps: beside `pages`.

        Returns:
            Their checksums, beside `pages`; None if these are no such blocks.
        """
        if len(pages) % shards or (pages < 0).any() or (pages >= len(self._records)).any():
            return None
        records = self._records.take(pages, axis=0)
        good, rows = _hold_blocks(records), records.view(ROW)[:, 0]
        good &= (records[:, _STAMP] == stamps) & (rows["shards"] == shards)
        good &= rows["shard"] == np.arange(len(pages)) % shards
        good &= rows["namespace"] == namespace
        good &= rows["seal"] == np.repeat(rows["seal"][::shards], shards)
        return rows["checksum"] if good.all() else None

    def _candidates(self, found: Pages) -> Pages:
        """The leading run of pages, out of the extent that is being cleared."""
        good = found >= 0
        clearing = self._table.clearing
        if clearing is not None:
            good &= found // self._per_extent != clearing
        return found[: _leading(good)]

    def _passing(self, pages: Pages, stamps: U64, wanted: _Wanted) -> tuple[U64, Pages]:
        """Records and pages of the leading blocks that are what is looked for, in every shard: a
        row per block, a column per shard."""
        first = self._records.take(pages, axis=0)
        good = _are_sealed(first)
        good &= first[:, _STAMP] == stamps
        all_records, all_pages = [first], [pages]
        payload_bytes = _payload_bytes(first)
        shards = wanted.shards
        for shard in range(shards):
            if shard:
                pages, good = self._after(all_pages[-1])
                all_records.append(self._records.take(pages, axis=0))
                all_pages.append(pages)
                good &= _are_sealed(all_records[-1])
                good &= all_records[-1][:, _SEAL] == all_records[0][:, _SEAL]
            says = _SHARD.pack(shard, shards, payload_bytes) + wanted.namespace
            said = _say(all_records[-1], says, wanted)
            if said is not None:
                good &= said
            count = _leading(good)
            if count < len(good):
                all_records = [part[:count] for part in all_records]
                all_pages = [part[:count] for part in all_pages]
        if shards == 1:
            return all_records[0][:, None], all_pages[0][:, None]
        return np.stack(all_records, axis=1), np.stack(all_pages, axis=1)

    def _after(self, pages: Pages) -> tuple[Pages, Mask]:
        """The pages of the next shards, and which there are; where there is none, the same page,
        whose record says that it is another shard."""
        after = self._table.next_shards(pages)
        there = after >= 0
        clearing = self._table.clearing
        if clearing is not None:
            there &= after // self._per_extent != clearing
        return np.where(there, after, pages), there


def _are_sealed(records: U64) -> Mask:
    """Which of these copies of records are whole and sealed."""
    words = sums_of(records[:, 1:])
    words |= np.uint64(SEALED)
    same: Mask = words == records[:, _STATE]
    return same


def _hold_blocks(records: U64) -> Mask:
    """Which of them are whole, and sealed or leaving."""
    sums, words = sums_of(records[:, 1:]), records[:, _STATE]
    held: Mask = (words == sums | np.uint64(SEALED)) | (words == sums | np.uint64(LEAVING))
    return held


def _say(records: U64, says: bytes, wanted: _Wanted) -> Mask | None:
    """Which of them say this, and the key beside them; None if all do."""
    count, (expected, width) = len(records), _expected(says, wanted.keys, wanted.longest)
    part = records.view(np.uint8)[:, _SHARD_AT : _SHARD_AT + width]
    if part.tobytes() == expected[: count * width]:
        return None
    described = np.frombuffer(expected, np.uint8, count * width).reshape(count, width)
    same: Mask = (part == described).all(axis=1)
    return same


def _expected(says: bytes, keys: Sequence[Key], longest: int) -> tuple[bytes, int]:
    """For each key: this, the length of the key, and the key; and how long each is."""
    prefix = says + bytes([longest])
    expected = prefix + prefix.join(keys)
    width = len(prefix) + longest
    if len(expected) < width * len(keys):
        named = [says + bytes([len(key)]) + key.ljust(longest, b"\0") for key in keys]
        expected = b"".join(named)
    return expected, width


def _payload_bytes(records: U64) -> int:
    """Bytes of payload that the first of them says; 0 without one."""
    return int(records.view(np.uint32).flat[_PAYLOAD_BYTES]) if len(records) else 0


def _leading(good: Mask) -> int:
    """How many hold before the first that does not."""
    first = int(good.argmin()) if len(good) else 0
    return len(good) if len(good) and good[first] else first


def _run(records: U64, pages: Pages, rows: Rows, *, most_bytes: int, cut: bool) -> Run:
    """The run of these blocks, as far as it fits."""
    count, shards = pages.shape
    payload_bytes = _payload_bytes(records)
    size = slot_size(-(-payload_bytes // PAGE_ALIGN) * PAGE_ALIGN) * shards if payload_bytes else 1
    fits = min(count, most_bytes // size)
    used = records[:fits].reshape(-1, RECORD_BYTES // 8)
    return Run(
        blocks=fits,
        payload_bytes=payload_bytes,
        pages=pages[:fits].reshape(-1),
        records=used,
        bytes_=fits * size,
        rows=rows[:fits],
        cut=fits < count or (cut and count == len(rows)),
    )
