"""What the client's stand-in has been asked to save, chain by chain, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pegaflow.client import Chain, SaveDone
from pegaflow.wire.status import Status

Order = tuple[bytes, int]
"""Generation and number of a save order."""


@dataclass(frozen=True, eq=False)
class Part:
    """One chain of a save."""

    order: Order
    chain: Chain
    save: "Conversation"
    places: range  # in the save's keys


@dataclass(eq=False)
class Conversation:
    """One save."""

    ticket: int
    open: int = 0  # chains that have not ended
    kept: list[int] = field(default_factory=list)  # places of the keys that are published
    lost: list[int] = field(default_factory=list)  # and of those that will not be

    def parts(self, generation: bytes, chains: Sequence[Chain]) -> list[Part]:
        """Its chains."""
        made, place = [], 0
        for chain in chains:
            places = range(place, place + len(chain.keys))
            made.append(Part((generation, chain.order), chain, self, places))
            place = places.stop
        self.open = len(made)
        return made

    def end(self, part: Part, status: Status) -> list[SaveDone]:
        """A chain has ended; how the save has, if it was the last one."""
        (self.kept if status is Status.OK else self.lost).extend(part.places)
        self.open -= 1
        if self.open:
            return []
        ended = Status.DROPPED if self.lost else Status.OK
        lost = tuple(sorted(self.lost))
        return [SaveDone(self.ticket, ended, len(self.kept), 0, lost=lost)]
