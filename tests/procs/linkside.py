"""One side of a link in a process of its own: python -m tests.procs.linkside owner|reader

An owner prints its offer and lends all of its pool; a reader is given the offer and reads all of
that pool, again and again, and prints a line when the first read is under way.  Both end with their
input.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Sequence

from pegaflow.device.link import Outcome, Piece
from pegaflow.device.link.tcp import TcpOwner, TcpReader
from pegaflow.wire.identities import Incarnation

HOST = "127.0.0.1"
READER, TOKEN, LEASE = Incarnation(7), b"t" * 32, 5
PIECE = 1 << 20
PIECES = [Piece(at * PIECE, at * PIECE, PIECE) for at in range(48)]
POOL = len(PIECES) * PIECE
PATIENCE_NS = 60 * 10**9


def content() -> bytes:
    """Of the owner's pool: no two pieces are alike."""
    return b"".join(
        random.Random(at).randbytes(1 << 10) * (PIECE >> 10) for at in range(len(PIECES))
    )


def own() -> None:
    """Until nobody wants us any more."""
    owner = TcpOwner(memoryview(content()), (HOST, 0))
    owner.lend(LEASE, READER, [(0, POOL)])
    print(owner.admit(READER, TOKEN, b"").hex(), flush=True)
    sys.stdin.read()


def orphaned() -> None:
    """End when our input does."""
    sys.stdin.read()
    os._exit(0)


def read(offer: str) -> None:
    """Until nobody wants us any more."""
    pool = bytearray(POOL)
    link = TcpReader(memoryview(pool)).connect(bytes.fromhex(offer), TOKEN)

    def again(outcomes: Sequence[Outcome] = ()) -> None:
        ended.release()

    ended = threading.Semaphore(0)
    threading.Thread(target=orphaned, daemon=True).start()
    while link.streams:
        link.read(LEASE, PIECES, again, time.monotonic_ns() + PATIENCE_NS)
        print("reading", flush=True)
        ended.acquire()


if __name__ == "__main__":
    own() if sys.argv[1] == "owner" else read(sys.argv[2])
