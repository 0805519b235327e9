"""What a client hands out: leases, and how each started operation ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pegaflow.wire.identities import NO_KEY
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
    peers: tuple[int, ...] = ()  # and of those that came from other hosts


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of each of some blocks at a moment; nothing keeps it so."""

    here: tuple[bool, ...]  # it is in memory
    below: tuple[bool, ...] | None  # a tier has it, but for a few that only seem so; None: unknown


@dataclass(frozen=True, slots=True)
class LoadDone:
    """`failed`: the engine's block ids whose content is undefined now; empty if status is OK."""

    ticket: int
    status: Status
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """What is saved; as `Client.start_save` has it."""

    keys: Sequence[bytes]
    blocks: Sequence[int]
    order: int = 0
    parent: bytes = NO_KEY
    valid: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class SaveDone:
    """The engine may reuse the blocks.  `saved`: published now; `known`: were there already.

    `lost`: if several chains were saved, the places in all of their keys that are neither; so are
    all, if none is named and none is saved or known.
    """

    ticket: int
    status: Status
    saved: int
    known: int
    lost: tuple[int, ...] = ()


Done = LookupDone | LoadDone | SaveDone
