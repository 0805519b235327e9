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
from operator import attrgetter
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
    pack: Callable[[Any], Any]  # `_same` where msgpack packs the value as it is
    unpack: Callable[[Any], Any]


class _Schema(NamedTuple):
    take: Callable[[Any], Any]  # all fields of a value, in order
    packs: tuple[tuple[int, Callable[[Any], Any]], ...]  # by position; the others go as they are
    unpacks: tuple[Callable[[Any], Any], ...]  # one per field
    names: tuple[str, ...]
    required: int  # fields without a default


_TAGS: dict[int, type[Message]] = {}
_SCHEMAS: dict[type, _Schema] = {}

_packer = msgpack.Packer()
"""Made once: a new one for each message costs more than to pack it.  It keeps no state."""


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
    return pack_array(_pack_fields(msg))


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


def pack_array(values: Any) -> bytes:
    """One msgpack array of these."""
    packed: bytes = _packer.pack(values)
    return packed


def unpack_array(data: bytes) -> tuple[Any, ...]:
    """One msgpack array and nothing after it, or WireError."""
    try:
        raw = msgpack.unpackb(data, use_list=False, max_array_len=ITEMS_MAX, max_map_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as err:
        raise WireError(f"not msgpack: {type(err).__name__}") from None
    if type(raw) is not tuple:
        raise WireError("not an array")
    return raw


def _pack_fields(value: Any) -> Any:
    schema = _schema(type(value))
    fields = schema.take(value)
    if schema.packs:
        fields = list(fields)
        for at, pack in schema.packs:
            fields[at] = pack(fields[at])
    return fields


def _unpack_fields(cls: type, raw: Any) -> Any:
    schema = _schema(cls)
    if type(raw) is not tuple or len(raw) < schema.required:
        raise WireError(f"{cls.__name__}: fewer than {schema.required} fields")
    args: list[Any] = []
    try:
        for unpack, field in zip(schema.unpacks, raw, strict=False):
            args.append(unpack(field))
    except ValueError as err:
        raise WireError(f"{cls.__name__}.{schema.names[len(args)]}: {err}") from None
    return cls(*args)


def _schema(cls: type) -> _Schema:
    """How the fields of a dataclass travel."""
    known = _SCHEMAS.get(cls)
    if known is None:
        hints = hints_of(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        names = tuple(f.name for f in fields)
        codecs = [_codec(hints[name]) for name in names]
        known = _SCHEMAS[cls] = _Schema(
            attrgetter(*names) if len(names) > 1 else lambda v: [getattr(v, n) for n in names],
            tuple((at, c.pack) for at, c in enumerate(codecs) if c.pack is not _same),
            tuple(c.unpack for c in codecs),
            names,
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
    known = {member.value: member for member in kind}

    def unpack(raw: Any) -> enum.IntEnum:
        number = _unpack_int(raw)
        return known.get(number) or kind(number)

    return _Codec(_same, unpack)


def _tuple_codec(item: _Codec) -> _Codec:
    def pack(values: tuple[Any, ...]) -> list[Any]:
        return [item.pack(v) for v in values]

    def unpack(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not tuple:
            raise ValueError("not a list")
        return tuple([item.unpack(v) for v in raw])

    return _Codec(_same if item.pack is _same else pack, unpack)


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
        return _Codec(_same, _unpack_address)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return _enum_codec(hint)
    assert dataclasses.is_dataclass(hint), f"no codec for {hint}"
    return _Codec(_pack_fields, lambda raw: _unpack_fields(hint, raw))  # type: ignore[arg-type]
