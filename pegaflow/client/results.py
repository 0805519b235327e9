"""What a client hands out: leases, and how each started operation ended."""

from dataclasses import dataclass

from pegaflow.wire.status import Status


@dataclass(frozen=True, slots=True)
class Lease:
    """`blocks` leading blocks of a lookup, held until loaded or released.

    Plain numbers: a lease may travel to another client of the same engine (scheduler to worker).
    """

    session: int  # incarnation of the session that holds it; of no use in another
    number: int
    blocks: int


@dataclass(frozen=True, slots=True)
class LookupDone:
    """The prefix hit is `blocks` long; `lease` is None if that is 0."""

    ticket: int
    status: Status
    lease: Lease | None
    blocks: int
    disk: tuple[int, ...] = ()  # places in the hit of the blocks that were read from SSD for it


@dataclass(frozen=True, slots=True)
class LoadDone:
    """`failed`: the engine's block ids whose content is undefined now; empty if status is OK."""

    ticket: int
    status: Status
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SaveDone:
    """The engine may reuse the blocks.  `saved`: published now; `known`: were there already."""

    ticket: int
    status: Status
    saved: int
    known: int


Done = LookupDone | LoadDone | SaveDone
