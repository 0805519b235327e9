"""What is known of the engines: their parts, their operations, and the bytes of every block."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from pegaflow.client.results import Done
from pegaflow.wire.identities import Key
from pegaflow.wire.session import Way

_CONTENT: dict[tuple[int, bytes, int], bytes] = {}


def content(size: int, key: Key, rank: int) -> bytes:
    """The bytes of this rank's part of the block with this key, where blocks have this size."""
    known = _CONTENT.get((size, key, rank))
    if known is None:
        word = blake2b(key + bytes((rank,)) + size.to_bytes(8, "little"), digest_size=16).digest()
        known = _CONTENT[size, key, rank] = (word * (size // 16 + 1))[:size]
    return known


@dataclass(slots=True)
class Operation:
    """One operation without an end yet."""

    kind: str
    keys: tuple[Key, ...]
    then: Callable[[Done], None]  # the engine hears of the end
    blocks: tuple[int, ...] = ()
    taken_back: bool = False  # save: the engine has overwritten the blocks, or never filled them


@dataclass(slots=True)
class Books:
    """What became of all operations of all engines."""

    started: int = 0
    ended: int = 0
    abandoned: int = 0  # open when their process died
    loaded: int = 0  # blocks judged right
    saved: int = 0
    statuses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Role:
    """What a client is in its engine."""

    engine: str
    generation: bytes
    size: int  # bytes of a block of a rank
    world: int
    rank: int | None  # None: a scheduler without memory
    opens: bool
    way: Way
