"""Claims against a list of (holder, number, key, due)."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pegaflow.core.blocks.claims import ClaimTable
from pegaflow.wire.identities import ClaimId, Key, Namespace
from pegaflow.wire.values import PackedKeys

TTL = 10
HOLDERS = [("session", 1), ("session", 2)]
NAMESPACES = [Namespace(b"n" * 16), Namespace(b"m" * 16)]
KEYS = [Key(bytes([n]) * 32) for n in range(6)]
holders = st.sampled_from(HOLDERS)
namespaces = st.sampled_from(NAMESPACES)


class ClaimsAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = ClaimTable(TTL)
        self.now = 100
        self.last = dict.fromkeys(HOLDERS, 0)
        self.open: list[tuple[tuple[str, int], int, bytes, bytes, int]] = []

    @rule(step=st.integers(0, 8))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(holder=holders, namespace=namespaces, keys=st.lists(st.sampled_from(KEYS), max_size=6))
    def claim(self, holder: tuple[str, int], namespace: Namespace, keys: list[Key]) -> None:
        self.open = [row for row in self.open if row[4] > self.now]
        expected = []
        self.last[holder] += 1
        for position, key in enumerate(keys):
            if not any(row[2:4] == (namespace, key) for row in self.open):
                expected.append(position)
                self.open.append((holder, self.last[holder], namespace, key, self.now + TTL))
        got = self.table.claim(holder, namespace, keys, self.now)
        assert (got.number, got.new) == (self.last[holder], tuple(expected))

    @rule()
    def expire(self) -> None:
        due = {row[:2] for row in self.open if row[4] <= self.now}
        assert self.table.expire(self.now) == len(due)
        self.open = [row for row in self.open if row[4] > self.now]

    @rule(holder=holders, number=st.integers(1, 8))
    def end(self, holder: tuple[str, int], number: int) -> None:
        was_open = any(row[:2] == (holder, number) for row in self.open)
        assert self.table.end(holder, ClaimId(number)) == was_open
        self.open = [row for row in self.open if row[:2] != (holder, number)]

    @rule(holder=holders)
    def fence(self, holder: tuple[str, int]) -> None:
        mine = {row[1] for row in self.open if row[0] == holder}
        assert self.table.fence(holder) == len(mine)
        self.open = [row for row in self.open if row[0] != holder]
        self.last[holder] = 0

    @invariant()
    def same(self) -> None:
        self.table.check()
        assert len(self.table) == len({row[:2] for row in self.open})
        assert self.table.wake_at() == min((row[4] for row in self.open), default=None)
        owners = {row[:4] for row in self.open}
        for holder in HOLDERS:
            for number in range(self.last[holder] + 2):
                for namespace in NAMESPACES:
                    expected = [(holder, number, namespace, key) in owners for key in KEYS]
                    assert self.table.owns(holder, ClaimId(number), namespace, KEYS) == expected
                    for first in range(len(KEYS)):
                        some = PackedKeys(bytes([32]) + b"".join(KEYS[first : first + 2]))
                        every = self.table.owns_all(holder, ClaimId(number), namespace, some)
                        assert every == all(expected[first : first + 2])


TestClaimsAgainstList = ClaimsAgainstList.TestCase
