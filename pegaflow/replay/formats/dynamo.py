"""What NVIDIA's Dynamo writes: three kinds of JSON lines.

Plain rows are Mooncake's (see there). An agentic trace begins with a line of the schema
`dynamo.agentic_mooncake` that gives `block_size` and `hash_id_scope`; its rows have a `play_id`,
within which ids count. A recorded request trace (`dynamo.request.trace...`) has events, of which
those of type `request_end` hold `request.replay`: `trace_block_size`, `input_length` and
`input_sequence_hashes`; the others are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pegaflow.replay.errors import TraceError
from pegaflow.replay.source import Value

from .base import Fields, Row, count, fields_of, ids_of, label
from .mooncake import TOKENS, row

_AGENTIC = "dynamo.agentic_mooncake"
_RECORDED = "dynamo.request.trace"


@dataclass(frozen=True, slots=True)
class Dynamo:
    """See the module and `base.Format`."""

    name: str = "dynamo"
    title: str = "Dynamo"
    usual: int | None = 512
    prefixed: bool = True

    def fits(self, first: Fields) -> bool:
        """Whether a first row is of this kind."""
        schema = str(_event(first).get("schema"))
        return schema == _AGENTIC or schema.startswith(_RECORDED)

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of these values."""
        header: Fields | None = None
        for value in values:
            fields = _event(fields_of(value))
            schema = str(fields.get("schema"))
            if schema == _AGENTIC:
                header = fields
            elif schema.startswith(_RECORDED):
                if fields.get("event_type") == "request_end":
                    yield _recorded(fields, value.where)
            elif header is not None:
                yield _agentic(header, fields, value.where)
            else:
                yield row(value)


def _event(fields: Fields) -> Fields:
    """A record may be wrapped in an envelope."""
    inner = fields.get("event")
    return inner if isinstance(inner, dict) else fields


def _agentic(header: Fields, fields: Fields, where: str) -> Row:
    size = count(header, where, "block_size")
    ids = ids_of(fields, where, "hash_ids")
    tokens = count(fields, where, *TOKENS) if ids is not None else 0
    local = header.get("hash_id_scope", "local") == "local"
    return Row(
        where=where,
        tokens=tokens,
        ids=ids,
        conversation=label(fields, "play_id", "session_id"),
        block_tokens=size or None,
        local=local,
    )


def _recorded(fields: Fields, where: str) -> Row:
    request, context = fields.get("request"), fields.get("agent_context")
    replay = request.get("replay") if isinstance(request, dict) else None
    name = label(context, "session_id") if isinstance(context, dict) else None
    if not isinstance(replay, dict):
        return Row(where, 0, None, name)
    size = count(replay, where, "trace_block_size")
    ids = ids_of(replay, where, "input_sequence_hashes")
    if not size:
        raise TraceError(f"{where}: field 'trace_block_size' must be a whole number from 1")
    return Row(where, count(replay, where, "input_length"), ids, name, block_tokens=size)
