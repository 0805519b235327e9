"""Which block is where in the log."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.segments.catalog import Catalog, Segment
from pegaflow.core.segments.codec import Row, joined
from pegaflow.wire.identities import Incarnation, Key, Namespace
from tests.actors.steps import steps

NS = Namespace(b"n" * 16)
SIZE = 4096


def row(at: int, offset: int = 0, namespace: Namespace = NS) -> Row:
    return Row(
        offset,
        7,
        Incarnation(1),
        SIZE,
        depth=at,
        shards=1,
        namespace=namespace,
        key=Key(b"key-%04d" % at),
    )


def key(at: int) -> Key:
    return row(at).key


def test_a_key_is_where_it_was_written_last() -> None:
    catalog = Catalog()
    old, new = catalog.segment(0, 1, 1 << 20), catalog.segment(0, 2, 1 << 20)
    catalog.append(old, [row(1), row(2)])
    catalog.append(new, [row(2)])
    assert catalog.find(NS, key(1)) == (old, 0) and catalog.find(NS, key(2)) == (new, 0)
    assert (old.live, new.live, catalog.blocks) == (1, 1, 2)
    assert catalog.drop(old) == {NS: [key(1)]}
    assert catalog.has(NS, key(2)) and not catalog.has(NS, key(1))
    catalog.check()


def test_segments_are_loaded_from_the_newest_on() -> None:
    catalog = Catalog()
    older, newer = catalog.segment(0, 1, 1 << 20), catalog.segment(0, 2, 1 << 20)
    assert catalog.load(newer, joined([row(2), row(3)])) == 2
    assert catalog.load(older, joined([row(1), row(2)])) == 1
    assert catalog.find(NS, key(1)) == (older, 0)
    assert catalog.find(NS, key(2)) == (newer, 0)
    catalog.check()


def test_what_was_read_is_hot_within_the_budget_the_last_read_first() -> None:
    catalog = Catalog()
    segment = catalog.segment(0, 1, 6 * SIZE)
    catalog.append(segment, [row(n, n * SIZE) for n in range(6)])
    for at in (5, 1, 2, 1, 4):
        catalog.were_read(segment, [at])
    assert catalog.hot(segment) == [1, 2, 4], "three of six fit"
    catalog.forget(NS, key(4))
    assert catalog.hot(segment) == [1, 2, 5], "what is nowhere any more is not carried"
    newer = catalog.segment(0, 2, 6 * SIZE)
    catalog.append(newer, [row(1)])
    assert catalog.hot(segment) == [2, 5]


def test_a_block_that_is_corrupt_is_nowhere() -> None:
    catalog = Catalog()
    segment = catalog.segment(0, 1, 1 << 20)
    catalog.append(segment, [row(1)])
    catalog.forget(NS, key(1))
    catalog.forget(NS, key(9))
    assert catalog.find(NS, key(1)) is None and catalog.blocks == 0
    assert catalog.drop(segment) == {}
    catalog.check()


def test_a_listing_is_every_namespace() -> None:
    catalog, other = Catalog(), b"o" * 16
    segment = catalog.segment(0, 1, 1 << 20)
    catalog.append(segment, [row(1), row(2), row(1, namespace=Namespace(other))])
    first = [(found.namespace, keys) for found, keys in catalog.listing(segment, 0, 1)]
    assert first == [(NS, [key(1)])]
    listed = {found.namespace: keys for found, keys in catalog.listing(segment, 0, 9)}
    assert listed == {NS: [key(1), key(2)], other: [key(1)]}


def test_what_is_gone_is_found_by_nobody_and_may_be_somewhere_else() -> None:
    catalog = Catalog()
    old = catalog.segment(0, 1, 1 << 20)
    catalog.append(old, [row(1), row(2), row(3)])
    old.gone = True
    assert not any(catalog.has(NS, key(at)) for at in (1, 2, 3)) and not catalog.listing(old, 0, 9)
    loaded, written = catalog.segment(1, 1, 1 << 20), catalog.segment(1, 2, 1 << 20)
    assert catalog.load(loaded, joined([row(1), row(4)])) == 2
    catalog.append(written, [row(2)])
    catalog.check()
    assert catalog.find(NS, key(1)) == (loaded, 0) and catalog.find(NS, key(2)) == (written, 0)
    assert catalog.drop(old) == {NS: [key(3)]}, "the others are there"
    assert catalog.blocks == 3
    catalog.check()


def test_a_segment_comes_and_goes_as_a_whole() -> None:
    def work(rows: int) -> int:
        catalog, raw = Catalog(), joined(map(row, range(rows)))
        segment = catalog.segment(0, 1, 1 << 20)

        def act() -> None:
            assert catalog.load(segment, raw) == rows
            assert len(catalog.listing(segment, 0, rows)[0][1]) == rows
            assert len(catalog.drop(segment)[NS]) == rows

        return steps(act)

    assert work(4096) == work(64)


class Machine(RuleBasedStateMachine):
    """Against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.segments: list[Segment] = []
        self.model: dict[Key, tuple[Segment, int]] = {}
        self.left: dict[Key, Segment] = {}  # those of segments that are gone

    @rule()
    def segment(self) -> None:
        self.segments.append(self.catalog.segment(0, len(self.segments), 1 << 20))

    @precondition(lambda self: self.segments)
    @rule(keys=st.lists(st.integers(0, 9), max_size=4), which=st.integers(0, 99))
    def append(self, keys: list[int], which: int) -> None:
        segment = self.segments[which % len(self.segments)]
        if segment.gone:
            return
        for one in keys:
            self.model[key(one)] = (segment, segment.count)
            self.left.pop(key(one), None)
            self.catalog.append(segment, [row(one)])

    @precondition(lambda self: self.segments)
    @rule(which=st.integers(0, 99))
    def drop(self, which: int) -> None:
        segment = self.segments.pop(which % len(self.segments))
        gone = {k for k, place in self.model.items() if place[0] is segment}
        gone |= {k for k, place in self.left.items() if place is segment}
        assert set(self.catalog.drop(segment).get(NS, [])) == gone
        for one in gone:
            self.model.pop(one, None)
            self.left.pop(one, None)

    @precondition(lambda self: self.segments)
    @rule(which=st.integers(0, 99))
    def go(self, which: int) -> None:
        segment = self.segments[which % len(self.segments)]
        segment.gone = True
        for one in [k for k, place in self.model.items() if place[0] is segment]:
            self.left[one] = self.model.pop(one)[0]

    @rule(keys=st.lists(st.integers(0, 9), max_size=4))
    def load(self, keys: list[int]) -> None:
        segment = self.catalog.segment(0, 0, 1 << 20)
        new = set(map(key, keys)) - self.model.keys()
        assert self.catalog.load(segment, joined(map(row, keys))) == len(new)
        self.segments.append(segment)
        for one in new:
            self.left.pop(one, None)
            self.model[one] = (segment, [key(at) for at in keys].index(one))

    @rule(one=st.integers(0, 9))
    def forget(self, one: int) -> None:
        self.catalog.forget(NS, key(one))
        self.model.pop(key(one), None)
        self.left.pop(key(one), None)

    @rule(one=st.integers(0, 9))
    def read(self, one: int) -> None:
        place = self.catalog.find(NS, key(one))
        assert place == self.model.get(key(one))
        if place is not None:
            self.catalog.were_read(place[0], place[1:])
            assert place[1] in self.catalog.hot(place[0])

    @invariant()
    def agrees(self) -> None:
        self.catalog.check()
        assert self.catalog.blocks == len(self.model) + len(self.left)


TestMachine = Machine.TestCase
