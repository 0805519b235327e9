"""What this host knows of the blocks of others: a copy of what each of them has, kept true.

The peer link owns one Copies.  It hands in what other hosts say (journal.py), sends the Asks that
come back, and asks `owners_of` for the keys of a run.  A host is a slot, a small number which the
link gives to the identity of a host, and gives to another one after `forget`.

A copy follows one life of a publisher, from change to change.  Whatever does not fit (a gap,
another life, a chunk that is not the next one) is answered in one way: ask, saying what we have;
the publisher knows what that lacks.  One question is open for each host, and is asked again after a
while, so nothing that is lost, said twice or late does more than take time.  A snapshot says first
how many blocks will come; if the table has to grow for them, it does so in steps (`wake`), and the
snapshot is asked for again when it has.

**A copy is a hint, and stays one while it is replaced.**  When a publisher begins another life, or
we have missed too much, what we knew stays until a chunk says otherwise of its part: a pool
outlives the processes of its host, so most of it is still true, and forgetting it would make each
restart of a peer link a time of misses for the whole fleet.  What is not true costs one failed
fetch.

**Silence** for HIDDEN_NS hides what a host has: who asks it would wait in vain.  It comes back with
the first word of the host, since it is not known to be wrong.  After GONE_NS it is dropped, for it
is memory that others may need, and the host begins anew.

**A host has not got what we asked it for.**  It says so as of the last change that it had told
then, and `missing` takes the block from our copy.  What is still on the way to us may name it: a
change or a chunk as of that number or before does not bring it back, for it is older than what we
were told.  Everything after it does, since a block that has gone and come again is told again.  A
refusal that comes after a later change is of no use: what we have is newer than it.  One from
another life than the copy's may be newer or older, so the block is removed and the snapshot begins
again.  What is remembered for this is bounded, and forgotten after REFUSED_NS: what comes back then
costs another failed fetch, until the change arrives that says that it has gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pegaflow.core.pool.columns import among
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.units import Count, Nanoseconds

from .held import LAST_NAME, Held, Masks
from .journal import NO_LIFE, WHOLE, Ask, Changes, Chunk, Said, Standing

ASK_AGAIN_NS: Nanoseconds = 1_000_000_000
"""A question has no answer: one of the two was lost.  Far more than any network takes."""

HIDDEN_NS: Nanoseconds = 3_000_000_000
"""A host is silent, which says where it stands once a second: three of these words are lost."""

GONE_NS: Nanoseconds = 60_000_000_000
"""A host is silent, and what it has is dropped: longer than a service takes to be restarted."""

REFUSED_NS: Nanoseconds = 2_000_000_000
"""What a host has refused to have is remembered: changes are told far sooner."""

REFUSED_MOST: Count = 4096
"""Refused blocks that are remembered of each host: four runs of 1,024."""


@dataclass(slots=True)
class Copy:
    """What we have of one host."""

    incarnation: int = NO_LIFE  # whose changes we follow
    number: int = 0  # of the last change that we have
    at: int = 0  # what is before this fingerprint is as of that change; the rest is a hint
    heard_at: int | None = None  # None: never
    whole_at: int | None = None  # when a snapshot was last complete
    serial: int = 0  # of the last Ask
    asked_at: int | None = None  # None: no question is open
    crowded: bool = False  # the table has no room for its snapshot yet
    ignored: int = 0  # blocks that were more than a host may have
    refused: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By fingerprint, oldest first: until when it is remembered, as of which life and number."""

    @property
    def whole(self) -> bool:
        """All of it is as of one change."""
        return self.at > LAST_NAME


