"""Values of any declared message, made from its annotations.

`sample` is one fixed value per message (golden.json holds its bytes); `messages` draws others;
`wrong` names raw values that no decoder may take for a field.
"""

import dataclasses
import enum
import importlib
from typing import Annotated, Any, get_args, get_origin

from hypothesis import strategies as st

from pegaflow.wire.gpu import Backend
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import ThreadState
from pegaflow.wire.message import Message, declared
from pegaflow.wire.session import Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address, Keys, U64s

for (
    _conversation
) in "allocator control diskjobs flusher gpujobs index jobs peer peerjobs session".split():
    importlib.import_module(f"pegaflow.wire.{_conversation}")  # it declares its messages
importlib.import_module("pegaflow.actors.runtime.contract")

U64_MAX = 2**64 - 1

MESSAGES: tuple[type[Message], ...] = tuple(declared()[tag] for tag in sorted(declared()))
"""Every message of the service, by tag."""


def schema(cls: type) -> list[tuple[str, Any]]:
    """Name of each field, and its annotation as it travels."""
    return [(f.name, _plain(f.type)) for f in dataclasses.fields(cls)]


def _plain(hint: Any) -> Any:
    """What names a thing is a number or bytes on the wire, and so is a list of them."""
    if get_origin(hint) is Annotated and get_args(hint)[1:] == get_args(U64s)[1:]:
        return U64s
    return getattr(hint, "__supertype__", hint)


def fields(value: Any) -> list[Any]:
    """The values of a message's fields, in order."""
    return [getattr(value, f.name) for f in dataclasses.fields(value)]


def sample(cls: type[Any]) -> Any:
    """The one fixed value of a class; a field's value depends on its type and place only."""
    return cls(*(_sample(hint, at) for at, (_, hint) in enumerate(schema(cls))))


def _sample(hint: Any, at: int) -> Any:
    if hint == Keys:
        return (bytes(range(at, at + 32)), bytes(32))
    if hint == U64s:
        return (0, at, U64_MAX)
    if get_origin(hint) is tuple:
        return (_sample(get_args(hint)[0], at), _sample(get_args(hint)[0], at + 1))
    if hint is Address:
        return Address("session", Incarnation((1 << 40) + at))
    if hint is Status:
        return Status.NO_SPACE
    if hint in (Backend, Way, ThreadState):
        return hint(1)
    if hint is bool:
        return True
    if hint is int:
        return (1 << 8 * (at % 8)) + at
    if hint is str:
        return f"Größe {at}"
    if hint is bytes:
        return bytes(range(at, at + 16))
    return sample(hint)


keys = st.integers(1, 64).flatmap(
    lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1, max_size=5).map(tuple)
)
numbers = st.integers(0, U64_MAX)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this annotation may have."""
    if hint == Keys:
        return st.just(()) | keys
    if hint == U64s:
        return st.lists(numbers, max_size=5).map(tuple)
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=3).map(tuple)
    if hint is Address:
        return st.builds(Address, st.text(max_size=20), numbers)
    if hint in (Backend, Status, Way, ThreadState):
        return st.sampled_from(hint)
    plain = {int: numbers, bool: st.booleans(), str: st.text(), bytes: st.binary(max_size=99)}
    return plain[hint] if hint in plain else messages(hint)


def messages(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a message or of a dataclass inside one."""
    return st.builds(cls, *(values(hint) for _, hint in schema(cls)))


any_message: st.SearchStrategy[Message] = st.sampled_from(MESSAGES).flatmap(messages)


def wrong(hint: Any) -> list[Any]:
    """Raw msgpack values that a field of this annotation must refuse."""
    never: list[Any] = [None, 1.5, {}]
    if get_origin(hint) is Annotated:
        own = [1, "text", [1], bytes(7)] + ([b"\0", b"\x41" + bytes(65)] if hint == Keys else [])
    elif get_origin(hint) is tuple:
        own = [1, b"", "", [None], *([w] for w in wrong(get_args(hint)[0]))]
    elif hint is Address:
        own = [[], ["a"], ["a", 1, 2], [b"a", 1], ["a", -1], ["a", True], "a.1"]
    elif hint is int or isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        own = [-1, True, "1", b"1", [1]]
    elif hint is bool:
        own = [0, 1, "", b"", []]
    elif hint is str:
        own = [0, b"text", [], True, "x" * ((64 << 10) + 1)]
    elif hint is bytes:
        own = [0, "text", [], True]
    else:
        own = [0, "", b"", []]
    return never + own
