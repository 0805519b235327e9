"""What other hosts have: their word, handed on to our index.  See wire/peer.py.

Nothing of it is kept here but how far each host's word has come, and how its blocks are cut.  A new
index has heard nothing: every host is followed anew.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.identities import Namespace
from pegaflow.wire.peer import AHEAD, ALL, Around, Cut, Elsewhere, Follow, Have, Ping, Pong
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX, REMOTE_PEER, Address

from .places import Places, RemoteHost
from .pulls import is_cut
from .telling import Telling

PREFETCH: Count = 2048
"""Blocks that one engine may await of other hosts: as many as of the SSD tier."""

PINGS_FIRST: Count = 4
"""Pings after a Follow before it is taken for lost: an answer may be that far behind."""

CUTS_MAX: Count = 1024
"""Namespaces of one host: far more than it serves."""


@dataclass(slots=True)
class _Word:
    """How far a host's word has come."""

    number: int  # of our Follow
    seen: int = 0  # parts
    acknowledged: int = 0  # of them: in a ping
    pings: int = 0  # since then
    cuts: dict[Namespace, Cut] = field(default_factory=dict)


class Following(Part):
    """Follows every host that is there."""

    def __init__(
        self, member: Member, places: Places, telling: Telling, counts: Counter[str]
    ) -> None:
        self._member, self._places, self._telling = member, places, telling
        self._counts = counts
        self._words: dict[Address, _Word] = {}  # of the hosts that live
        self._newest = 0  # number of a Follow

    def handlers(self) -> Iterable[On]:
        """Other hosts' word."""
        return (on(Have, self._on_have, REMOTE_PEER),)

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An index, perhaps in a new life, knows nothing."""
        if neighbour.name != INDEX:
            return []
        hosts = self._places.hosts.values()
        return [*self.beat(now), *(e for host in hosts for e in self._follow(host))]

    def beat(self, now: int) -> list[Effect]:
        """Say again what can be fetched: the last word may be lost."""
        hosts = self._places.slots
        prefetch = PREFETCH if self._words else 0
        return self._member.tell(INDEX, Around(prefetch, hosts, self._telling.missed))

    def cut(self, host: RemoteHost, namespace: Namespace) -> Cut | None:
        """How this host's blocks of a namespace are cut; None: it has said nothing of any."""
        word = self._words.get(host.address)
        return word.cuts.get(namespace) if word is not None else None

    # of hosts

    def host_met(self, host: RemoteHost, now: int) -> list[Effect]:
        """Follow it."""
        effects = self._follow(host)
        return [*self.beat(now), *effects]

    def host_lost(self, host: RemoteHost, now: int) -> list[Effect]:
        """What it has said is not true any more."""
        del self._words[host.address]
        first, last = ALL
        lost = Elsewhere(host.slot, first=first, last=last, cuts=(), added=(), removed=())
        return [*self._member.tell(INDEX, lost), *self.beat(now)]

    def ping_of(self, host: RemoteHost, ping: Ping) -> Ping:
        """How far its word has come."""
        word = self._words[host.address]
        word.acknowledged = word.seen
        word.pings += 1
        return replace(ping, number=word.number, seen=word.seen)

    def host_ponged(self, host: RemoteHost, pong: Pong, now: int) -> list[Effect]:
        """It has told more than has come, or knows nothing of our Follow: that was lost."""
        word = self._words[host.address]
        if pong.number == word.number and pong.told <= word.seen:
            return []
        if pong.number != word.number and word.pings < PINGS_FIRST:
            return []
        self._counts["peer_parts_missed"] += 1
        return self._follow(host)

    def check(self) -> None:
        """Whom we follow is there."""
        assert self._words.keys() == self._places.hosts.keys()

    def _follow(self, host: RemoteHost) -> list[Effect]:
        self._newest += 1
        before = self._words.get(host.address)
        self._words[host.address] = _Word(self._newest)
        if before is not None:
            self._words[host.address].cuts = before.cuts
        return [Send(host.address, Follow(self._newest))]

    def _on_have(self, sender: Sender, msg: Have, now: int) -> list[Effect]:
        host = self._places.heard(sender, now)
        if host is None:
            return []
        word = self._words[host.address]
        if msg.number != word.number or msg.part <= word.seen:
            return []
        if msg.part != word.seen + 1:
            self._counts["peer_parts_missed"] += 1
            return self._follow(host)
        word.seen = msg.part
        cuts = tuple(filter(is_cut, msg.cuts))
        for cut in cuts:
            if len(word.cuts) < CUTS_MAX:
                word.cuts[cut.namespace] = cut
        news = Elsewhere(
            host.slot,
            first=msg.first,
            last=msg.last,
            cuts=cuts,
            added=msg.added,
            removed=msg.removed,
            blocks=msg.blocks,
        )
        effects = self._member.tell(INDEX, news)
        if word.seen - word.acknowledged >= AHEAD // 2:
            effects += self._places.ping(host)
        return effects
