"""Messages as typed classes: declare, encode, decode, check.

A message is declared with `@message(tag)`, a value inside messages with `@record`.  Its fields
travel as one msgpack array in the order of declaration.  The annotations are the schema: on decode
every field is checked against its annotation and anything else is a `WireError`, which the loop
counts and survives.

Underneath, the class is a frozen msgspec.Struct whose annotations say how each field travels; to
whoever looks at it (fields, replace, asdict) it is a dataclass, with the annotations as declared.

Compatibility: fields are only ever added at the end and with a default.  A decoder ignores trailing
fields it does not know and gives missing ones their defaults, so minors N-1 and N+1 can talk.

Types: int (0 .. 2^64-1), bool, str, bytes, what identities.py makes of them, an IntEnum, `Address`,
a record or message, a tuple of one of those, and in a message itself the blob lists `Keys` and
`U64s` of values.py.
"""

import dataclasses
import enum
import re
from collections.abc import Callable
from types import GenericAlias
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin

import msgspec
from msgspec import Meta

from .units import Bytes, Count
from .values import U64, Address, Blob, Text

BODY_BYTES_MAX: Bytes = 8 << 20
"""Largest body: a lookup of LIST_MAX keys of 64 bytes is 4 MiB."""

ITEMS_MAX: Count = 4096
"""Most records in a list: layers, processes and counters are far fewer.

A decoder may make room for as many as are announced, at every depth, before the first has come."""


class WireError(Exception):
    """Other people's bad bytes.  The loop counts it and lives on."""


class Message:
    """Base of all messages; `TAG` is the number on the wire."""

    __slots__ = ()
    TAG: int = 0


class _Codec(NamedTuple):
    name: str  # of the class
    decode: Callable[[bytes], Any]
    blobs: tuple[tuple[str, Callable[[bytes], Any]], ...]  # fields that come as one


_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

_TAGS: dict[int, type[Message]] = {}
_CODECS: dict[int, _Codec] = {}
_PACKS: dict[type, tuple[tuple[int, Callable[[Any], bytes]], ...]] = {}
"""By class that has any: the places of the fields that go as a blob."""

_FORMS: dict[Any, Any] = {int: U64, str: Text, bool: bool, bytes: bytes, Address: Address}
"""What msgspec is told of a field with this annotation."""

_FIELD_AT_FAULT = re.compile(r"`\$\[(\d+)\]")

_astuple: Callable[[Any], tuple[Any, ...]] = msgspec.structs.astuple
_set: Callable[[Any, str, Any], None] = msgspec.structs.force_setattr

pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""The msgpack of plain values and records.  Made once: a new encoder costs more than to pack."""

MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for bytes that are not what they should be."""


@dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Declare a class whose values travel inside messages."""
    fields = _fields(dataclasses.dataclass(init=False, repr=False, eq=False)(cls))
    named = {f.name for f in fields}
    kept = ("__doc__", "__qualname__", "__dataclass_fields__", "__dataclass_params__")
    made: type[_T] = msgspec.defstruct(
        cls.__name__,
        [(f.name, bytes if _blob(f.type) else _form(f.type), *_default(f)) for f in fields],
        bases=(*(base for base in cls.__bases__ if base is not object), msgspec.Struct),
        module=cls.__module__,
        namespace={
            name: value
            for name, value in vars(cls).items()
            if name in kept or name not in named and not name.startswith("__")
        },
        frozen=True,
        array_like=True,
    )  # type: ignore[assignment]
    packs = [(at, blob.pack) for at, f in enumerate(fields) if (blob := _blob(f.type))]
    if packs:
        _PACKS[made] = tuple(packs)
    return made


@dataclass_transform(frozen_default=True)
def message(tag: int) -> Callable[[type[_M]], type[_M]]:
    """Declare a message class with this number on the wire (1..65535, never reused)."""

    def declare(cls: type[_M]) -> type[_M]:
        made = record(cls)
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
    packs = _PACKS.get(type(msg))
    if packs is None:
        return pack(msg)
    fields = list(_astuple(msg))
    for at, pack_blob in packs:
        fields[at] = pack_blob(fields[at])
    return pack(fields)


def decode(tag: int, body: bytes) -> Message:
    """The message with this tag and body.

    Raises:
        WireError: unknown tag, bytes that are not msgpack, or a field that breaks its annotation.
    """
    codec = _CODECS.get(tag) or _codec(tag)
    if len(body) > BODY_BYTES_MAX:
        raise WireError(f"{codec.name}: body of {len(body)} bytes")
    try:
        made: Message = codec.decode(body)
    except MALFORMED as err:
        raise WireError(_fault(_TAGS[tag], err)) from None
    for name, unpack in codec.blobs:
        blob = getattr(made, name)
        if type(blob) is bytes:  # not the default of a field that is missing
            try:
                _set(made, name, unpack(blob))
            except ValueError as err:
                raise WireError(f"{codec.name}.{name}: {err}") from None
    return made


def _codec(tag: int) -> _Codec:
    """The codec of the message with this tag, made when it is first decoded."""
    cls = _TAGS.get(tag)
    if cls is None:
        raise WireError(f"unknown message {tag}")
    blobs = [(f.name, blob.unpack) for f in _fields(cls) if (blob := _blob(f.type))]
    codec = _Codec(cls.__name__, msgspec.msgpack.Decoder(cls).decode, tuple(blobs))
    _CODECS[tag] = codec
    return codec


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _default(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    return () if field.default is dataclasses.MISSING else (field.default,)


def _blob(hint: Any) -> Blob | None:
    """How a field with this annotation is made one blob, if it is."""
    return hint.__metadata__[0] if get_origin(hint) is Annotated else None


def _form(hint: Any) -> Any:
    """What msgspec is told of a field with this annotation."""
    if get_origin(hint) is tuple:
        items = GenericAlias(tuple, (_form(get_args(hint)[0]), ...))
        return Annotated[items, Meta(max_length=ITEMS_MAX)]
    hint = getattr(hint, "__supertype__", hint)
    if hint in _FORMS:
        return _FORMS[hint]
    known = isinstance(hint, type) and issubclass(hint, enum.IntEnum | msgspec.Struct)
    assert known and hint not in _PACKS, f"no codec for {hint}"
    return hint


def _fault(cls: type[Message], err: Exception) -> str:
    """A line about bytes that are no message of this class."""
    at = _FIELD_AT_FAULT.search(str(err))
    field = f".{_fields(cls)[int(at[1])].name}" if at else ""
    return f"{cls.__name__}{field}: {err}"
