"""Leases and the eviction order together, as the index uses them, against plain lists."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.leases import Lease, LeaseTable
from pegaflow.core.blocks.table import Block
from pegaflow.core.policy import lru as eviction
from pegaflow.core.policy.lru import Lru
from pegaflow.wire.identities import Key, LeaseId, Namespace
from tests.naming import as_pages, as_stamps

HOLDERS = [("session", 1), ("session", 2)]
holders = st.sampled_from(HOLDERS)


def block_of(number: int, page_size: int, depth: int = 0) -> Block:
    return Block(
        Namespace(b"n" * 16),
        Key(number.to_bytes(8, "big")),
        page_size,
        as_pages(number),
        stamps=as_stamps(number),
        seal=1,
        depth=depth,
    )


def extents_of(first: Pages) -> tuple[Pages, Pages]:
    """Each block is of one page, in an extent of its own."""
    return first + 1000, np.arange(len(first))


class LeasesAgainstLists(RuleBasedStateMachine):
    """The model: blocks from oldest to youngest, and (holder, number) -> blocks of open leases."""

    def __init__(self) -> None:
        super().__init__()
        self.lru = Lru()
        self.table = LeaseTable()
        self.order: list[Block] = []
        self.leases: dict[tuple[tuple[str, int], int], list[Block]] = {}
        self.last = dict.fromkeys(HOLDERS, 0)
        self.made = 0

    def leased(self, block: Block) -> bool:
        return any(block in blocks for blocks in self.leases.values())

    def use(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            self.order.remove(block)
            self.order.append(block)

    def ended(self, leases: list[Lease], expected: list[tuple[tuple[str, int], int]]) -> None:
        """The model's side of the end of these leases, in this order."""
        assert [(lease.holder, lease.number) for lease in leases] == expected
        for lease, at in zip(leases, expected, strict=True):
            assert list(lease.blocks) == self.leases[at]
        gone = {at: self.leases.pop(at) for at in expected}
        for lease, at in zip(leases, expected, strict=True):
            self.lru.touch(lease.blocks)
            self.use([b for b in gone[at] if b in self.order and not self.leased(b)])

    @rule(count=st.integers(1, 4), page_size=st.sampled_from([16384, 32768]))
    def insert(self, count: int, page_size: int) -> None:
        chain = [block_of(self.made + i, page_size, i) for i in range(count)]
        self.made += count
        self.lru.insert_chain(chain)
        self.order += reversed(chain)

    @precondition(lambda self: self.order)
    @rule(data=st.data(), again=st.booleans())
    def touch(self, data: st.DataObject, again: bool) -> None:
        chain = data.draw(st.lists(st.sampled_from(self.order), unique=True))
        (self.lru.insert_chain if again else self.lru.touch)(chain)
        self.use([block for block in chain if not self.leased(block)])

    @precondition(lambda self: self.order)
    @rule(data=st.data(), holder=holders)
    def grant(self, data: st.DataObject, holder: tuple[str, int]) -> None:
        first = data.draw(st.sampled_from(self.order))
        alike = [block for block in self.order if block.page_size == first.page_size]
        chain = data.draw(st.lists(st.sampled_from(alike), unique=True))
        lease = self.table.grant(holder, chain, now=5)
        self.last[holder] += 1
        assert (lease.holder, lease.number) == (holder, self.last[holder])
        self.leases[holder, lease.number] = chain

    @rule(holder=holders, number=st.integers(1, 8))
    def release(self, holder: tuple[str, int], number: int) -> None:
        lease = self.table.release(holder, LeaseId(number))
        if (holder, number) in self.leases:
            assert lease is not None
            self.ended([lease], [(holder, number)])
        else:
            assert lease is None

    @rule(holder=holders, upto=st.integers(0, 8), numbers=st.sets(st.integers(1, 9)))
    def statement(self, holder: tuple[str, int], upto: int, numbers: set[int]) -> None:
        mine = sorted(number for h, number in self.leases if h == holder)
        dropped, resend = self.table.statement(holder, LeaseId(upto), sorted(map(LeaseId, numbers)))
        assert [lease.number for lease in resend] == [n for n in mine if n > upto]
        self.ended(dropped, [(holder, n) for n in mine if n <= upto and n not in numbers])

    @rule(holder=holders)
    def fence(self, holder: tuple[str, int]) -> None:
        mine = sorted(number for h, number in self.leases if h == holder)
        assert [lease.number for lease in self.table.held(holder)] == mine
        self.ended(self.table.fence(holder), [(holder, number) for number in mine])
        self.last[holder] = 0

    @rule(page_size=st.sampled_from([16384, 32768]), count=st.integers(0, 5))
    def evict(self, page_size: int, count: int) -> None:
        evictable = [b for b in self.order if b.page_size == page_size and not self.leased(b)]
        victims = self.lru.victims(page_size, count)
        assert victims == evictable[:count]
        for block in victims:
            self.lru.remove(block)
            self.order.remove(block)

    @rule(page_size=st.sampled_from([16384, 32768, 65536]))
    def coldest(self, page_size: int) -> None:
        others = [b for b in self.order if b.page_size != page_size and not self.leased(b)]
        expected = others[0].pages[0] + 1000 if others else None
        assert self.lru.coldest_extent(page_size, extents_of) == expected
        extents = [b.pages[0] + 1000 for b in others]
        for at in range(len(extents)):
            avoided = np.array(sorted(extents[:at]), np.int64)
            assert self.lru.coldest_extent(page_size, extents_of, avoided) == extents[at]

    @invariant()
    def same(self) -> None:
        self.lru.check()
        self.table.check()
        assert len(self.table) == len(self.leases)
        assert len(self.lru) == len(self.order)
        for block in self.order:
            assert block.leases == sum(block in blocks for blocks in self.leases.values())


TestLeasesAgainstLists = LeasesAgainstLists.TestCase


def test_the_tail_of_a_chain_goes_before_its_head() -> None:
    lru = Lru()
    chain = [block_of(i, 16384, i) for i in range(4)]
    lru.insert_chain(chain[:2])
    other = block_of(9, 16384)
    lru.insert_chain([other])
    lru.insert_chain(chain)
    assert lru.victims(16384, 9) == [other, *reversed(chain)]


def test_a_block_removed_under_a_lease_does_not_come_back() -> None:
    lru, table = Lru(), LeaseTable()
    block = block_of(1, 16384)
    lru.insert_chain([block])
    lease = table.grant("a", [block], 0)
    lru.remove(block)
    assert table.release("a", lease.number) is lease
    lru.touch(lease.blocks)
    assert lru.victims(16384, 1) == []
    lru.check()


def test_a_search_is_bounded_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "LOOK_MAX", 3)
    lru, table = Lru(), LeaseTable()
    blocks = [block_of(i, 16384) for i in range(5)]
    for block in blocks:
        lru.insert_chain([block])
    table.grant("a", blocks[:4], 0)
    assert lru.victims(16384, 1) == []
    assert lru.victims(16384, 1) == [blocks[4]]
    lru.check()
