"""From block keys to resident blocks.

Keys are the engine's chained hashes: a key says everything about the blocks before it, so a prefix
query walks the keys one by one and stops at the first that is not here. Each namespace has its own
dict, so the walk hashes bytes objects that exist already (and cache their hash) and builds none.

After a restart an entry may be *cold*: just the page of a block of one page, whose ledger record
says the rest.  It becomes a block as soon as somebody asks for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pegaflow.cache.ledger import Record
from pegaflow.wire.layout import PAGE_ALIGN


@dataclass(slots=True, eq=False)
class Block:
    """A block that is in place with every shard. Equal only to itself."""

    namespace: bytes
    key: bytes
    page_size: int  # of each of its pages
    pages: tuple[int, ...]  # one page id per shard, in shard order
    stamps: tuple[int, ...]  # of the grants the pages were filled under, beside `pages`
    seal: int  # the seal id in the ledger records of all its pages
    depth: int  # position in its chain, 0 the first
    parent: bytes = b""  # key of the block before it; may have been evicted since.  Empty: unknown
    leases: int = 0  # leases that name it, kept by the lease table; evictable only at 0
    checksums: tuple[int, ...] = ()  # of its pages, where they are kept; 0: never computed


class PrefixIndex:
    """The resident blocks, by key and by page.

    Args:
        read: the ledger record of a page.
        warmed: a cold block has become one.
    """

    def __init__(
        self,
        read: Callable[[int], Record | None] = lambda page: None,
        warmed: Callable[[Block], None] = lambda block: None,
    ) -> None:
        # namespace -> key -> block, or its page as long as it is cold; none empty
        self._tables: dict[bytes, dict[bytes, Block | int]] = {}
        self._by_page: dict[int, Block] = {}  # every page of every block that is not cold
        self._cold = 0  # cold entries
        self._read, self._warmed = read, warmed

    def get(self, namespace: bytes, key: bytes) -> Block | None:
        table = self._tables.get(namespace)
        block = table.get(key) if table else None
        return self._warm(block) if isinstance(block, int) else block

    def any_of(self, namespace: bytes) -> Block | None:
        """Some block of the namespace."""
        key = next(iter(self._tables.get(namespace, {})), None)
        return None if key is None else self.get(namespace, key)

    def find(self, namespace: bytes, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest leading run of keys that are all here."""
        table = self._tables.get(namespace)
        found: list[Block] = []
        if table is None:
            return found
        for block in map(table.get, keys):
            if block is None:
                break
            found.append(self._warm(block) if isinstance(block, int) else block)
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

    def add_cold(self, namespace: bytes, keys: Sequence[bytes], pages: Sequence[int]) -> bool:
        """Blocks of one page each; False if some key was here already (the newest page stays)."""
        table = self._tables.setdefault(namespace, {})
        before = len(table)
        table.update(zip(keys, pages, strict=True))
        added = len(table) - before
        self._cold += added
        return added == len(keys)

    def is_cold(self, namespace: bytes, key: bytes, page: int) -> bool:
        """Whether this key is here, cold and in this page."""
        entry = self._tables.get(namespace, {}).get(key)
        return isinstance(entry, int) and entry == page

    def remove(self, block: Block) -> None:
        table = self._tables[block.namespace]
        assert table[block.key] is block, block
        del table[block.key]
        if not table:
            del self._tables[block.namespace]
        for page in block.pages:
            del self._by_page[page]

    def by_page(self, page: int) -> Block | None:
        block = self._by_page.get(page)
        if block is None and self._cold:
            record = self._read(page)
            if record is not None and self.is_cold(record.namespace, record.key, page):
                return self._warm(page)
        return block

    def _warm(self, page: int) -> Block:
        record = self._read(page)
        assert record is not None and record.shards == 1, (page, record)
        block = Block(
            record.namespace,
            record.key,
            -(-record.length // PAGE_ALIGN) * PAGE_ALIGN,
            (page,),
            (record.stamp,),
            record.seal,
            record.depth,
            checksums=(record.checksum or 0,),
        )
        self._tables[record.namespace][record.key] = block
        self._by_page[page] = block
        self._cold -= 1
        self._warmed(block)
        return block

    @property
    def cold(self) -> int:
        """How many blocks are cold."""
        return self._cold

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def __iter__(self) -> Iterator[Block]:
        """Every block that is not cold, namespace by namespace; not while adding or removing."""
        for table in self._tables.values():
            yield from (block for block in table.values() if not isinstance(block, int))

    def pages(self) -> set[int]:
        """The pages of all blocks, cold ones too."""
        cold = {e for t in self._tables.values() for e in t.values() if isinstance(e, int)}
        return cold | self._by_page.keys()

    def check(self) -> None:
        pages = cold = 0
        for namespace, table in self._tables.items():
            assert table, "an empty namespace stayed"
            for key, block in table.items():
                if isinstance(block, int):
                    record = self._read(block)
                    assert record is not None and record.shards == 1, (block, record)
                    assert (record.namespace, record.key) == (namespace, key), (block, record)
                    assert block not in self._by_page
                    cold += 1
                    continue
                assert (block.namespace, block.key) == (namespace, key)
                assert block.leases >= 0
                for page in block.pages:
                    assert self._by_page[page] is block
                pages += len(block.pages)
        assert pages == len(self._by_page) and cold == self._cold
