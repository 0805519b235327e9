"""From block keys to resident blocks.

Keys are the engine's chained hashes: a key says everything about the blocks before it, so a prefix
query walks the keys one by one and stops at the first that is not here. Each namespace has its own
dict, so the walk hashes bytes objects that exist already (and cache their hash) and builds none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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
    parent: bytes = b""  # key of the block before it; may have been evicted since
    leases: int = 0  # leases that name it, kept by the lease table; evictable only at 0


class PrefixIndex:
    """The resident blocks, by key and by page."""

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[bytes, Block]] = {}  # namespace -> key -> block; none empty
        self._by_page: dict[int, Block] = {}  # every page of every block

    def get(self, namespace: bytes, key: bytes) -> Block | None:
        table = self._tables.get(namespace)
        return table.get(key) if table else None

    def any_of(self, namespace: bytes) -> Block | None:
        """Some block of the namespace."""
        return next(iter(self._tables.get(namespace, {}).values()), None)

    def find(self, namespace: bytes, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest leading run of keys that are all here."""
        table = self._tables.get(namespace)
        found: list[Block] = []
        if table is None:
            return found
        for block in map(table.get, keys):
            if block is None:
                break
            found.append(block)
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

    def remove(self, block: Block) -> None:
        table = self._tables[block.namespace]
        assert table[block.key] is block, block
        del table[block.key]
        if not table:
            del self._tables[block.namespace]
        for page in block.pages:
            del self._by_page[page]

    def by_page(self, page: int) -> Block | None:
        return self._by_page.get(page)

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def __iter__(self) -> Iterator[Block]:
        """Every block, namespace by namespace; not while adding or removing."""
        for table in self._tables.values():
            yield from table.values()

    def check(self) -> None:
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
