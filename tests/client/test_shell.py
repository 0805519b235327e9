"""What a broken session or front desk may tell a client: a refusal for the log, no exception."""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegaflow.client import Client, place
from pegaflow.client.effects import CopyIn, DialSession, HangUp, MapFiles
from pegaflow.client.machine import State
from pegaflow.client.operations import Kind, Operation
from pegaflow.client.results import Lease
from pegaflow.client.shell import _HELD
from pegaflow.wire.identities import Incarnation, Namespace
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.links import DRAIN_MAX
from pegaflow.wire.session import Attached
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address

PEER = Address(SESSION, Incarnation(4))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client("engine", bytes(16), endpoint=str(tmp_path / "nobody.sock"))
    yield made
    made.close()


@pytest.mark.parametrize("endpoint", ["x" * 300, "", "a\0b", "../" * 60])
def test_an_endpoint_that_cannot_be_dialled(client: Client, endpoint: str) -> None:
    client._apply([DialSession(PEER, endpoint, 1)])
    assert client._machine.state in (State.LOST, State.JOINING)
    assert client.poll(0) == []


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("nonsense://x", "cannot dial the service at 'nonsense://x': "),
        ("x" * 300, "xx is longer than the 107 bytes of a socket's path"),
        ("/nowhere/x.sock", "there is no /nowhere (ENOENT)"),
        ("/dev/null/x.sock", "no way to /dev/null/x.sock: Not a directory (ENOTDIR)"),
        ("/dev/null", "/dev/null is a device, not a socket"),
        ("/dev", "/dev is a directory, not a socket"),
        ("a\0b", "is no path: embedded null byte"),
        ("\ud800/x", "is no path: "),
    ],
)
def test_a_service_that_cannot_be_dialled(endpoint: str, why: str) -> None:
    client = Client("engine", bytes(16), endpoint=endpoint)
    assert not client.connect(0.01)
    assert why in client.refusal and "\n" not in client.refusal
    client.close()


@pytest.mark.parametrize("pid", [0, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_pid_that_cannot_be(client: Client, pid: int) -> None:
    client._apply([DialSession(PEER, "somewhere", pid)])
    assert client._pidfd == -1 and client.poll(0) == []


def test_a_killed_session_is_dead_once_no_thread_of_it_can_run(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client._apply([DialSession(PEER, "somewhere", os.getpid())])
    machine = client._machine
    machine.state, machine.link.session, client._killed = State.DYING, PEER, True
    machine.operations.open[1] = Operation(Kind.LOAD, 1 << 62, (3,), direct=True)
    past = [False, True]
    monkeypatch.setattr(place, "is_past_running", lambda pid: past.pop(0))
    assert client.poll(0) == [] and machine.state is State.DYING
    assert [done.status for done in client.poll(0)] == [Status.PEER_GONE]
    assert machine.state is not State.DYING and not past


def test_files_that_cannot_be_mapped(client: Client, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path in (str(empty), str(tmp_path / "none"), "a\0b", "", str(tmp_path)):
        client._machine.refusal = ""
        client._apply(
            [
                MapFiles(
                    Attached(path, 1 << 20, path, 8, page_size=4096, namespace=Namespace(bytes(16)))
                )
            ]
        )
        assert client._machine.state is State.LOST
        assert client.refusal.startswith("cannot map") and "\n" not in client.refusal


def test_the_pool_of_a_lost_session_is_not_mapped_any_more(client: Client, tmp_path: Path) -> None:
    """Its service may have been replaced by one that removes it and needs the memory."""
    pool = tmp_path / "pool"
    pool.write_bytes(bytes(8192))
    client.register(
        Layout(1, (LayerLayout(0, 0, 4096, 4096),), "uint8", "test"), [bytearray(b"x" * 4096)]
    )

    def is_mapped() -> bool:
        return str(pool) in Path("/proc/self/maps").read_text()

    attached = Attached(
        str(pool), 8192, str(pool), 1, page_size=4096, namespace=Namespace(bytes(16))
    )
    client._apply([MapFiles(attached)])
    client._bounce = None
    assert is_mapped()
    client._apply([HangUp(), CopyIn(1, (0,), (0,), time.monotonic_ns() + 10**9)])
    assert not is_mapped()


CALLS: dict[str, Callable[[Client], object]] = {
    "lookup": lambda client: client.start_lookup([bytes(16)], timeout=60.0),
    "find": lambda client: client.find([bytes(16)]),
    "share": lambda client: client.share(Lease(PEER.incarnation, 1, 1)),
    "skip": lambda client: client.skip_save(1),
    "commit": lambda client: client.commit([1]),
    "drop": lambda client: client.drop_save(1),
    "release": lambda client: client.release(Lease(PEER.incarnation, 1, 1)),
    "unregister": lambda client: client.unregister(0.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_first_call_after_a_fork_is_not_the_parents(
    client: Client, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    parents = client._machine
    parents.state, parents.link.session = State.READY, PEER
    sent: list[object] = []
    monkeypatch.setattr(Client, "_send", lambda self, socket, envelope: sent.append(envelope))
    client._pid -= 1  # as if we were its child
    assert not client.attached
    client._machine, client._pid = parents, client._pid - 1
    ticket = CALLS[call](client)
    assert sent == [] and not parents.operations.open and client._machine is not parents
    if call == "lookup":
        assert [(done.ticket, done.status) for done in client.poll(0)] == [
            (ticket, Status.DISCONNECTED)
        ]


class Flood:
    """A socket that always has one more message."""

    closed = False
    read = 0

    def recv_multipart(self, flags: int) -> list[bytes]:
        self.read += 1
        return [b"no envelope", b""]


def test_a_flood_does_not_keep_the_engines_thread(client: Client) -> None:
    flood = Flood()
    client._receive(flood)  # type: ignore[arg-type]
    assert flood.read == DRAIN_MAX


def test_a_client_dropped_in_a_cycle_is_closed(tmp_path: Path) -> None:
    held = set(_HELD)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.sock"))
        mute.listen()
        client = Client("engine", bytes(16), endpoint=str(tmp_path / "mute.sock"))
        client.poll(0)
        context = client._context
        assert context in _HELD and len(_HELD) > len(held) + 1
        client.me = client  # type: ignore[attr-defined]
        del client
        gc.collect()
    assert context.closed and held == _HELD


@pytest.mark.parametrize("writing", [False, True])
def test_a_collected_client_waits_only_for_a_load_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: bool
) -> None:
    looks: list[int | None] = []

    def dead(self: Client, until: int | None) -> None:
        looks.append(until)
        self._machine.state = State.LOST

    monkeypatch.setattr(Client, "_turn", dead)
    client = Client("engine", bytes(16), endpoint=str(tmp_path / "nobody.sock"))
    client._machine.state, client._machine.link.session = State.READY, PEER
    if writing:
        client._machine.operations.open[1] = Operation(Kind.LOAD, 0, (1,), direct=True)
    del client
    gc.collect()
    assert bool(looks) is writing


def test_a_poll_ends_when_the_connection_changes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int | None] = []

    def change(self: Client, until: int | None) -> None:
        looks.append(until)
        self._machine.state = State.LOST if self.attached else State.READY

    monkeypatch.setattr(Client, "_turn", change)
    for attached in (True, False):
        assert client.poll(3600.0) == [] and client.attached is attached
    assert len(looks) == 2


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        client = Client("engine", bytes(16), endpoint=url)
        assert not client.connect(0.2)
        assert client.refusal.startswith(f"no answer at {url}") and "\n" not in client.refusal
        client.close()
