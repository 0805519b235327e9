"""The shared nouns: plain values that several conversations use.

`Keys` and `U64s` are lists that travel as one bytes field each, because a lookup names a thousand
blocks and a msgpack list of a thousand elements costs twenty times what one blob costs.
"""

from collections.abc import Callable
from functools import cache
from struct import Struct, pack
from typing import Annotated, NamedTuple, cast


class Address(NamedTuple):
    """One life of one process.  Nothing that an earlier incarnation was granted is honoured."""

    name: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.name}.{self.incarnation}"

    @property
    def routing_id(self) -> bytes:
        """The ZeroMQ routing id of this life."""
        return str(self).encode()


NOBODY = Address("", 0)
"""No process: an address that is never given to one."""

SUPERVISOR = "supervisor"
ALLOCATOR = "allocator"
INDEX = "index"
SESSION = "session"
GATEWAY = "gateway"
FLUSHER = "flusher"
CLIENT = "client"


class Blob(NamedTuple):
    """How an annotated list travels as one bytes field."""

    pack: Callable[[tuple[object, ...]], bytes]
    unpack: Callable[[bytes], tuple[object, ...]]


KEY_BYTES_MAX = 64
"""Longest block hash: sha512.  vLLM's are 32 (sha256) or 16 (xxhash128) bytes."""

NUMBER_MAX = (1 << 63) - 1
"""Largest number of a grant, lease or claim that a session may state: so many more still fit."""

LIST_MAX = 65536
"""Most elements in one list: a prompt of a million tokens in blocks of 16."""


def _pack_keys(keys: tuple[object, ...]) -> bytes:
    if not keys:
        return b""
    hashes = cast(tuple[bytes, ...], keys)
    size = len(hashes[0])
    assert 1 <= size <= KEY_BYTES_MAX and set(map(len, hashes)) == {size}, "keys of one length"
    return bytes((size,)) + b"".join(hashes)


def _unpack_keys(blob: bytes) -> tuple[object, ...]:
    if not blob:
        return ()
    size = blob[0]
    count, rest = divmod(len(blob) - 1, size) if size else (0, 1)
    if rest or not 1 <= size <= KEY_BYTES_MAX or not 1 <= count <= LIST_MAX:
        raise ValueError(f"{len(blob)} bytes are not a list of keys of {size} bytes")
    split = _splitter(size)
    runs = count // _SPLIT
    keys: list[object] = []
    for at in range(1, 1 + runs * split.size, split.size):
        keys += split.unpack_from(blob, at)
    keys += [blob[at : at + size] for at in range(1 + runs * split.size, len(blob), size)]
    return tuple(keys)


_SPLIT = 32
"""Keys cut off a blob in one call: a slice for each would cost four times as much."""


@cache
def _splitter(size: int) -> Struct:
    """Cuts _SPLIT keys of this size; there are KEY_BYTES_MAX sizes."""
    return Struct(f"{size}s" * _SPLIT)


def _pack_u64s(numbers: tuple[object, ...]) -> bytes:
    return pack(f"<{len(numbers)}Q", *numbers)


def _unpack_u64s(blob: bytes) -> tuple[object, ...]:
    count, rest = divmod(len(blob), 8)
    if rest or count > LIST_MAX:
        raise ValueError(f"{len(blob)} bytes are not a list of at most {LIST_MAX} u64")
    return tuple(memoryview(blob).cast("Q"))


Keys = Annotated[tuple[bytes, ...], Blob(_pack_keys, _unpack_keys)]
"""Block hashes of one length (1..64 bytes): a length byte, then the hashes end to end."""

U64s = Annotated[tuple[int, ...], Blob(_pack_u64s, _unpack_u64s)]
"""Little-endian unsigned 64-bit numbers end to end (page ids, stamps, offsets, positions)."""
