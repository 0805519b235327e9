"""Weka's traces of coding agents (kv-cache-tester, SemiAnalysis' cc-traces): one JSON object each.

`id`, `block_size`, `hash_id_scope` and `requests`: of type `n` or `s` with `in`, `out` and
`hash_ids` (full blocks only), or of type `subagent` with `requests` of its own, which are replayed
where they stand. Ids count anew in each trace unless the scope is `global`; a file may hold many
traces, one after the other or one per line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pegaflow.replay.errors import TraceError
from pegaflow.replay.source import Value

from .base import Fields, Row, count, fields_of, ids_of


@dataclass(frozen=True, slots=True)
class Weka:
    """See the module and `base.Format`."""

    name: str = "weka"
    title: str = "Weka"
    usual: int | None = 64
    prefixed: bool = True

    def fits(self, first: Fields) -> bool:
        """Whether a first row is of this kind."""
        return isinstance(first.get("requests"), list) and "block_size" in first

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of these values."""
        for number, value in enumerate(values, start=1):
            fields, where = fields_of(value), value.where
            if not self.fits(fields):
                raise TraceError(f"{where}: a Weka trace has 'block_size' and 'requests'")
            size = count(fields, where, "block_size")
            if not size:
                raise TraceError(f"{where}: field 'block_size' must be a whole number from 1")
            scope = fields.get("hash_id_scope", "local")
            if scope not in ("local", "global"):
                raise TraceError(f"{where}: field 'hash_id_scope' must be 'local' or 'global'")
            name = f"{number} {fields.get('id')}"
            for place, request in _flat(fields["requests"], where):
                ids = ids_of(request, place, "hash_ids")
                tokens = count(request, place, "in") if ids is not None else 0
                yield Row(
                    where=place,
                    tokens=tokens,
                    ids=ids,
                    conversation=name,
                    block_tokens=size,
                    local=scope == "local",
                )


def _flat(requests: object, where: str) -> Iterator[tuple[str, Fields]]:
    """The requests in their order, those of subagents at the subagent's place."""
    if not isinstance(requests, list):
        raise TraceError(f"{where}: field 'requests' must be a list")
    for number, request in enumerate(requests, start=1):
        place = f"{where}, request {number}"
        if not isinstance(request, dict):
            raise TraceError(f"{place}: a request must be a JSON object")
        if request.get("type") == "subagent":
            yield from _flat(request.get("requests"), place)
        else:
            yield place, request
