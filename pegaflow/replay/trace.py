"""Prefix traces in the Mooncake JSONL format: a request per line, its prompt as block ids.

A line holds `timestamp` (ms), `input_length` and `output_length` (tokens) and `hash_ids`, one id
per 512-token block of the prompt. The last id may stand for a part of a block, which no cache can
share: only the `input_length // 512` full blocks count, and `Request.blocks` holds these alone.

An id already names a whole prefix (the traces are made so: an id has one parent in the entire
file), so a block's key is a hash of its id and needs no chaining of ours. A trace that broke this
promise would still replay correctly, since the content of a block is derived from its key alone.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

BLOCK_TOKENS = 512
"""The format's own block size."""

BUNDLED = Path(__file__).parent / "data" / "conversation.jsonl.gz"  # data/README.md says what it is
KEY_BYTES = 32
"""As long as an engine's SHA-256 block hash."""

_LARGEST_ID = 2**63 - 1  # ids are written as eight bytes into the hash


class TraceError(ValueError):
    """The trace cannot be read; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Request:
    index: int  # position in the trace, from 0
    timestamp_ms: int  # arrival; a replay goes as fast as it can and uses the order only
    input_tokens: int  # at least BLOCK_TOKENS * len(blocks)
    output_tokens: int
    blocks: tuple[int, ...]  # ids of the full blocks, head of the prompt first


def read(path: Path, limit: int | None = None) -> list[Request]:
    """The first `limit` requests (all of them if None) of a plain or gzip-compressed trace."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            lines = gzip.open(raw, "rt", encoding="utf-8") if packed else _text(raw)
            return list(parse(lines, str(path), limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{path}: {why}") from error


def parse(lines: Iterable[str], name: str = "trace", limit: int | None = None) -> Iterator[Request]:
    """Requests of a trace given as lines of text; blank lines are passed over."""
    index = 0
    for number, line in enumerate(lines, start=1):
        if limit is not None and index >= limit:
            return
        if line.strip():
            try:
                yield _request(index, json.loads(line))
            except ValueError as error:
                raise TraceError(f"{name}:{number}: {error}") from error
            index += 1


def block_key(block: int) -> bytes:
    """The cache key of a block id."""
    return blake2b(
        block.to_bytes(8, "little"), digest_size=KEY_BYTES, person=b"replay block"
    ).digest()


def count_blocks(requests: Iterable[Request]) -> tuple[int, int]:
    """(blocks asked for in all, unique blocks)."""
    asked = 0
    unique: set[int] = set()
    for request in requests:
        asked += len(request.blocks)
        unique.update(request.blocks)
    return asked, len(unique)


def _text(raw: Iterable[bytes]) -> Iterator[str]:
    return (line.decode("utf-8") for line in raw)


def _request(index: int, fields: object) -> Request:
    if not isinstance(fields, dict):
        raise ValueError("a request must be a JSON object")
    tokens = _count(fields, "input_length")
    ids = fields.get("hash_ids")
    if not isinstance(ids, list):
        raise ValueError("field 'hash_ids' must be a list of block ids")
    full = tokens // BLOCK_TOKENS
    if len(ids) < full:
        raise ValueError(f"{len(ids)} hash_ids for {full} full blocks of {BLOCK_TOKENS} tokens")
    if not all(type(block) is int and 0 <= block <= _LARGEST_ID for block in ids):
        raise ValueError("field 'hash_ids' must hold whole numbers from 0")
    arrival, output = _count(fields, "timestamp"), _count(fields, "output_length")
    return Request(index, arrival, tokens, output, tuple(ids[:full]))


def _count(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"field '{name}' must be a whole number from 0")
    return value
