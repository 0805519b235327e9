"""From block keys to resident blocks.

Keys are the engine's chained hashes: a key says everything about the blocks before it, so a prefix
query walks the keys one by one and stops at the first that is not here. Each namespace has its own
dict, so the walk hashes bytes objects that exist already (and cache their hash) and builds none.

After a restart a block of one page may be *cold* (cold.py): nothing but its page is known, whose
ledger record says the rest.  It becomes a block as soon as somebody asks for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pegaflow.core.pool.ledger import Record
from pegaflow.wire.identities import NO_KEY, Key, Namespace, PageId, Stamp
from pegaflow.wire.layout import PAGE_ALIGN

from .cold import ColdTable, Hashes, Pages


@dataclass(slots=True, eq=False)
class Block:
    """A block that is in place with every shard. Equal only to itself."""

    namespace: Namespace
    key: Key
    page_size: int  # of each of its pages
    pages: tuple[PageId, ...]  # one page id per shard, in shard order
    stamps: tuple[Stamp, ...]  # of the grants the pages were filled under, beside `pages`
    seal: int  # the seal id in the ledger records of all its pages
    depth: int  # position in its chain, 0 the first
    parent: Key = NO_KEY  # key of the block before it; may have been evicted since.  Empty: unknown
    leases: int = 0  # leases that name it, kept by the lease table; evictable only at 0
    checksums: tuple[int, ...] = ()  # of its pages, where they are kept; 0: never computed
    born: int = 0  # when it was published, in nanoseconds; 0: in an earlier life, nobody knows


class PrefixIndex:
    """The resident blocks, by key and by page.

    Args:
        read: the ledger record of a page.
        warmed: called with a cold block that has just become one like any other.
    """

    def __init__(
        self,
        read: Callable[[PageId], Record | None] = lambda page: None,
        warmed: Callable[[Block], None] = lambda block: None,
    ) -> None:
        self._tables: dict[Namespace, dict[Key, Block]] = {}  # by both; none empty
        self._by_page: dict[PageId, Block] = {}  # every page of every block that is not cold
        self._cold: dict[Namespace, ColdTable] = {}  # by namespace; none empty
        self._read, self._warmed = read, warmed

    def get(self, namespace: Namespace, key: Key) -> Block | None:
        """The resident block of this key; None: there is none."""
        table = self._tables.get(namespace)
        block = table.get(key) if table else None
        return self._warm(namespace, key) if block is None and self._cold else block

    def any_of(self, namespace: Namespace) -> Block | None:
        """Some block of the namespace; None: none of it is here."""
        block = next(iter(self._tables.get(namespace, {}).values()), None)
        cold = self._cold.get(namespace)
        page = cold.any_page() if block is None and cold else None
        return block if page is None else self.by_page(page)

    def find(self, namespace: Namespace, keys: Sequence[Key]) -> list[Block]:
        """The blocks of the longest leading run of keys that are all here.

        Args:
            keys: in chain order.

        Returns:
            As many blocks as the run is long; a cold one among them becomes one like any other.
        """
        table, cold = self._tables.get(namespace, {}), self._cold.get(namespace)
        found: list[Block] = []
        for key, block in zip(keys, map(table.get, keys), strict=True):
            one = self._warm(namespace, key) if block is None and cold else block
            if one is None:
                break
            found.append(one)
        return found

    def add(self, block: Block) -> None:
        """The block is new, and no page of it belongs to another."""
        assert len(block.pages) == len(block.stamps) == len(set(block.pages)) > 0, block
        table = self._tables.setdefault(block.namespace, {})
        assert block.key not in table, block
        table[block.key] = block
        for page in block.pages:
            assert page not in self._by_page, (page, block)
            self._by_page[page] = block

    def add_cold(self, namespace: Namespace, hashes: Hashes, pages: Pages) -> None:
        """Blocks of one page each, to be found once they are settled.

        Args:
            hashes: `cold.hash_of` their keys.
            pages: beside `hashes`.
        """
        if namespace not in self._cold:
            self._cold[namespace] = ColdTable(self._read)
        self._cold[namespace].add(hashes, pages)

    def settle_cold(self) -> list[PageId]:
        """All cold blocks are added.  Pages whose key has a later one are not here: these."""
        return [page for table in self._cold.values() for page in table.settle()]

    def remove(self, block: Block) -> None:
        """It is not resident any more."""
        table = self._tables[block.namespace]
        assert table[block.key] is block, block
        del table[block.key]
        if not table:
            del self._tables[block.namespace]
        for page in block.pages:
            del self._by_page[page]

    def by_page(self, page: PageId) -> Block | None:
        """The resident block that has this page; None: no block does."""
        block = self._by_page.get(page)
        return self.warm(page) if block is None and self._cold else block

    def warm(self, page: PageId) -> Block | None:
        """The block in this page, if it is cold: it becomes one like any other."""
        record = self._read(page)
        return None if record is None else self._warm(record.namespace, record.key, page)

    def _warm(self, namespace: Namespace, key: Key, page: PageId | None = None) -> Block | None:
        """The cold block of this key (in this page) becomes one like any other."""
        cold = self._cold.get(namespace)
        found = None if cold is None else cold.pop(key, page)
        if cold is None or found is None:
            return None
        if not cold:
            del self._cold[namespace]
        here, record = found
        assert record.shards == 1, (here, record)
        block = Block(
            namespace=record.namespace,
            key=record.key,
            page_size=-(-record.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN,
            pages=(here,),
            stamps=(record.stamp,),
            seal=record.seal,
            depth=record.depth,
            checksums=(record.checksum or 0,),
        )
        self._tables.setdefault(record.namespace, {})[record.key] = block
        self._by_page[here] = block
        self._warmed(block)
        return block

    @property
    def cold(self) -> int:
        """How many blocks are cold."""
        return sum(map(len, self._cold.values()))

    def __len__(self) -> int:
        return sum(map(len, self._tables.values())) + self.cold

    def __iter__(self) -> Iterator[Block]:
        """Every block that is not cold, namespace by namespace; not while adding or removing."""
        for table in self._tables.values():
            yield from table.values()

    def pages(self) -> set[PageId]:
        """The pages of all blocks, cold ones too."""
        return self._by_page.keys() | {page for cold in self._cold.values() for page in cold}

    def check(self) -> None:
        """Keys and pages lead to the same blocks."""
        pages = 0
        for namespace, table in self._tables.items():
            assert table, "an empty namespace stayed"
            for key, block in table.items():
                assert (block.namespace, block.key) == (namespace, key)
                assert block.leases >= 0
                for page in block.pages:
                    assert self._by_page[page] is block
                pages += len(block.pages)
        assert pages == len(self._by_page)
        for namespace, cold in self._cold.items():
            there = list(cold)
            assert there or cold, "an empty table stayed"
            for page in there:
                record = self._read(page)
                assert record is not None and record.shards == 1, (page, record)
                assert record.namespace == namespace and cold.find(record.key) == page
                assert record.key not in self._tables.get(namespace, {})
