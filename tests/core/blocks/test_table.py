"""The prefix index against a list of blocks."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.wire.identities import Key, Namespace
from tests.naming import as_pages, as_stamps

namespaces = st.sampled_from([b"n" * 16, b"m" * 16])
keys = st.integers(0, 7).map(lambda n: bytes([n]) * 32)


class IndexAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.blocks: list[Block] = []
        self.next_page = 0

    def model_get(self, namespace: Namespace, key: Key) -> Block | None:
        for block in self.blocks:
            if (block.namespace, block.key) == (namespace, key):
                return block
        return None

    @rule(namespace=namespaces, key=keys, shards=st.integers(1, 3))
    def add(self, namespace: Namespace, key: Key, shards: int) -> None:
        if self.model_get(namespace, key):
            return
        pages = tuple(range(self.next_page, self.next_page + shards))
        self.next_page += shards
        block = Block(
            namespace, key, 16384, as_pages(*pages), stamps=as_stamps(*pages), seal=1, depth=0
        )
        self.index.add(block)
        self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        self.index.remove(block)
        assert all(self.index.by_page(page) is None for page in block.pages)

    @rule(namespace=namespaces, asked=st.lists(keys, max_size=8))
    def find(self, namespace: Namespace, asked: list[Key]) -> None:
        expected = []
        for key in asked:
            block = self.model_get(namespace, key)
            if block is None:
                break
            expected.append(block)
        assert self.index.find(namespace, asked) == expected

    @rule(namespace=namespaces, key=keys)
    def get(self, namespace: Namespace, key: Key) -> None:
        assert self.index.get(namespace, key) is self.model_get(namespace, key)

    @invariant()
    def same(self) -> None:
        self.index.check()
        assert len(self.index) == len(self.blocks)
        assert set(self.index) == set(self.blocks)
        for block in self.blocks:
            assert all(self.index.by_page(page) is block for page in block.pages)


TestIndexAgainstList = IndexAgainstList.TestCase
