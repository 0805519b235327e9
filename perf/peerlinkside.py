"""The host that is read from, for perf.peerlink: python -m perf.peerlinkside ADDRESS BYTES

It owns a pool and serves it in two ways: as the TCP transport does, and by as bare a loop as can
be: a thread for each stream takes a list of places and hands their bytes to `sendmsg`, CALL at a
time, with no token, lease, checksum or limit.  Prints the offer and the bare port, and ends with
its input.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from pegaflow.device.link import Extent
from pegaflow.device.link.tcp import TcpOwner
from pegaflow.wire.identities import Incarnation
from perf import machine

READER, TOKEN, LEASE = Incarnation(1), bytes(range(32)), 1
CALL, PARTS = 4 << 20, 64  # of one call
COUNT, PLACE = struct.Struct("<I"), struct.Struct("<QQ")


def full(size: int) -> memoryview:
    """A pool whose bytes are known to both sides."""
    pool = machine.memory(size)
    pool.reshape(-1, 1 << 20)[:] = np.frombuffer(random.Random(1).randbytes(1 << 20), np.uint8)
    return pool.data


def calls(pool: memoryview, places: Sequence[Extent]) -> Iterator[list[memoryview]]:
    """These places, as many as one call moves at a time."""
    some: list[memoryview] = []
    size = 0
    for start, length in places:
        if some and (size + length > CALL or len(some) == PARTS):
            yield some
            some, size = [], 0
        some.append(pool[start : start + length])
        size += length
    yield some


def left(parts: list[memoryview], moved: int) -> list[memoryview]:
    """What a call has not moved."""
    while parts and moved >= len(parts[0]):
        moved -= len(parts.pop(0))
    if moved:
        parts[0] = parts[0][moved:]
    return parts


def send(sock: socket.socket, pool: memoryview) -> None:
    """Whatever is asked for, until nothing is."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while raw := sock.recv(COUNT.size, socket.MSG_WAITALL):
        (count,) = COUNT.unpack(raw)
        places = list(PLACE.iter_unpack(sock.recv(count * PLACE.size, socket.MSG_WAITALL)))
        for parts in calls(pool, places):
            while parts:
                parts = left(parts, sock.sendmsg(parts))


def serve(host: str, size: int) -> None:
    """Both ways, until nobody wants us any more."""
    pool = full(size)
    owner = TcpOwner(pool, (host, 0))
    owner.lend(LEASE, READER, [(0, size)])
    listener = socket.create_server((host, 0))

    def accept() -> None:
        while True:
            sock = listener.accept()[0]
            threading.Thread(target=send, args=(sock, pool), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(owner.admit(READER, TOKEN, b"").hex(), listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
