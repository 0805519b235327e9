"""Known traces that cannot be replayed, each with the reason.

It is mostly that nothing in them says which blocks are shared.
"""

from __future__ import annotations

from collections.abc import Callable

from .base import Fields

_NO_IDS = "it has token counts and no block ids, so nothing says which prompts share a prefix"
_TEXT = "it has prompts as text and no block ids: what they share depends on the tokenizer"

TABLES = {  # columns of a CSV that tell it
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): ("the Azure LLM inference trace", _NO_IDS),
    ("Timestamp", "Request tokens", "Response tokens"): ("a BurstGPT trace", _NO_IDS),
}

Test = Callable[[Fields], bool]


def _has(*names: str) -> Test:
    return lambda fields: all(name in fields for name in names)


OBJECTS: list[tuple[Test, str, str]] = [
    (lambda f: f.get("format") == "satf", "a SATF trace", "SATF is not read yet"),
    (_has("num_turns", "assistant_response_length"), "an Applied Compute agentic trace", _NO_IDS),
    (_has("round_index", "prefix_tokens"), "a TraceLab trace", _NO_IDS),
    (_has("ContextTokens", "GeneratedTokens"), "the Azure LLM inference trace", _NO_IDS),
    (_has("Request tokens", "Response tokens"), "a BurstGPT trace", _NO_IDS),
    (_has("eventMetadata", "captureData"), "a SageMaker data capture", _TEXT),
    (_has("conversations"), "ShareGPT's conversations", _TEXT),
    (_has("turns"), "a file of conversations (AIPerf multi_turn)", _TEXT),
    (_has("total_hashes"), "a Baseten trace", "its blocks are not read yet"),
    (_has("messages"), "a file of chat requests", _TEXT),
    (_has("payload"), "a file of API requests", _TEXT),
    (_has("text_input"), "a file of prompts", _TEXT),
    (_has("prompt"), "a file of prompts", _TEXT),
    (_has("chat_id", "input_length"), "a Bailian trace without hash_ids", _NO_IDS),
    (_has("input_length"), "a trace without hash_ids", _NO_IDS),
    (_has("input_tokens"), "a trace without hash_ids", _NO_IDS),
]


def named(first: object) -> str:
    """What a file that begins so is, and why it cannot be replayed; empty if unknown."""
    if isinstance(first, str):
        columns = {column.strip().strip('"') for column in first.split(",")}
        found = (said for known, said in TABLES.items() if columns.issuperset(known))
        what, why = next(found, ("", ""))
        if not what and len(columns) > 2:
            return f"this is a table that begins {first[:50]!r}, and no JSON"
    elif isinstance(first, dict):
        what, why = next(((what, why) for test, what, why in OBJECTS if test(first)), ("", ""))
    else:
        what = why = ""
    return f"this is {what}: {why}" if what else ""
