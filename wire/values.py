"""The shared nouns: plain values that several conversations use.

`Keys` and `U64s` are lists that travel as one bytes field each, because a lookup names a thousand
blocks and a msgpack list of a thousand elements costs twenty times what one blob costs.  What has
come from another process is `Packed`: the blob as it came, of which only the length is looked at.
It is taken apart when somebody first asks for an element, and said again as the blob that it is.
It equals the tuple of its elements; whoever says a list may give a tuple of his own.
"""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from struct import Struct
from typing import Annotated, Any, NamedTuple, TypeVar, overload

from msgspec import Meta

from .identities import WHOEVER, Incarnation, Key
from .units import Bytes, Count

_T = TypeVar("_T")
_N = TypeVar("_N", bound=int)

U64 = Annotated[int, Meta(ge=0)]
"""0 .. 2^64-1: msgpack has no larger numbers."""

TEXT_CHARS_MAX: Count = 64 << 10
"""Longest string: paths, names and one-line reasons are far shorter."""

Text = Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]


class Address(NamedTuple):
    """One life of one process.  Nothing that an earlier incarnation was granted is honoured."""

    name: Text
    incarnation: Annotated[Incarnation, Meta(ge=0)]

    def __str__(self) -> str:
        return f"{self.name}.{self.incarnation}"

    @property
    def routing_id(self) -> bytes:
        """The ZeroMQ routing id of this life."""
        return str(self).encode()


NOBODY = Address("", WHOEVER)
"""No process: an address that is never given to one."""

SUPERVISOR = "supervisor"
ALLOCATOR = "allocator"
INDEX = "index"
SESSION = "session"
GATEWAY = "gateway"
FLUSHER = "flusher"
CLIENT = "client"
PEER = "peer"
REMOTE_PEER = "remote-peer"
PEER_PLACE = "peer-place"

FRONT_DESK = Address(SUPERVISOR, WHOEVER)
"""Whom a client asks: there it learns of incarnations."""

ANY_PEER = Address(REMOTE_PEER, WHOEVER)
"""Whoever answers for another host; whom a place is dialled for (peer.py)."""


KEY_BYTES_MAX: Bytes = 64
"""Longest block hash: sha512.  vLLM's are 32 (sha256) or 16 (xxhash128) bytes."""

NUMBER_MAX: Count = (1 << 63) - 1
"""Largest number of a grant, lease or claim that a session may state: so many more still fit."""

LIST_MAX: Count = 65536
"""Most elements in one list: a prompt of a million tokens in blocks of 16."""


class Packed(Sequence[_T]):
    """A list as the blob that it travels as; a slice of it is a tuple."""

    __slots__ = ("_items", "blob")

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self._items: tuple[_T, ...] | None = None

    @abstractmethod
    def _apart(self) -> tuple[_T, ...]:
        """The elements of the blob, each cut off."""

    def items(self) -> tuple[_T, ...]:
        """All elements."""
        if self._items is None:
            self._items = self._apart()
        return self._items

    @overload
    def __getitem__(self, at: int) -> _T: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[_T, ...]: ...
    def __getitem__(self, at: int | slice) -> _T | tuple[_T, ...]:
        return self.items()[at]

    def __iter__(self) -> Iterator[_T]:
        return iter(self.items())

    def __contains__(self, item: object) -> bool:
        return item in self.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, tuple):
            return self.items() == other
        return type(self) is type(other) and self.blob == other.blob

    def __hash__(self) -> int:
        return hash(self.items())

    def __repr__(self) -> str:
        return repr(self.items())


class PackedKeys(Packed[Key]):
    """A length byte, then hashes of this length end to end."""

    __slots__ = ()

    def __len__(self) -> int:
        return (len(self.blob) - 1) // self.blob[0]

    def _apart(self) -> tuple[Key, ...]:
        blob, size = self.blob, self.blob[0]
        split = _splitter(size)
        keys: list[Any] = []
        whole = 1 + len(self) // _SPLIT * split.size
        for at in range(1, whole, split.size):
            keys += split.unpack_from(blob, at)
        keys += [blob[at : at + size] for at in range(whole, len(blob), size)]
        return tuple(keys)


class PackedU64s(Packed[int]):
    """Little-endian unsigned 64-bit numbers end to end."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.blob) // 8

    def _apart(self) -> tuple[int, ...]:
        return tuple(memoryview(self.blob).cast("Q"))


class Blob(NamedTuple):
    """How an annotated list travels as one bytes field."""

    pack: Callable[[Sequence[Any]], bytes]
    unpack: Callable[[bytes], Sequence[Any]]


_SPLIT = 32
"""Keys cut off a blob in one call: a slice for each would cost four times as much."""


@cache
def _splitter(size: int) -> Struct:
    """Cuts _SPLIT keys of this size; there are KEY_BYTES_MAX sizes."""
    return Struct(f"{size}s" * _SPLIT)


def _pack_keys(keys: Sequence[Key]) -> bytes:
    if type(keys) is PackedKeys:
        return keys.blob
    if not keys:
        return b""
    size = len(keys[0])
    same = [*map(len, keys)].count(size) == len(keys)
    assert 1 <= size <= KEY_BYTES_MAX and same, "keys of one length"
    return bytes((size,)) + b"".join(keys)


def _unpack_keys(blob: bytes) -> Sequence[Key]:
    if not blob:
        return ()
    size = blob[0]
    count, rest = divmod(len(blob) - 1, size) if size else (0, 1)
    if rest or not 1 <= size <= KEY_BYTES_MAX or not 1 <= count <= LIST_MAX:
        raise ValueError(f"{len(blob)} bytes are not a list of keys of {size} bytes")
    return PackedKeys(blob)


def _pack_u64s(numbers: Sequence[int]) -> bytes:
    return numbers.blob if type(numbers) is PackedU64s else array("Q", numbers).tobytes()


def _unpack_u64s(blob: bytes) -> Sequence[int]:
    size = len(blob)
    if size % 8 or size > 8 * LIST_MAX:
        raise ValueError(f"{size} bytes are not a list of at most {LIST_MAX} u64")
    return PackedU64s(blob) if size else ()


Keys = Annotated[tuple[Key, ...] | Packed[Key], Blob(_pack_keys, _unpack_keys)]
"""Block hashes of one length (1..64 bytes): a length byte, then the hashes end to end."""

U64s = Annotated[tuple[int, ...] | Packed[int], Blob(_pack_u64s, _unpack_u64s)]
"""Little-endian unsigned 64-bit numbers end to end (offsets, positions, checksums)."""

Numbers = Annotated[tuple[_N, ...] | Packed[_N], Blob(_pack_u64s, _unpack_u64s)]
"""The same of numbers that name something: Numbers[PageId]."""
