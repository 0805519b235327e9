"""The other side of a tier: what the tests of the tier protocol ask of its process.

Each tier has its own in `tests/actors/index/<tier>/side.py`, as `SIDE`.
"""

from typing import NamedTuple, Protocol

from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import ClaimId, Key
from pegaflow.wire.index import Seal
from pegaflow.wire.values import Address
from tests.actors.rig import Rig


class Asked(NamedTuple):
    """What the index wants of a tier's process."""

    question: Envelope
    number: ClaimId  # which its Seals quote
    keys: tuple[Key, ...]


class Side(Protocol):
    """Plays the process that serves a tier.  The blocks are of one shard and one page."""

    @property
    def process(self) -> Address:
        """Its address."""

    def begin(self, rig: Rig) -> None:
        """It is there, and takes and brings blocks."""

    def store(self, rig: Rig, keys: tuple[Key, ...]) -> None:
        """These blocks are in the tier."""

    def take(self, rig: Rig, sent: list[Envelope]) -> tuple[Key, ...]:
        """It takes the blocks that it was given among these, and holds no lease on them any more.

        Returns:
            Those that are in the tier now.
        """

    def asked(self, sent: list[Envelope]) -> Asked | None:
        """What it is asked to bring among these; None: nothing."""

    def seal(self, asked: Asked, keys: tuple[Key, ...], first_page: int) -> Seal:
        """Its word that it has brought these blocks, which it may not have been asked for."""

    def end(self, rig: Rig, asked: Asked) -> list[Envelope]:
        """What it was asked for and has not brought is not in the tier; what that led to."""
