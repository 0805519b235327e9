"""The bare echo that latencies are compared to: python -m perf.echo PATH [NEXT]

Both ends are a plain blocking poll loop over ZeroMQ ipc, as cheap as messages between two processes
get in Python.  With NEXT the process is the middle of a chain: what comes to PATH goes on to NEXT,
and the answer goes back.  The answer is short, as the answer to a lookup is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from perf import command

ANSWER_BYTES = 48  # the two frames of a Found


def serve(path: str, following: str) -> None:
    """Echo for ever, or pass on."""
    context = zmq.Context()
    inbox = context.socket(zmq.ROUTER)
    inbox.bind(f"ipc://{path}")
    poller = zmq.Poller()
    poller.register(inbox, zmq.POLLIN)
    link = None
    if following:
        link = context.socket(zmq.DEALER)
        link.connect(f"ipc://{following}")
        poller.register(link, zmq.POLLIN)
    while True:
        for ready, _ in poller.poll():
            assert isinstance(ready, zmq.Socket)
            frames = ready.recv_multipart()
            if link is None:
                inbox.send_multipart([*frames[:-1], frames[-1][:ANSWER_BYTES]])
            else:
                (inbox if ready is link else link).send_multipart(frames)


class Chain:
    """One client of an echo; up to `outstanding` questions of one size at a time."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect(f"ipc://{path}")
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def ask(self, size: int, count: int, outstanding: int) -> list[float]:
        """Seconds from each question to its answer; answers come in the order of questions."""
        body = bytes(size)
        sent: list[float] = []
        seconds: list[float] = []
        while len(seconds) < count:
            while len(sent) < count and len(sent) - len(seconds) < outstanding:
                sent.append(time.perf_counter())
                self._socket.send(body)
            self._poller.poll()
            self._socket.recv()
            seconds.append(time.perf_counter() - sent[len(seconds)])
        return seconds


@contextmanager
def running(folder: Path) -> Iterator[tuple[Chain, Chain]]:
    """An echo, and a chain of two hops to an echo of its own."""
    near, middle, far = (folder / f"{name}.sock" for name in ("near", "middle", "far"))
    ends = [(str(near),), (str(far),), (str(middle), str(far))]
    with ExitStack() as stack:
        for arguments in ends:
            stack.enter_context(command.beside([sys.executable, "-m", "perf.echo", *arguments]))
        with zmq.Context() as context:
            chains = Chain(context, near), Chain(context, middle)
            for chain in chains:
                chain.ask(1, 1, 1)
            yield chains
            context.destroy(linger=0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
