"""What routers are told: whole chains of each tier, whatever comes and goes."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.connectors.common import announcing
from pegaflow.connectors.common.announcing import (
    AWAIT_S,
    NEW_MAX,
    OLD_MAX,
    Announcer,
    Block,
    Removed,
    Said,
    Stored,
    Tier,
)
from pegaflow.wire.identities import Key

CPU, DISK = Tier.CPU, Tier.DISK


class Router:
    """Believes what it is told, and insists on whole chains."""

    def __init__(self) -> None:
        self.told: dict[Tier, set[bytes]] = {CPU: set(), DISK: set()}
        self.parents: dict[bytes, bytes | None] = {}

    def hear(self, said: Said) -> None:
        for one in said:
            known = self.told[one.tier]
            for block in one.blocks:
                parent = block.parent.key if block.parent else None
                if isinstance(one, Stored):
                    assert block.key not in known and (parent is None or parent in known)
                    known.add(block.key)
                    self.parents[block.key] = parent
                else:
                    known.remove(block.key)
                    assert not any(self.parents[key] == block.key for key in known)
            keys = [block.key for block in one.blocks]
            if isinstance(one, Stored):
                assert [b.parent.key if b.parent else None for b in one.blocks[1:]] == keys[:-1]


class Cache:
    """What there is, and an announcer that looks at it."""

    def __init__(self, most: int = 1000) -> None:
        self.announcer, self.router = Announcer(most), Router()
        self.there: dict[Tier, set[bytes]] = {CPU: set(), DISK: set()}
        self.now_s = 100.0
        self.said: Said = []

    def add(self, names: str) -> None:
        """A chain of one-letter keys."""
        parent: Block | None = None
        for name in names:
            block = self.announcer.get(Key(name.encode()))
            if block is None:
                block = self.announcer.add(Key(name.encode()), parent, name, self.now_s)
            else:
                self.announcer.again(block, self.now_s)
            if block is None:
                return
            parent = block

    def look(self, times: int = 1) -> Said:
        self.said = []
        for _ in range(times):
            due = self.announcer.due()
            here, below = ([b.key in self.there[tier] for b in due] for tier in (CPU, DISK))
            said = self.announcer.seen(due, here, below, self.now_s)
            self.router.hear(said)
            self.said += said
        return self.said

    def told(self, tier: Tier = CPU) -> str:
        return b"".join(sorted(self.router.told[tier])).decode()

    def put(self, names: str, tier: Tier = CPU) -> None:
        self.there[tier] |= {name.encode() for name in names}

    def evict(self, names: str, tier: Tier = CPU) -> None:
        self.there[tier] -= {name.encode() for name in names}


def test_a_chain_is_told_as_one_event_once_it_is_there() -> None:
    cache = Cache()
    cache.add("abcd")
    assert cache.look() == []
    cache.put("abc")
    (one,) = cache.look()
    assert isinstance(one, Stored) and [b.content for b in one.blocks] == ["a", "b", "c"]
    assert cache.look(3) == []
    cache.put("d")
    (last,) = cache.look()
    assert [b.key for b in last.blocks] == [b"d"] and cache.told() == "abcd"


def test_a_block_is_told_after_its_parent_only() -> None:
    cache = Cache()
    cache.add("abc")
    cache.add("xyz")
    cache.put("bcyz")
    assert cache.look(5) == []
    cache.put("a")
    cache.look(3)
    assert cache.told() == "abc"


def test_where_one_is_gone_its_descendants_are_taken_back_before() -> None:
    cache = Cache()
    cache.add("abcd")
    cache.add("abxy")
    cache.put("abcdxy")
    cache.look(2)
    assert cache.told() == "abcdxy"
    cache.evict("b")
    (one,) = cache.look()
    assert isinstance(one, Removed) and [b.key for b in one.blocks][-1] == b"b"
    assert cache.told() == "a"
    cache.put("b")
    cache.look(3)
    assert cache.told() == "abcdxy", "it is back, and with it all that was behind it"


def test_each_tier_has_its_own_chains() -> None:
    cache = Cache()
    cache.add("abcd")
    cache.put("abcd")
    cache.put("ab", DISK)
    cache.look()
    assert (cache.told(CPU), cache.told(DISK)) == ("abcd", "ab")
    cache.evict("acd")
    cache.look(2)
    assert (cache.told(CPU), cache.told(DISK)) == ("", "ab")
    cache.evict("ab", DISK)
    cache.look(2)
    assert cache.told(DISK) == ""


def test_what_is_nowhere_is_forgotten() -> None:
    cache = Cache()
    cache.add("abc")
    cache.put("a")
    cache.look(2)
    cache.now_s += AWAIT_S + 1
    cache.look(3)
    assert len(cache.announcer) == 1
    cache.evict("a")
    cache.look(2)
    assert len(cache.announcer) == 0 and cache.told() == ""


def test_a_parent_is_kept_for_its_children() -> None:
    cache = Cache()
    cache.add("abc")
    cache.put("bc")
    cache.now_s += AWAIT_S + 1
    cache.look(5)
    assert len(cache.announcer) == 3
    cache.put("a")
    cache.look(3)
    assert cache.told() == "abc"


def test_what_is_added_is_looked_at_before_all_others() -> None:
    cache = Cache()
    for number in range(3 * OLD_MAX):
        key = Key(b"%d" % number)
        assert cache.announcer.add(key, None, 0, cache.now_s) is not None
        cache.there[CPU].add(key)
    cache.look(4)
    assert len(cache.router.told[CPU]) == 3 * OLD_MAX
    cache.add("z")
    cache.put("z")
    assert len(cache.announcer.due()) == OLD_MAX + 1
    cache.look()
    assert b"z" in cache.router.told[CPU]
    cache.there[CPU].clear()
    cache.look(4)
    assert cache.told() == "", "one round"
    assert NEW_MAX > OLD_MAX


def test_no_more_are_known_than_that() -> None:
    cache = Cache(most=3)
    cache.add("abcd")
    cache.put("abcd")
    cache.look(2)
    assert cache.told() == "abc"


def test_who_has_forgotten_is_told_again() -> None:
    cache = Cache()
    cache.add("abc")
    cache.put("abc")
    cache.put("a", DISK)
    cache.look()
    cache.router = Router()
    cache.announcer.unheard()
    cache.look(2)
    assert (cache.told(CPU), cache.told(DISK)) == ("abc", "a")


def test_what_is_lost_is_taken_back() -> None:
    cache = Cache()
    cache.add("abc")
    cache.put("abc")
    cache.put("ab", DISK)
    cache.look()
    said = cache.announcer.lost()
    assert {one.tier: [b.key for b in one.blocks] for one in said} == {
        CPU: [b"a", b"b", b"c"],
        DISK: [b"a", b"b"],
    }
    assert len(cache.announcer) == 0 and cache.announcer.lost() == []


CHAINS = ("abcd", "abef", "abegh", "xyz", "x")
STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(CHAINS), st.just(CPU)),
    st.tuples(
        st.sampled_from(["put", "evict"]),
        st.text("abcdefghxyz", min_size=1, max_size=4),
        st.sampled_from(Tier),
    ),
    st.tuples(st.sampled_from(["look", "wait", "forget"]), st.just(""), st.just(CPU)),
)


def reachable(there: Iterable[bytes]) -> str:
    """Of all chains, what is there from their beginning on."""
    found = set()
    for chain in CHAINS:
        for name in chain:
            if name.encode() not in there:
                break
            found.add(name)
    return "".join(sorted(found))


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_in_the_end_all_that_is_there_is_told_and_nothing_else(
    steps: list[tuple[str, str, Tier]],
) -> None:
    cache = Cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(announcing, "NEW_MAX", 3)
        patch.setattr(announcing, "OLD_MAX", 2)
        for what, names, tier in steps:
            if what == "add":
                cache.add(names)
            elif what == "put":
                cache.put(names, tier)
            elif what == "evict":
                cache.evict(names, tier)
            elif what == "look":
                cache.look()
            elif what == "wait":
                cache.now_s += AWAIT_S
            else:
                cache.router = Router()
                cache.announcer.unheard()
        for chain in CHAINS:
            cache.add(chain)
        cache.look(100)
    for tier in Tier:
        assert cache.told(tier) == reachable(cache.there[tier])
