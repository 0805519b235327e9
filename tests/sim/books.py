"""What is known of the engines: their parts, their operations, and the bytes of every block."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from pegaflow.client.results import Done
from pegaflow.wire.identities import Key
from pegaflow.wire.session import Way

_CONTENT: dict[tuple[int, bytes, int], bytes] = {}


def content(size: int, key: Key, shard: int) -> bytes:
    """The bytes of this shard of the block with this key, where blocks have this size."""
    known = _CONTENT.get((size, key, shard))
    if known is None:
        word = blake2b(key + bytes((shard,)) + size.to_bytes(8, "little"), digest_size=16).digest()
        known = _CONTENT[size, key, shard] = (word * (size // 16 + 1))[:size]
    return known


@dataclass(slots=True)
class Operation:
    """One operation without an end yet."""

    kind: str
    keys: tuple[Key, ...]
    then: Callable[[Done], None]  # the engine hears of the end
    blocks: tuple[int, ...] = ()


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
    replicas: int = 1  # ranks that hold the same bytes
    gpu: int = -1  # device that its memory is on; -1: it is the host's

    @property
    def shard(self) -> int:
        """What part of each block this rank has."""
        assert self.rank is not None
        return self.rank // self.replicas