class Copies:
    """The copies of all hosts.

    Args:
        hosts: there are at most so many.
        each: blocks of one host, at most.
    """

    def __init__(self, hosts: int, each: int) -> None:
        self._held = Held(hosts, each)
        self._copies = [Copy() for _ in range(hosts)]

    @property
    def bytes_used(self) -> int:
        """Memory of the table."""
        return self._held.bytes_used

    def of(self, host: int) -> Copy:
        """The state of a host's copy, to be shown."""
        return self._copies[host]

    def blocks(self, host: int) -> int:
        """How many a host has, as far as we know."""
        return self._held.counts[host]

    def owners_of(self, names: U64, now: int) -> Masks:
        """Who has these blocks, silent hosts left out.

        Args:
            names: their fingerprints.

        Returns:
            A mask of hosts for each.
        """
        masks = self._held.owners_of(names)
        hidden = sum(1 << host for host, copy in enumerate(self._copies) if _silent(copy, now))
        if hidden:
            masks &= np.uint64(LAST_NAME ^ hidden)
        return masks

    def heard(self, host: int, now: int) -> None:
        """A host has said something, whatever it is."""
        self._copies[host].heard_at = now

    def receive(self, host: int, said: Said, now: int) -> Ask | None:
        """A host has said this of its blocks.

        Returns:
            What it is to be asked.
        """
        copy = self._copies[host]
        copy.heard_at = now
        if isinstance(said, Chunk):
            fits = self._chunk(host, said, now)
        elif isinstance(said, Changes):
            fits = self._changes(host, said, now)
        else:
            fits = said.incarnation == copy.incarnation and said.number <= copy.number
            if said.serial == copy.serial:
                copy.asked_at = None
        return None if fits and copy.whole else self._ask(copy, now)

    def _changes(self, host: int, said: Changes, now: int) -> bool:
        """Apply it if it is the next one; whether it needs no question."""
        copy = self._copies[host]
        if said.incarnation != copy.incarnation or said.number > copy.number + 1:
            return False
        if said.number == copy.number + 1:
            copy.number = said.number
            self._held.remove(host, said.removed)
            added = self._believed(copy, said.added, said, now)
            copy.ignored += self._held.add(host, added)
        return True

    def _chunk(self, host: int, said: Chunk, now: int) -> bool:
        """Apply it if it is the next one; whether it needs no question."""
        copy = self._copies[host]
        if copy.asked_at is None or said.serial != copy.serial:
            return True
        copy.asked_at = None
        goes_on = (said.incarnation, said.number) == (copy.incarnation, copy.number)
        if said.first != 0 and not (goes_on and said.first == copy.at):
            return False
        if not self._held.expect(host, said.blocks):
            copy.crowded = True
            return True
        copy.incarnation, copy.number, copy.at = said.incarnation, said.number, said.last + 1
        names = self._believed(copy, said.names, said, now)
        copy.ignored += self._held.replace(host, said.first, said.last, names)
        if copy.whole:
            copy.whole_at = now
            self._held.expect(host, 0)
        return True

    def missing(self, host: int, names: U64, as_of: Standing, now: int) -> Ask | None:
        """A host was asked for these blocks and had not got them.

        Args:
            as_of: what it had told when it said so.

        Returns:
            What it is to be asked.
        """
        copy = self._copies[host]
        foreign = as_of.incarnation != copy.incarnation
        if not foreign and as_of.number < copy.number:
            return None
        self._held.remove(host, names)
        refused = now + REFUSED_NS, as_of.incarnation, as_of.number
        for name in names.tolist():
            copy.refused.pop(name, None)
            copy.refused[name] = refused
        while len(copy.refused) > REFUSED_MOST:
            del copy.refused[next(iter(copy.refused))]
        if foreign:
            copy.at = 0
        return self._ask(copy, now) if foreign else None

    def _believed(self, copy: Copy, names: U64, said: Changes | Chunk, now: int) -> U64:
        """Those of the blocks that a host says to have which it has not refused to have since."""
        while copy.refused and next(iter(copy.refused.values()))[0] <= now:
            del copy.refused[next(iter(copy.refused))]
        if not copy.refused or not len(names):
            return names
        some = among(names, np.fromiter(copy.refused, np.uint64, len(copy.refused)))
        for at in some.nonzero()[0].tolist():
            _, incarnation, number = copy.refused[int(names[at])]
            some[at] = incarnation == said.incarnation and said.number <= number
            if not some[at]:
                del copy.refused[int(names[at])]
        return names[~some]

    def _ask(self, copy: Copy, now: int) -> Ask | None:
        """Ask it, unless it is being asked, or would say what there is no room for."""
        if copy.crowded or copy.asked_at is not None and now < copy.asked_at + ASK_AGAIN_NS:
            return None
        copy.asked_at = now
        copy.serial += 1
        return Ask(copy.serial, copy.incarnation, copy.number, copy.at)

    def forget(self, host: int) -> None:
        """The slot is no host's any more."""
        self._held.drop(host)
        self._copies[host] = Copy(serial=self._copies[host].serial)

    def wake_at(self) -> int | None:
        """When `wake` is due; 0: at once, for the table has work to go on with."""
        if self._held.busy:
            return 0
        return min((at for copy in self._copies for at in _dues(copy)), default=None)

    def wake(self, now: int) -> Sequence[tuple[int, Ask]]:
        """Do what is due.

        Returns:
            Which hosts are to be asked what.
        """
        self._held.step()
        asks = []
        for host, copy in enumerate(self._copies):
            if copy.heard_at is not None and now >= copy.heard_at + GONE_NS:
                self.forget(host)
            elif (copy.crowded or copy.asked_at is not None) and not _silent(copy, now):
                copy.crowded = copy.crowded and self._held.busy
                if ask := self._ask(copy, now):
                    asks.append((host, ask))
        return asks

    def check(self) -> None:
        """What is counted is there; nothing is unbounded."""
        self._held.check()
        for copy in self._copies:
            assert 0 <= copy.at <= WHOLE and len(copy.refused) <= REFUSED_MOST
            assert copy.incarnation != NO_LIFE or copy.number == copy.at == 0


def _silent(copy: Copy, now: int) -> bool:
    return copy.heard_at is not None and now >= copy.heard_at + HIDDEN_NS


def _dues(copy: Copy) -> list[int]:
    """When something is to be done about it."""
    if copy.heard_at is None:
        return []
    again = copy.asked_at + ASK_AGAIN_NS if copy.asked_at is not None else WHOLE
    return [copy.heard_at + GONE_NS, *([again] if again < copy.heard_at + HIDDEN_NS else [])]
