"""Mooncake's traces, and rows that look like them: one request per line.

`input_length` tokens, `hash_ids` of the prompt's blocks (512 tokens in Mooncake's own traces, the
last of them perhaps a part of a block), `timestamp`, `output_length`. Dynamo and AIPerf write the
same rows, with other block sizes, other names (`input_tokens`, `created_time`, ...) and with
`session_id` and `delay` for the turns of a conversation. Here each row holds a whole prompt.

Mooncake promises that an id names a block together with everything before it. Times are not read: a
replay goes as fast as it can, in the order of the file, so it is no matter in what unit they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pegaflow.replay.source import Value

from .base import Fields, Row, count, fields_of, ids_of, label

TOKENS = ("input_length", "input_tokens")
OUTPUT = ("output_length", "output_tokens")
SESSION = ("session_id",)


@dataclass(frozen=True, slots=True)
class Mooncake:
    """See the module and `base.Format`."""

    name: str = "mooncake"
    title: str = "Mooncake"
    usual: int | None = 512
    prefixed: bool = True

    def fits(self, first: Fields) -> bool:
        """Whether a first row is of this kind."""
        return any(name in first for name in TOKENS) and "hash_ids" in first

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of these values."""
        for value in values:
            yield row(value)


def row(value: Value) -> Row:
    """A row that holds a whole prompt."""
    fields, where = fields_of(value), value.where
    ids = ids_of(fields, where, "hash_ids")
    tokens = count(fields, where, *TOKENS) if ids is not None else 0
    return Row(where, tokens, ids, label(fields, *SESSION))
