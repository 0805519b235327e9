"""Which blocks are written next."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pegaflow.core.blocks import backlog as backlogs
from pegaflow.core.blocks.backlog import Backlog
from pegaflow.core.blocks.table import Block
from pegaflow.wire.identities import Key, Namespace
from tests.naming import as_pages, as_stamps

PAGE = 4096
NS, OTHER = Namespace(b"n" * 16), Namespace(b"o" * 16)


def block(at: int, namespace: Namespace = NS, key_bytes: int = 8, pages: int = 1) -> Block:
    ids = tuple(range(at * 8, at * 8 + pages))
    return Block(
        namespace,
        Key(at.to_bytes(key_bytes, "big")),
        PAGE,
        as_pages(*ids),
        stamps=as_stamps(*ids),
        seal=at + 1,
        depth=at,
    )


def everything(block: Block) -> bool:
    return True


def take(log: Backlog, most: int = 31, bytes_: int = 1 << 30, alone: bool = True) -> list[Block]:
    return log.take(most, bytes_, alone, everything)


def test_blocks_go_in_the_order_in_which_they_came_and_wanted_ones_first() -> None:
    log, blocks = Backlog(), [block(n) for n in range(4)]
    for one in blocks:
        log.saved(one)
    log.asked_for(blocks[2])
    assert take(log) == [blocks[2]]
    assert take(log, 2) == blocks[:2]
    assert take(log) == [blocks[3]] and not log


def test_what_is_asked_for_and_not_here_stays_away() -> None:
    log = Backlog()
    log.asked_for(block(1))
    assert not log


def test_what_comes_back_goes_first() -> None:
    log, first, second, third = Backlog(), block(1), block(2), block(3)
    log.saved(first)
    log.asked_for(first)
    log.saved(second)
    log.again(third)
    log.again(second)
    assert take(log) == [third, first] and take(log) == [second]


def test_with_reused_only_a_block_is_written_when_it_was_asked_for_or_saved_twice() -> None:
    log = Backlog()
    log.reused_only = True
    once, twice, wanted = block(1), block(2), block(3)
    log.saved(once)
    log.saved(twice)
    log.saved(block(2))
    log.asked_for(wanted)
    assert [b.key for b in take(log)] == [twice.key, wanted.key]


def test_what_was_seen_once_is_forgotten_in_the_end() -> None:
    log = Backlog()
    log.reused_only = True
    for n in range(2 * backlogs.SEEN_MAX):
        log.saved(block(n))
    log.saved(block(0))
    assert not log
    log.saved(block(2 * backlogs.SEEN_MAX - 1))
    assert len(log) == 1


def test_a_batch_is_of_one_namespace_and_one_length_of_keys() -> None:
    log = Backlog()
    mixed = [block(1), block(2, OTHER), block(3, key_bytes=16), block(4)]
    for one in mixed:
        log.saved(one)
    assert take(log) == [mixed[0], mixed[3]]
    assert take(log) == [mixed[1]]
    assert take(log) == [mixed[2]]


def test_a_batch_is_bounded_in_bytes_unless_a_large_block_is_alone() -> None:
    log, small, large = Backlog(), block(1), block(2, pages=4)
    log.saved(large)
    log.saved(small)
    assert take(log, bytes_=2 * PAGE, alone=False) == []
    assert take(log, bytes_=2 * PAGE) == [large]
    assert take(log, bytes_=2 * PAGE) == [small]


def test_what_is_not_wanted_any_more_is_forgotten_at_once() -> None:
    log = Backlog()
    many = [block(n) for n in range(3 * backlogs.LOOK_MAX)]
    for one in many:
        log.saved(one)
    assert log.take(9, 1 << 30, True, lambda b: b is many[-1]) == [many[-1]]
    assert not log
    assert log.take(9, 1 << 30, True, everything) == []


class Machine(RuleBasedStateMachine):
    """A backlog never loses a block, nor has one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Backlog()
        self.blocks = [block(n, NS if n % 3 else OTHER) for n in range(12)]
        self.model: set[Block] = set()

    @rule(at=st.integers(0, 11))
    def saved(self, at: int) -> None:
        self.log.discard(self.blocks[at])
        self.log.saved(self.blocks[at])
        self.model.add(self.blocks[at])

    @rule(at=st.integers(0, 11))
    def asked_for(self, at: int) -> None:
        self.log.asked_for(self.blocks[at])

    @rule(at=st.integers(0, 11))
    def again(self, at: int) -> None:
        self.log.again(self.blocks[at])
        self.model.add(self.blocks[at])

    @rule(at=st.integers(0, 11))
    def discard(self, at: int) -> None:
        self.log.discard(self.blocks[at])
        self.model.discard(self.blocks[at])

    @rule(most=st.integers(1, 4), size=st.integers(0, 5), alone=st.booleans())
    def take(self, most: int, size: int, alone: bool) -> None:
        some = self.log.take(most, size * PAGE, alone, everything)
        assert len(some) <= most and len({b.namespace for b in some}) <= 1
        assert set(some) <= self.model and len(set(some)) == len(some)
        assert sum(PAGE for _ in some) <= max(size * PAGE, PAGE if alone else 0)
        self.model -= set(some)

    @invariant()
    def agrees(self) -> None:
        self.log.check()
        assert set(self.log) == self.model and len(self.log) == len(self.model)
        assert all(b in self.log for b in self.model)


TestMachine = Machine.TestCase


@given(st.lists(st.integers(0, 30), unique=True, max_size=31), st.integers(1, 7))
def test_all_that_comes_in_goes_out_once(order: list[int], most: int) -> None:
    log = Backlog()
    for n in order:
        log.saved(block(n))
    out: list[int] = []
    while log:
        out += [b.depth for b in take(log, most)]
    assert out == order
