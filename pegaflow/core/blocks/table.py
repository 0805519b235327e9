"""From block keys to resident blocks.

Keys are the engine's chained hashes: a key says everything about the blocks before it, so a prefix
query looks for all keys at once and stops at the first that is not here.

What is here is columns: from fingerprints to first pages (keymap.py), and what is known of each
page (columns.py).  The ledger's records say the rest: namespace, key, stamps, depth.  Whoever
handles many blocks at once names them by their first pages; a `Block` (handles.py) is made of one
only if somebody is to refer to it.

Two keys may have the same fingerprint, if somebody wants it so: the second of them is in a dict.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.columns import again, repeats
from pegaflow.core.pool.fingerprints import U64, fingerprints, fold
from pegaflow.core.pool.ledger import NAMESPACE_BYTES, RECORD_BYTES, Record
from pegaflow.core.pool.records import ROW, are_of, body_of, keys_of, page_sizes
from pegaflow.core.pool.scan import by_namespace
from pegaflow.wire.identities import NO_KEY, Key, Namespace, PageId, Stamp
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.units import Bytes, Count

from .chains import Chains
from .columns import Columns, Mask, Pages
from .handles import Block as Block
from .handles import Handles
from .keymap import KeyMap


class Looked(NamedTuple):
    """What a search for keys has found, beside them."""

    first: Pages  # first pages of their blocks, -1 where there is none
    names: U64  # their fingerprints
    taken: bool  # whether some fingerprint is that of a block with another key


class Fresh(NamedTuple):
    """Blocks of one namespace that are new, and of which no page belongs to another."""

    namespace: Namespace
    keys: Sequence[Key]  # all different
    names: U64  # their fingerprints
    pages: Pages  # a row per block, a column per shard
    page_size: Bytes


class Old(NamedTuple):
    """The same of blocks that an earlier life has left, whose keys may be those of others."""

    namespace: Namespace
    names: U64
    rows: npt.NDArray[Any]  # records of their first pages, of ROW
    pages: Pages
    page_size: Bytes

    def fresh(self, places: Pages | slice, keys: tuple[Key, ...]) -> Fresh:
        """Those at these places; without keys none of them has the fingerprint of another."""
        return Fresh(
            namespace=self.namespace,
            keys=keys,
            names=self.names[places],
            pages=self.pages[places],
            page_size=self.page_size,
        )


class Cut(NamedTuple):
    """How the blocks of a namespace are cut, and how many there are."""

    page_size: Bytes
    shards: int
    blocks: Count


class PrefixIndex:
    """The resident blocks, by key and by page.

    Args:
        read: the ledger record of a page.
        rows: the ledger's records of pages as rows of words, the state word first; None: they are
            made of what `read` says.
        stamps: the same of the word that says under which stamp a page is filled.
    """

    def __init__(
        self,
        read: Callable[[PageId], Record | None] = lambda page: None,
        rows: Callable[[Pages], U64] | None = None,
        stamps: Callable[[Pages], U64] | None = None,
    ) -> None:
        self.columns = Columns()
        self.handles = Handles(self._made, self._made_all if rows is not None else None)
        self._map = KeyMap()
        self._twins: dict[tuple[Namespace, Key], PageId] = {}  # whose fingerprint another one has
        self._cuts: dict[Namespace, Cut] = {}  # none without blocks
        self._read = read
        self._rows = rows if rows is not None else self._rows_read
        if stamps is None:
            stamps = lambda pages: self._rows(pages)[:, 1]  # noqa: E731
        self.chains = Chains(self.columns, self._map, stamps)

    # by key

    def known(self, namespace: Namespace, keys: Sequence[Key]) -> Pages:
        """The first pages of the blocks of these keys, -1 where there is none."""
        return self.look(namespace, keys).first

    def look(self, namespace: Namespace, keys: Sequence[Key]) -> Looked:
        """Search for keys."""
        if not keys or len(namespace) != NAMESPACE_BYTES:
            return Looked(np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.uint64), False)
        names = fingerprints(namespace, keys)
        if namespace not in self._cuts:
            taken = bool(self.are_taken(names).any())
            return Looked(np.full(len(keys), -1, np.int64), names, taken)
        found, taken = self._map.find(names), False
        hit = np.flatnonzero(found >= 0)
        if len(hit):
            wanted = keys if len(hit) == len(keys) else [keys[at] for at in hit.tolist()]
            same = are_of(self._rows(found[hit]), namespace, wanted)
            found[hit[~same]] = -1
            taken = bool(np.count_nonzero(same) < len(same))
        for at in np.flatnonzero(found < 0).tolist() if self._twins else ():
            found[at] = self._twins.get((namespace, keys[at]), -1)
        return Looked(found, names, taken)

    def page(self, namespace: Namespace, key: Key) -> PageId | None:
        """The first page of the block of this key; None: there is none."""
        found = int(self.known(namespace, (key,))[0]) if key else -1
        return PageId(found) if found >= 0 else None

    def get(self, namespace: Namespace, key: Key) -> Block | None:
        """The resident block of this key; None: there is none."""
        page = self.page(namespace, key)
        return None if page is None else self.handles.of(page)

    def find(self, namespace: Namespace, keys: Sequence[Key]) -> list[Block]:
        """The blocks of the longest leading run of keys that are all here.

        Args:
            keys: in chain order.

        Returns:
            As many blocks as the run is long.
        """
        found = self.look(namespace, keys).first
        absent = np.flatnonzero(found < 0)
        run = found[: absent[0]] if len(absent) else found
        return self.handles.all_of(run)

    def cut(self, namespace: Namespace) -> Cut | None:
        """How blocks of the namespace are cut; None: none of it is here."""
        return self._cuts.get(namespace)

    # by page

    def by_page(self, page: PageId) -> Block | None:
        """The resident block that has this page; None: no block does."""
        first = self.columns.head(page)
        return self.handles.of(first) if first is not None else None

    def heads(self, pages: Pages) -> Pages:
        """The first pages of the blocks that have these, -1 where there is none."""
        return self.columns.heads(pages)

    def holds(self, block: Block) -> bool:
        """Whether it is still here."""
        return self.handles.get(block.pages[0]) is block

    # what comes and goes

    def add(self, block: Block) -> None:
        """The block is new, and no page of it belongs to another."""
        self.add_blocks([block])

    def add_blocks(self, blocks: Sequence[Block]) -> None:
        """The same of several of one namespace, with equally many pages each."""
        if blocks:
            namespace, page_size = blocks[0].namespace, blocks[0].page_size
            keys = tuple([block.key for block in blocks])
            pages = np.array([block.pages for block in blocks], np.int64)
            for block in blocks:
                assert len(block.pages) == len(block.stamps) == len(set(block.pages)) > 0, block
                self.handles.note(block)
            names = fingerprints(namespace, keys)
            new = Fresh(
                namespace=namespace, keys=keys, names=names, pages=pages, page_size=page_size
            )
            self.put(new, 0, self.are_taken(names))

    def put(self, new: Fresh, born_ns: int, taken: Mask | None = None) -> None:
        """These blocks are resident now.

        Args:
            born_ns: when they were published.
            taken: which of their fingerprints those of other blocks are; None: none.
        """
        first, names = new.pages[:, 0], new.names
        if repeats(names):
            twice = again(names)
            taken = twice if taken is None else taken | twice
        if taken is not None and np.count_nonzero(taken):
            for at in np.flatnonzero(taken).tolist():
                assert (new.namespace, new.keys[at]) not in self._twins, new.keys[at]
                self._twins[new.namespace, new.keys[at]] = PageId(int(first[at]))
            self._map.put(names[~taken], first[~taken])
        else:
            self._map.put(names, first)
        self.columns.add(new.pages, born_ns)
        before = self._cuts.get(new.namespace)
        count = (before.blocks if before else 0) + len(names)
        self._cuts[new.namespace] = Cut(new.page_size, new.pages.shape[1], count)

    def reserve(self, blocks: Count) -> None:
        """So many blocks are coming to an empty index."""
        self._map.reserve(blocks)

    def adopt(self, found: Old) -> Mask:
        """These blocks are resident, if no other one has the same key.

        Returns:
            Which are.
        """
        taken = self.are_taken(found.names) | again(found.names)
        here = ~taken
        if here.any():
            self.put(found.fresh(slice(None) if here.all() else np.flatnonzero(here), ()), 0)
        for at in np.flatnonzero(taken).tolist():
            (key,) = keys_of(found.rows[at : at + 1])
            if self.page(found.namespace, key) is None:
                self.put(found.fresh(slice(at, at + 1), (key,)), 0, taken[at : at + 1])
                here[at] = True
        return here

    def are_taken(self, names: U64) -> Mask:
        """Which of these fingerprints a block has."""
        found: Mask = self._map.find(names) >= 0
        return found

    def remove(self, block: Block) -> None:
        """It is not resident any more."""
        assert self.holds(block), block
        first = np.array(block.pages[:1], np.int64)
        self.drop(first, self._rows(first), np.array(block.pages, np.int64))

    def drop(self, first: Pages, records: U64, pages: Pages) -> U64:
        """Blocks are not resident any more.

        Args:
            first: page of each.
            records: of these pages, as rows of words, whatever their state words say by now.
            pages: all of their pages.

        Returns:
            Their fingerprints.
        """
        rows = records.view(ROW)[:, 0]
        names = np.empty(len(first), np.uint64)
        for namespace, here, hashes in by_namespace(rows):
            names[here] = fold(namespace, hashes)
            cut = self._cuts.pop(namespace)
            left = cut.blocks - int(np.count_nonzero(here))
            if left:
                self._cuts[namespace] = cut._replace(blocks=left)
            for at in np.flatnonzero(here).tolist() if self._twins else ():
                name = (namespace, keys_of(rows[at : at + 1])[0])
                if self._twins.get(name) == first[at]:
                    del self._twins[name]
        self._map.take(names, first)
        self.columns.remove(pages)
        self.handles.forget(first)
        self.chains.forget(first)
        return names

    # chains

    def link(self, block: Block, before: Block) -> None:
        """The block goes on from this one."""
        block.parent = before.key
        self.chains.link(block.pages[0], before.pages[0])

    def __len__(self) -> int:
        return sum(cut.blocks for cut in self._cuts.values())

    def __iter__(self) -> Iterator[Block]:
        """Every block; not while adding or removing."""
        return map(self.handles.of, self.columns.every_head().tolist())

    def pages(self) -> set[PageId]:
        """The pages of all blocks."""
        return set(self.columns.every_page().tolist())

    def _made(self, first: PageId) -> Block:
        """The object of a block, out of its records."""
        pages = self.columns.shards(first)
        records = [record for page in pages if (record := self._read(page)) is not None]
        assert len(records) == len(pages), pages
        before = self.chains.chain(first, 2)
        parent = self._read(PageId(int(before[0]))) if len(before) == 2 else None
        return Block(
            namespace=records[0].namespace,
            key=records[0].key,
            page_size=_page_size(records[0].payload_bytes),
            pages=tuple(pages),
            stamps=tuple(record.stamp for record in records),
            seal=records[0].seal,
            depth=records[0].depth,
            parent=NO_KEY if parent is None else parent.key,
            checksums=tuple(record.checksum or 0 for record in records),
            born_ns=self.columns.born_ns(first),
        )

    def _made_all(self, first: Pages) -> list[Block]:
        """The objects of blocks, of which none is there twice."""
        records = self._rows(first)
        rows = records.view(ROW)[:, 0]
        pages, owners = self.columns.all_pages(first, rows["shards"])
        every = rows if len(pages) == len(first) else self._rows(pages).view(ROW)[:, 0]
        ends = np.searchsorted(owners, np.arange(1, len(first) + 1)).tolist()
        starts, ids = [0, *ends[:-1]], list(map(PageId, pages.tolist()))
        stamps = list(map(Stamp, every["stamp"].tolist()))
        sums = every["checksum"].tolist()
        spaces: list[Namespace] = [Namespace(b"")] * len(first)
        for namespace, here, _ in by_namespace(rows):
            for at in here.nonzero()[0].tolist():
                spaces[at] = namespace
        columns = zip(
            *(spaces, keys_of(rows), page_sizes(rows).tolist()),
            *(rows["seal"].tolist(), rows["depth"].tolist()),
            *(self._parents_of(first), self.columns.births(first)),
            *(starts, ends),
            strict=True,
        )
        return [
            Block(
                namespace=namespace,
                key=key,
                page_size=size,
                pages=tuple(ids[start:end]),
                stamps=tuple(stamps[start:end]),
                seal=seal,
                depth=depth,
                parent=parent,
                checksums=tuple(sums[start:end]),
                born_ns=born_ns,
            )
            for namespace, key, size, seal, depth, parent, born_ns, start, end in columns
        ]

    def _parents_of(self, first: Pages) -> list[Key]:
        """The keys of the blocks before these; NO_KEY: it is not here."""
        before = self.chains.before(first)
        found, here = [NO_KEY] * len(first), before >= 0
        keys = keys_of(self._rows(before[here]).view(ROW)[:, 0])
        for at, key in zip(here.nonzero()[0].tolist(), keys, strict=True):
            found[at] = key
        return found

    def _rows_read(self, pages: Pages) -> U64:
        rows = [self._row(page) for page in pages.tolist()]
        return np.array(rows, np.uint64).reshape(len(pages), RECORD_BYTES // 8)

    def _row(self, page: PageId) -> U64:
        """A record as far as it is looked at here; nothing where there is none."""
        row = np.zeros(RECORD_BYTES // 8, np.uint64)
        said = self.handles.get(page)
        record = self._read(page)
        if said is not None:
            size, stamp = said.page_size, said.stamps[0]
            row[1:] = body_of(said.namespace, said.key, size, stamp)
        elif record is not None:
            size, stamp = record.payload_bytes, record.stamp
            row[1:] = body_of(record.namespace, record.key, size, stamp)
        return row

    def check(self) -> None:
        """Keys and pages lead to the same blocks."""
        self._map.check()
        blocks = list(self)
        cuts: Counter[Namespace] = Counter()
        for block in blocks:
            assert self.known(block.namespace, (block.key,)).tolist() == [block.pages[0]], block
            assert self.columns.shards(block.pages[0]) == list(block.pages)
            assert all(self.columns.head(page) == block.pages[0] for page in block.pages)
            assert block.leases >= 0
            cuts[block.namespace] += 1
        assert cuts == {namespace: cut.blocks for namespace, cut in self._cuts.items()}
        assert sum(len(block.pages) for block in blocks) == len(self.columns.every_page())
        assert len(self._map) + len(self._twins) == len(blocks)


def _page_size(payload_bytes: Bytes) -> Bytes:
    return -(-payload_bytes // PAGE_ALIGN) * PAGE_ALIGN
