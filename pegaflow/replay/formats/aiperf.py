"""Mooncake rows as AIPerf replays them: a later turn of a session holds only what is new in it.

The prompt of such a turn is all earlier turns, the answers to them, and the new tokens. (Dynamo
calls such a file mooncake-delta. A session whose rows say
`"context_mode": "message_array_with_responses"` holds whole prompts.) What the answers were is in
no trace, so the blocks after the first turn are this conversation's own, whatever their ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pegaflow.replay.source import Value

from .base import Fields, Row, count, fields_of
from .mooncake import OUTPUT, row

_WHOLE = "message_array_with_responses"


@dataclass(frozen=True, slots=True)
class AIPerf:
    """See the module and `base.Format`."""

    name: str = "aiperf"
    title: str = "AIPerf (later turns hold what is new)"
    usual: int | None = 512
    prefixed: bool = True

    def fits(self, first: Fields) -> bool:
        """Whether a first row is of this kind."""
        return False  # by its first row it is Mooncake's

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of these values."""
        for value in values:
            fields = fields_of(value)
            plain = row(value)
            if plain.conversation is None or fields.get("context_mode") == _WHOLE:
                yield plain
                continue
            output = count(fields, value.where, *OUTPUT)
            yield replace(plain, delta=True, output=output)
