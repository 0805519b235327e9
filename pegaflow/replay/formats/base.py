"""What every trace format gives: rows.

A format is an object with a name, a test whether a first value is of it, and a generator from the
values of one file to rows. What a file says of its own rows (block size, whether ids count anew in
each conversation) is in every row; what is only usual in the format is in the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pegaflow.replay.errors import TraceError
from pegaflow.replay.source import Value
from pegaflow.wire.units import Count

Fields = Mapping[str, object]

TOKENS_MAX: Count = 1 << 26
"""Of one prompt or answer: far above what any model takes, so a larger number is a mistake."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request."""

    where: str  # FILE:LINE, for people
    tokens: int  # of its prompt; of what is new in it if `delta`
    ids: Sequence[object] | None  # of the prompt's blocks, head first; None if the row has none
    conversation: str | None = None  # requests of one name are turns of one conversation
    block_tokens: int | None = None  # if the file says it
    local: bool = False  # ids mean something within the conversation only
    delta: bool = False  # after the conversation's first turn only what is new is given
    output: int = 0  # tokens that were generated; asked for only if `delta`


class Format(Protocol):
    """One kind of trace."""

    @property
    def name(self) -> str:
        """As `--format` takes it."""
        ...

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    @property
    def usual(self) -> int | None:
        """Tokens of a block in most traces of this kind; None: it differs."""
        ...

    @property
    def prefixed(self) -> bool:
        """Whether an id of it names a block with all that stands before it."""
        ...

    def fits(self, first: Fields) -> bool:
        """Whether a trace that begins with this value is of this kind."""
        ...

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of one file.

        Raises:
            TraceError: a value is none of this format.
        """
        ...


def fields_of(value: Value) -> Fields:
    """The fields of a JSON object; TraceError if it is none."""
    if not isinstance(value.data, dict):
        raise TraceError(f"{value.where}: a request must be a JSON object")
    return value.data


def count(fields: Fields, where: str, *names: str) -> int:
    """A whole number of a row; 46.0 is one too.

    Args:
        where: the row's place, for the error.
        *names: of the field; the first that is there counts.

    Raises:
        TraceError: none is there, or the first is no number of tokens.
    """
    for name in names:
        if name in fields:
            value = fields[name]
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if type(value) is int and 0 <= value <= TOKENS_MAX:
                return value
            raise TraceError(
                f"{where}: field '{name}' must be a whole number from 0 to {TOKENS_MAX}"
            )
    raise TraceError(f"{where}: no field '{names[0]}'")


def ids_of(fields: Fields, where: str, name: str) -> Sequence[object] | None:
    """The list of block ids in a field.

    Args:
        where: the row's place, for the error.

    Returns:
        None if the field is not there.

    Raises:
        TraceError: it is no list.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, list):
        raise TraceError(f"{where}: field '{name}' must be a list of block ids")
    return value


def label(fields: Fields, *names: str) -> str | None:
    """The first of these fields that names something, as text."""
    return next((str(fields[name]) for name in names if fields.get(name) is not None), None)
