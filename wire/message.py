"""Messages as typed classes: declare, encode, decode, check.

A message is a frozen dataclass declared with `@message(tag)`.  Its fields travel as one msgpack
array in the order of declaration.  The annotations are the schema: on decode every field is checked
against its annotation and anything else is a `WireError`, which the loop counts and survives.

Compatibility: fields are only ever added at the end and with a default.  A decoder ignores trailing
fields it does not know and gives missing ones their defaults, so minors N-1 and N+1 can talk.

Types: int (0 .. 2^64-1), bool, str, bytes, an IntEnum, `Address`, a frozen dataclass, a tuple of
one of those, and the blob lists `Keys` and `U64s` of values.py.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin
from typing import get_type_hints as hints_of

import msgpack

from .values import Address, Blob

BODY_BYTES_MAX = 8 << 20
"""Largest body: a lookup of LIST_MAX keys of 64 bytes is 4 MiB."""

ITEMS_MAX = 4096
"""Most fields of a record, and records in a list: layers, processes and counters are far fewer.

A decoder makes room for as many as are announced, at every depth, before the first has come."""

TEXT_BYTES_MAX = 64 << 10
"""Longest string: paths, names and one-line reasons are far shorter."""


class WireError(Exception):
    """Other people's bad bytes.  The loop counts it and lives on."""


class Message:
    """Base of all messages; `TAG` is the number on the wire."""

    __slots__ = ()
    TAG: int = 0


class _Codec(NamedTuple):
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


_TAGS: dict[int, type[Message]] = {}
_CODECS: dict[type, tuple[list[_Codec], list[str], int]] = {}


_M = TypeVar("_M", bound=Message)


@dataclass_transform(frozen_default=True)
def message(tag: int) -> Callable[[type[_M]], type[_M]]:
    """Declare a message class with this number on the wire (1..65535, never reused)."""

    def declare(cls: type[_M]) -> type[_M]:
        made = dataclasses.dataclass(frozen=True, slots=True)(cls)
        assert 0 < tag < 1 << 16 and tag not in _TAGS, f"tag {tag} of {cls.__name__} is taken"
        made.TAG = tag
        _TAGS[tag] = made
        return made

    return declare


def declared() -> dict[int, type[Message]]:
    """Every declared message by its tag."""
    return dict(_TAGS)


def encode(msg: Message) -> bytes:
    """The body of a message."""
    body: bytes = msgpack.packb(_pack_fields(msg))
    return body


def decode(tag: int, body: bytes) -> Message:
    """The message with this tag and body.

    Raises:
        WireError: unknown tag, bytes that are not msgpack, or a field that breaks its annotation.
    """
    cls = _TAGS.get(tag)
    if cls is None:
        raise WireError(f"unknown message {tag}")
    if len(body) > BODY_BYTES_MAX:
        raise WireError(f"{cls.__name__}: body of {len(body)} bytes")
    made: Message = _unpack_fields(cls, unpack_array(body))
    return made


def unpack_array(data: bytes) -> tuple[Any, ...]:
    """One msgpack array and nothing after it, or WireError."""
    try:
        raw = msgpack.unpackb(data, use_list=False, max_array_len=ITEMS_MAX, max_map_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as err:
        raise WireError(f"not msgpack: {type(err).__name__}") from None
    if type(raw) is not tuple:
        raise WireError("not an array")
    return raw


def _pack_fields(value: Any) -> list[Any]:
    codecs, names, _ = _schema(type(value))
    return [c.pack(getattr(value, n)) for c, n in zip(codecs, names, strict=True)]


def _unpack_fields(cls: type, raw: Any) -> Any:
    codecs, names, required = _schema(cls)
    if type(raw) is not tuple or len(raw) < required:
        raise WireError(f"{cls.__name__}: fewer than {required} fields")
    args = []
    for codec, name, field in zip(codecs, names, raw, strict=False):
        try:
            args.append(codec.unpack(field))
        except ValueError as err:
            raise WireError(f"{cls.__name__}.{name}: {err}") from None
    return cls(*args)


def _schema(cls: type) -> tuple[list[_Codec], list[str], int]:
    """Codecs, names and the number of required fields of a dataclass."""
    known = _CODECS.get(cls)
    if known is None:
        hints = hints_of(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        known = _CODECS[cls] = (
            [_codec(hints[f.name]) for f in fields],
            [f.name for f in fields],
            sum(f.default is dataclasses.MISSING for f in fields),
        )
    return known


def _same(value: Any) -> Any:
    return value


def _exact(kind: type[Any], limit: int) -> Callable[[Any], Any]:
    def unpack(raw: Any) -> Any:
        if type(raw) is not kind:
            raise ValueError(f"{type(raw).__name__} where {kind.__name__} belongs")
        if limit and len(raw) > limit:
            raise ValueError(f"{kind.__name__} of {len(raw)}, over the limit of {limit}")
        return raw

    return unpack


def _unpack_int(raw: Any) -> int:
    if type(raw) is not int or raw < 0:
        raise ValueError("not an unsigned number")
    return raw


def _unpack_address(raw: Any) -> Address:
    if type(raw) is not tuple or len(raw) != 2 or type(raw[0]) is not str:
        raise ValueError("not an address")
    return Address(raw[0], _unpack_int(raw[1]))


def _enum_codec(kind: type[enum.IntEnum]) -> _Codec:
    return _Codec(int, lambda raw: kind(_unpack_int(raw)))


def _tuple_codec(item: _Codec) -> _Codec:
    def pack(values: tuple[Any, ...]) -> list[Any]:
        return [item.pack(v) for v in values]

    def unpack(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not tuple:
            raise ValueError("not a list")
        return tuple([item.unpack(v) for v in raw])

    return _Codec(pack, unpack)


def _blob_codec(blob: Blob) -> _Codec:
    check = _exact(bytes, BODY_BYTES_MAX)
    return _Codec(blob.pack, lambda raw: blob.unpack(check(raw)))


def _codec(hint: Any) -> _Codec:
    if get_origin(hint) is Annotated:
        return _blob_codec(hint.__metadata__[0])
    if get_origin(hint) is tuple:
        return _tuple_codec(_codec(get_args(hint)[0]))
    if hint is int:
        return _Codec(_same, _unpack_int)
    if hint is bool:
        return _Codec(_same, _exact(bool, 0))
    if hint is str:
        return _Codec(_same, _exact(str, TEXT_BYTES_MAX))
    if hint is bytes:
        return _Codec(_same, _exact(bytes, BODY_BYTES_MAX))
    if hint is Address:
        return _Codec(list, _unpack_address)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return _enum_codec(hint)
    assert dataclasses.is_dataclass(hint), f"no codec for {hint}"
    return _Codec(_pack_fields, lambda raw: _unpack_fields(hint, raw))  # type: ignore[arg-type]
