"""Who is about to save which keys: claims, so that two engines never copy the same block.

A claim is taken before the copy starts and ended after the seal. It owns no memory, so unlike a
lease or a grant it may end by time: a holder that is stopped must not keep every other engine from
saving a block. What it had claimed is then refused when it tries to seal it, for another may have
claimed it.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from sortedcontainers import SortedDict

from pegaflow.core.grants import Grants
from pegaflow.wire.identities import ClaimId, Key, Namespace
from pegaflow.wire.values import PackedKeys


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer: which of the keys the holder should save."""

    number: ClaimId  # 1, 2, ... per holder
    new: tuple[int, ...]  # positions in the keys asked for, ascending


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A claim that has neither ended nor expired."""

    holder: Hashable
    number: ClaimId
    namespace: Namespace
    keys: frozenset[Key]  # those it owns; at least one
    joined: bytes  # the same end to end, in the order in which they were asked for
    due: tuple[int, int]  # (when it expires, serial): its place in the order of expiry


class ClaimTable:
    """All open claims. A claim in which nothing was new is not kept.

    Args:
        lasting_ns: how long a claim lasts.
    """

    def __init__(self, lasting_ns: int) -> None:
        assert lasting_ns > 0
        self._lasting_ns = lasting_ns
        self._open: Grants[ClaimId, _Open] = Grants(ClaimId)
        self._owner: dict[Namespace, dict[Key, _Open]] = {}  # namespace -> key -> claim; none empty
        self._due: SortedDict = SortedDict()  # (when, serial) -> claim
        self._serial = 0  # counts claims, so that no two are due at the same place

    def claim(self, holder: Hashable, namespace: Namespace, keys: Sequence[Key], now: int) -> Claim:
        """Claim those of the keys that no open claim owns, the holder's own ones included.

        Args:
            now: CLOCK_MONOTONIC, in nanoseconds.

        Returns:
            Which of them are new; its number is used up even if none is.
        """
        return self._claim(holder, self._open.next(holder), namespace, keys, now=now)

    def adopt(
        self,
        holder: Hashable,
        number: ClaimId,
        namespace: Namespace,
        keys: Sequence[Key],
        *,
        now: int,
    ) -> None:
        """A claim that an earlier life of this table has given; numbers go on from it."""
        if self._open.get(holder, number) is None:
            self._claim(holder, number, namespace, keys, now=now)

    def go_on_from(self, holder: Hashable, number: ClaimId) -> None:
        """The holder has heard of claims up to this number."""
        self._open.go_on_from(holder, number)

    def _claim(
        self,
        holder: Hashable,
        number: ClaimId,
        namespace: Namespace,
        keys: Sequence[Key],
        *,
        now: int,
    ) -> Claim:
        self.expire(now)
        self.go_on_from(holder, number)
        owners = self._owner.get(namespace, {})
        new = dict(zip(keys, range(len(keys)), strict=True))
        if len(new) < len(keys) or not owners.keys().isdisjoint(new):
            new = {}
            for position, key in enumerate(keys):
                if key not in owners:
                    new.setdefault(key, position)
        if new:
            self._serial += 1
            due = (now + self._lasting_ns, self._serial)
            owned, joined = frozenset(new), b"".join(new)
            taken = _Open(holder, number, namespace, keys=owned, joined=joined, due=due)
            self._open.add(holder, number, taken)
            self._owner.setdefault(namespace, owners).update(dict.fromkeys(new, taken))
            self._due[due] = taken
        return Claim(number, tuple(new.values()))

    def owns(
        self, holder: Hashable, number: ClaimId, namespace: Namespace, keys: Sequence[Key]
    ) -> list[bool]:
        """Of each key whether this claim is open and has it. Anything else must not be sealed."""
        claim, owners = self._open.get(holder, number), self._owner.get(namespace, {})
        return [claim is not None and owners.get(key) is claim for key in keys]

    def owns_all(
        self, holder: Hashable, number: ClaimId, namespace: Namespace, keys: Sequence[Key]
    ) -> bool:
        """Whether this claim is open and has all of these."""
        claim = self._open.get(holder, number)
        if claim is None or claim.namespace != namespace:
            return False
        return _are_in(claim.joined, keys) or claim.keys.issuperset(keys)

    def expire(self, now: int) -> int:
        """Ends the claims that are due; returns how many."""
        ended = 0
        while self._due and self._due.peekitem(0)[0][0] <= now:
            self._drop(self._due.peekitem(0)[1])
            ended += 1
        return ended

    def wake_at(self) -> int | None:
        """When the next claim is due."""
        return int(self._due.peekitem(0)[0][0]) if self._due else None

    def end(self, holder: Hashable, number: ClaimId) -> bool:
        """Ends the claim; False if it is not open, which a repeated word finds."""
        claim = self._open.get(holder, number)
        if claim is None:
            return False
        self._drop(claim)
        return True

    def statement(self, holder: Hashable, upto: ClaimId, numbers: Collection[ClaimId]) -> int:
        """The holder says which claims it still saves under; all others up to `upto` end.

        Args:
            upto: it has heard of all claims up to this number.

        Returns:
            How many have ended.
        """
        dropped = self._open.statement(holder, upto, numbers).dropped
        for _, claim in dropped:
            self._forget(claim)
        return len(dropped)

    def fence(self, holder: Hashable) -> int:
        """The holder is proven dead: ends its claims; returns how many. Its name is never heard
        again."""
        fenced = self._open.fence(holder)
        for _, claim in fenced:
            self._forget(claim)
        return len(fenced)

    def held(self, holder: Hashable) -> int:
        """How many open claims the holder has."""
        return self._open.count(holder)

    def __len__(self) -> int:
        return len(self._due)

    def _drop(self, claim: _Open) -> None:
        self._open.end(claim.holder, claim.number)
        self._forget(claim)

    def _forget(self, claim: _Open) -> None:
        owners = self._owner[claim.namespace]
        if len(owners) == len(claim.keys):
            del self._owner[claim.namespace]
        else:
            for key in claim.keys:
                del owners[key]
        del self._due[claim.due]

    def check(self) -> None:
        """Both tables and the order of expiry name the same claims."""
        self._open.check()
        every = {(holder, number): claim for holder, number, claim in self._open}
        assert all(self._owner.values()), "an empty dict stayed"
        assert set(every.values()) == set(self._due.values())
        keys = 0
        for (holder, number), claim in every.items():
            assert (claim.holder, claim.number) == (holder, number)
            assert self._due[claim.due] is claim
            assert claim.keys
            for key in claim.keys:
                assert self._owner[claim.namespace][key] is claim
            keys += len(claim.keys)
        assert keys == sum(map(len, self._owner.values())), "a key is owned by an ended claim"


def _are_in(joined: bytes, keys: Sequence[Key]) -> bool:
    """Whether keys of a message, one after the other as they are there, are among these; if not,
    they may be in another order."""
    if not isinstance(keys, PackedKeys):
        return False
    size, wanted = keys.blob[0], keys.blob[1:]
    at = joined.find(wanted[:size])
    return at >= 0 and at % size == 0 and joined[at : at + len(wanted)] == wanted
