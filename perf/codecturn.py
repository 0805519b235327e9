"""One turn of perf.codec: seconds of each figure, as JSON, with whatever `pegaflow` is imported.

It needs nothing else of this repository, so that another commit's package can be measured by it.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from statistics import median
from typing import Any

import msgpack

from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.index import Find, Seal
from pegaflow.wire.message import Message, decode, encode
from pegaflow.wire.session import Copied
from pegaflow.wire.values import INDEX, SESSION, Address

BLOCKS = 1024
REPEATS = 5
REPEAT_S = 0.02
"""Least length of one repeat: long beside the clock's and the loop's own cost."""

# Plain values: another commit may know no types for what they name.
_KEYS: Any = tuple(n.to_bytes(32, "big") for n in range(1, BLOCKS + 1))
_NUMBERS: Any = tuple(range(1 << 20, (1 << 20) + BLOCKS))
_STAMPS: Any = tuple((7 << 40) + n for n in range(BLOCKS))
_CLAIM: Any = 99
_LIVES: tuple[Any, Any] = (3, 2)
_ROOT: Any = bytes(32)
_NAMESPACE: Any = bytes(range(16))

SMALL = Copied(12345, True)
MESSAGES: dict[str, Message] = {
    "small message (Copied)": SMALL,
    f"Find of {BLOCKS} keys": Find(_NAMESPACE, _KEYS),
    f"Seal of {BLOCKS} blocks": Seal(
        _CLAIM,
        _NAMESPACE,
        65536,
        65536,
        shards=1,
        keys=_KEYS,
        parents=(_ROOT, *_KEYS[:-1]),
        pages=_NUMBERS,
        stamps=_STAMPS,
    ),
}
ENVELOPE = "envelope, small message in it"


def seconds(call: Callable[[], object]) -> float:
    """Of one call, the median of REPEATS."""
    timer = timeit.Timer(call)
    count = 1
    while timer.timeit(count) < REPEAT_S:
        count *= 2
    return median(timer.repeat(REPEATS, count)) / count


def _bodies(msg: Message) -> dict[str, float]:
    body = encode(msg)
    raw = msgpack.unpackb(body)
    came = decode(msg.TAG, body)
    packer = msgpack.Packer()
    return {
        "encode": seconds(lambda: encode(msg)),
        "pass on": seconds(lambda: encode(came)),
        "msgpack encodes": seconds(lambda: packer.pack(raw)),
        "decode": seconds(lambda: decode(msg.TAG, body)),
        "decode, read": seconds(lambda: _read(decode(msg.TAG, body))),
        "msgpack decodes": seconds(lambda: msgpack.unpackb(body)),
    }


def _read(msg: Message) -> None:
    """Take an element of every list, and with it the list apart."""
    if isinstance(msg, Find):
        msg.keys[0]
    elif isinstance(msg, Seal):
        msg.keys[0], msg.parents[0], msg.pages[0], msg.stamps[0]


def _frames() -> dict[str, float]:
    sender, receiver = Address(SESSION, _LIVES[0]), Address(INDEX, _LIVES[1])
    envelope = Envelope(sender, receiver, SMALL, 5, deadline=1 << 50)
    frames = pack(envelope)
    raw = [msgpack.unpackb(frame) for frame in frames]
    packer = msgpack.Packer()
    return {
        "encode": seconds(lambda: pack(envelope)),
        "msgpack encodes": seconds(lambda: [packer.pack(one) for one in raw]),
        "decode": seconds(lambda: unpack(frames)),
        "msgpack decodes": seconds(lambda: [msgpack.unpackb(one) for one in frames]),
    }


if __name__ == "__main__":
    found = {name: _bodies(msg) for name, msg in MESSAGES.items()}
    json.dump({**found, ENVELOPE: _frames()}, sys.stdout)
