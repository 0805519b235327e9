"""What our host has, for those who follow it.  See wire/peer.py.

Our index says all at first, and then what changes.  Until a new index has said all, what the one
before it has said is kept, and followers hear nothing.  News is kept for followers in a journal, by
its number; one who lags behind the oldest hears all anew, piece by piece, in the order of the
fingerprints.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.directory.held import LAST_NAME, Held
from pegaflow.core.pool.columns import column
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Namespace
from pegaflow.wire.peer import AHEAD, NONE, PART_BLOCKS, Cut, Follow, Have, Holding, Ping
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX, NOBODY, Address

JOURNAL_PARTS: Count = 1024
"""News that is kept: half a gigabyte at the very most, and what twenty seconds of saves need; who
lags further behind has less to hear if he hears all."""


@dataclass(slots=True)
class _Follower:
    number: int  # of its Follow
    next: int  # number of the news that it hears next
    told: int = 0  # parts
    seen: int = 0  # of them: acknowledged
    cursor: int | None = 0  # all up to this fingerprint is told; None: all is
    cuts: int = 0  # of ours: told


class Telling(Part):
    """What we have, and who has heard how much of it."""

    def __init__(self, member: Member, counts: Counter[str]) -> None:
        self._member, self._counts = member, counts
        self.cuts: dict[Namespace, Cut] = {}  # of the blocks that we have, or had
        self.index = NOBODY  # whose word is told
        self._heard = 0  # number of its newest part
        self._lost = False  # a part of it has not come
        self._blocks = 1  # as many as there can be
        self._held = Held(1, 1)  # what we have
        self._coming: Held | None = None  # what a new index says, until that is all
        self._journal: deque[tuple[U64, U64]] = deque()  # what came and went
        self._first = 0  # number of the oldest news in it
        self._followers: dict[Address, _Follower] = {}

    def handlers(self) -> Iterable[On]:
        """Our index."""
        return (on(Holding, self._on_holding, INDEX),)

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The pool is known."""
        self._blocks = max(1, welcome.pool_bytes // MIN_PAGE)
        self._held = Held(1, self._blocks)
        return []

    def gauges(self) -> dict[str, int]:
        """How much we tell, and to how many."""
        return {"peer_told_blocks": len(self._held), "peer_followers": len(self._followers)}

    @property
    def missed(self) -> bool:
        """Whether the index has to say all again."""
        return self._lost

    def follow(self, follower: Address, msg: Follow) -> list[Effect]:
        """Somebody wants to hear all that there is, until he is forgotten."""
        end = self._first + len(self._journal)
        self._followers[follower] = _Follower(msg.number, end)
        return self.go_on(follower)

    def pinged(self, follower: Address, ping: Ping) -> tuple[int, int]:
        """A follower has said what it has heard.

        Returns:
            The number of its Follow, and the newest part of it.
        """
        known = self._followers.get(follower)
        if known is None:
            return 0, 0
        if ping.number == known.number:
            known.seen = max(known.seen, min(ping.seen, known.told))
        return known.number, known.told

    def forget(self, follower: Address) -> None:
        """It is gone."""
        self._followers.pop(follower, None)

    def go_on(self, address: Address) -> list[Effect]:
        """Tell a follower as much as it takes."""
        follower = self._followers.get(address)
        effects: list[Effect] = []
        while follower is not None and follower.told - follower.seen < AHEAD:
            part = self._part(follower)
            if part is None:
                break
            effects.append(Send(address, part))
        return effects

    def check(self) -> None:
        """Nobody has heard what has not been said."""
        end = self._first + len(self._journal)
        assert len(self._journal) <= JOURNAL_PARTS
        for follower in self._followers.values():
            assert follower.seen <= follower.told <= follower.seen + AHEAD
            assert follower.next <= end

    def _on_holding(self, sender: Sender, msg: Holding, now: int) -> list[Effect]:
        if msg.first:
            self.index, self._heard, self._lost = sender.address, 0, False
            self._coming = Held(1, self._blocks)
        if sender.address != self.index or msg.number != self._heard + 1:
            self._counts["peer_holding_missed"] += not self._lost
            self.index, self._lost = NOBODY, True
            return []
        self._heard = msg.number
        for cut in msg.cuts:
            self.cuts[cut.namespace] = cut
        added, removed = column(msg.added), column(msg.removed)
        held = self._coming if self._coming is not None else self._held
        held.add(0, added)
        held.remove(0, removed)
        if self._coming is None:
            self._note(added, removed)
        elif msg.whole:
            self._held, self._coming = self._coming, None
            self._first += len(self._journal)
            self._journal.clear()
            for follower in self._followers.values():
                follower.next, follower.cursor = self._first, 0
        return [effect for address in self._followers for effect in self.go_on(address)]

    def _note(self, added: U64, removed: U64) -> None:
        if self._followers:
            self._journal.append((added, removed))
        else:
            self._first += 1
        while len(self._journal) > JOURNAL_PARTS:
            self._journal.popleft()
            self._first += 1

    def _part(self, follower: _Follower) -> Have | None:
        """What a follower hears next, if there is anything."""
        cuts = tuple(list(self.cuts.values())[follower.cuts :])
        nothing = np.zeros(0, np.uint64)
        if follower.next < self._first:
            follower.next, follower.cursor = self._first + len(self._journal), 0
        if follower.next < self._first + len(self._journal):
            (added, removed), (first, last) = self._journal[follower.next - self._first], NONE
            follower.next += 1
        elif follower.cursor is not None:
            first = follower.cursor
            added, last = self._held.chunk(0, first, PART_BLOCKS)
            removed = nothing
            follower.cursor = last + 1 if last < LAST_NAME else None
        else:
            return None
        follower.told += 1
        follower.cuts += len(cuts)
        return Have(
            follower.number,
            follower.told,
            first=first,
            last=last,
            cuts=cuts,
            added=tuple(added.tolist()),
            removed=tuple(removed.tolist()),
            blocks=len(self._held),
        )
