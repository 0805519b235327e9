"""Who is heard on a socket of this host: the same user and root, and nobody else."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import zmq

from pegaflow.actors.runtime import door
from pegaflow.actors.runtime.door import DOMAIN, Door

PATIENCE_MS = 10_000


class House:
    """A ROUTER behind a door."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.callers: list[zmq.Socket[bytes]] = []
        self.door = Door(self.context, self.counts)
        self.inbox = self.context.socket(zmq.ROUTER)
        self.inbox.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        self.url = f"ipc://{path}"
        self.inbox.bind(self.url)

    def calls(self, say: bytes) -> None:
        """Somebody dials, and says this as soon as he is connected."""
        caller = self.context.socket(zmq.DEALER)
        caller.setsockopt(zmq.LINGER, 0)
        caller.connect(self.url)
        caller.send(say)
        self.callers.append(caller)

    def turn(self) -> None:
        """One turn of a loop: wait for a question or a message, and answer questions."""
        poller = zmq.Poller()
        poller.register(self.door.fd, zmq.POLLIN)
        poller.register(self.inbox, zmq.POLLIN)
        ready = dict(poller.poll(PATIENCE_MS))
        assert ready
        if self.door.fd in ready:
            self.door.answer()

    def close(self) -> None:
        self.door.close()
        self.context.destroy(0)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "desk.sock")
    yield made
    made.close()


def test_our_own_user_is_let_in(house: House) -> None:
    for _ in range(3):
        house.calls(b"hello")
    for _ in range(3):
        while not house.inbox.poll(0):
            house.turn()
        assert house.inbox.recv_multipart()[1] == b"hello"
    assert not house.counts


def test_another_user_is_refused_and_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "trusted", lambda: frozenset({os.geteuid() + 1}))
    house = House(tmp_path / "desk.sock")
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            house.calls(b"hello")
        while house.counts["peers_refused"] < 2:
            house.turn()
    assert not house.inbox.poll(0)
    assert {line["event"] for line in lines} == {"peer_refused"}
    assert len({line["repeats"] for line in lines}) == 1, "so one line passes in ten seconds"
    assert "own user and root" in lines[0]["why"] and lines[0]["user"].startswith("uid ")
    house.close()


@pytest.mark.parametrize("address", ["", "10.0.0.1", "localhost:x:0:1", "0:0:0:", "::1", ":::"])
def test_what_names_no_user_is_refused(house: House, address: str) -> None:
    asker = house.context.socket(zmq.REQ)
    asker.connect("inproc://zeromq.zap.01")
    asker.send_multipart([b"1.0", b"7", DOMAIN, address.encode(), b"", b"NULL"])
    house.turn()
    _, number, code, *_ = asker.recv_multipart()
    expected = b"200" if address == "0:0:0:" else b"400"
    assert (number, code) == (b"7", expected)
