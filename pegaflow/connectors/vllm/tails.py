"""What names the tail of a prompt (common/tails.py): vLLM's hash of its tokens, as if they were a
block, seen through the request's adapter as all of its keys are (adapters.py)."""

from typing import Any

from pegaflow.connectors.common.tails import HashOf

from . import compat
from .adapters import Adapted, unsalted


def hash_of(algorithm: str, hash_tokens: int) -> HashOf:
    """How an engine names them.

    Args:
        algorithm: vLLM's name of its hash function.
        hash_tokens: tokens that a hash of it covers; tails begin at a multiple of them.
    """

    def named(source: Any, start: int, end: int) -> bytes:
        request = unsalted(source)
        parent = request.block_hashes[start // hash_tokens - 1] if start else None
        name = compat.hash_of(algorithm, request, start, end, parent=parent)
        return source.seen(name) if name and isinstance(source, Adapted) else name

    return named
