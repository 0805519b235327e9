"""Alibaba's Bailian traces (qwen_traceA_blksz_16.jsonl and others): one request per line.

`chat_id`, `parent_chat_id` (-1: the first turn), `timestamp` in seconds, `input_length`,
`output_length`, `type`, `turn` and `hash_ids`, 16 tokens a block. Each row holds the whole prompt,
history included. An id is the hash of one block alone: the same text elsewhere has the same id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pegaflow.replay.source import Value

from .base import Fields, Row, count, fields_of, ids_of


@dataclass(frozen=True, slots=True)
class Bailian:
    """See the module and `base.Format`."""

    name: str = "bailian"
    title: str = "Bailian"
    usual: int | None = 16
    prefixed: bool = False

    def fits(self, first: Fields) -> bool:
        """Whether a first row is of this kind."""
        return "chat_id" in first and "hash_ids" in first

    def rows(self, values: Iterator[Value]) -> Iterator[Row]:
        """The requests of these values."""
        roots: dict[str, str] = {}  # chat -> the first chat of its conversation
        for value in values:
            fields, where = fields_of(value), value.where
            ids = ids_of(fields, where, "hash_ids")
            tokens = count(fields, where, "input_length") if ids is not None else 0
            chat, parent = str(fields.get("chat_id")), str(fields.get("parent_chat_id", -1))
            root = chat if parent in ("-1", "None") else roots.get(parent, parent)
            roots[chat] = root
            yield Row(where, tokens, ids, root)
