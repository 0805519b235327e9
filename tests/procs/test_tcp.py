"""The endpoint on TCP: who has a key is served like everybody, who has none gets nothing."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import zmq

from pegaflow.client import Client, inspect, place
from pegaflow.service import keys
from pegaflow.wire.control import Hello
from pegaflow.wire.envelope import Envelope, pack
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, INDEX, SUPERVISOR, Address

from .service import PATIENCE_S, Engine, Service, eventually, logged
from .service import keys as hashes

SILENCE_S = 1.0
"""How long a test waits for an answer that must not come."""


class TcpService(Service):
    """A service that listens on a port of loopback as well."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        super().__init__(run_dir, extra=("--addr", "127.0.0.1:0", *arguments))

    @property
    def url(self) -> str:
        """Its front desk on TCP."""
        lines = logged(self.log())
        port = next(line["port"] for line in lines if line["event"] == "serving_tcp")
        return f"tcp://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the service and of some clients."""
    made = tmp_path_factory.mktemp("keys")
    keys.generate(made, ["mine", "other", "lost"])
    return made


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpService]:
    """One service with keys for all tests."""
    run_dir = tmp_path_factory.mktemp("run")
    made = TcpService(run_dir, "--curve-dir", str(folder))
    with made:
        yield made


def over_tcp(service: TcpService, name: str, curve: Path | None) -> Engine:
    """An engine that knows the service by its port, and whose pid means nothing to it."""
    engine = Engine(service, name)
    engine.client.close()
    with mock.patch.object(place, "start_ticks", lambda: 1):
        engine.client = Client(
            name, b"tests" * 4, endpoint=service.url, curve=str(curve) if curve else None
        )
    engine.client.register(engine.layout, [engine.memory])
    return engine


def says(client: Client, why: str, url: str) -> bool:
    """Whether a client that does not get in knows why."""
    return not client.connect(0.1) and why in client.refusal and url in client.refusal


def test_who_has_a_key_saves_and_loads(service: TcpService, folder: Path) -> None:
    names, blocks = hashes(20, seed=1), list(range(20))
    with (
        over_tcp(service, "far", folder / "client-mine.toml") as far,
        Engine(service, "near") as near,
    ):
        far.fill(blocks, seed=100)
        assert far.client.save(names, blocks, timeout=PATIENCE_S).saved == 20
        for engine, targets in ((near, blocks), (far, [63 - b for b in blocks])):
            found = engine.client.lookup(names, timeout=PATIENCE_S)
            assert found.blocks == 20 and found.lease is not None
            assert engine.client.load(found.lease, targets).status is Status.OK
            assert engine.holds(targets, seed=100)
    assert inspect(service.url, PATIENCE_S, str(folder / "client-other.toml")) is not None


def test_who_has_no_key_gets_nothing(service: TcpService, folder: Path, tmp_path: Path) -> None:
    keys.generate(tmp_path, ["stranger"])
    theirs = (tmp_path / "client-stranger.toml").read_text().splitlines()
    ours = (folder / "client-mine.toml").read_text().splitlines()
    not_let_in, other_server = tmp_path / "not_let_in.toml", tmp_path / "other_server.toml"
    not_let_in.write_text("\n".join([*theirs[:2], ours[2]]))
    other_server.write_text("\n".join([*ours[:2], theirs[2]]))
    not_let_in.chmod(0o600)
    other_server.chmod(0o600)
    reasons = {
        None: "wants a key: name a key file of `pegaflow keygen`",
        not_let_in: "does not let our key in",
        other_server: "our key is of another service",
    }
    for curve, why in reasons.items():
        stranger = over_tcp(service, "stranger", curve).client
        with closing(stranger):
            eventually("the client says why", partial(says, stranger, why, service.url))
        assert inspect(service.url, SILENCE_S, str(curve) if curve else None) is None
    eventually("the log says who was kept out", lambda: "client_kept_out" in service.log())
    assert service.up()
    with over_tcp(service, "friend", folder / "client-mine.toml"):
        pass


def test_a_key_that_is_taken_away_opens_nothing(service: TcpService, folder: Path) -> None:
    lost = folder / "client-lost.toml"
    assert inspect(service.url, PATIENCE_S, str(lost)) is not None
    (folder / keys.ALLOWED / "lost.toml").unlink()
    assert inspect(service.url, SILENCE_S, str(lost)) is None


def test_an_engine_that_is_killed_takes_its_session_along(
    service: TcpService, folder: Path
) -> None:
    script = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from tests.procs.test_tcp import TcpService, over_tcp\n"
        "over_tcp(TcpService(Path(sys.argv[1])), 'victim', Path(sys.argv[2])).attach()\n"
        "print('attached', flush=True)\n"
        "signal.pause()\n"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", script, str(service.run_dir), str(folder / "client-mine.toml")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert victim.stdout is not None and victim.stdout.readline() == b"attached\n"
    session = service.session_of("victim")
    victim.kill()
    victim.wait()
    victim.stdout.close()
    eventually(
        "its session is gone",
        lambda: session.address not in {r.address for r in service.processes()},
    )


def test_only_clients_are_heard_on_tcp(service: TcpService, folder: Path) -> None:
    mine = place.client_keys(str(folder / "client-mine.toml"))
    index, boss = service.processes(INDEX)[0], service.processes(SUPERVISOR)[0]
    with zmq.Context() as context:
        for me in (index.address, Address(CLIENT, Incarnation(7))):
            with place.dealer(context, service.url, me, mine) as socket:
                assert socket.poll(int(PATIENCE_S * 1000), zmq.POLLOUT)
                socket.send_multipart(pack(Envelope(me, boss.address, Hello(1, 1, "/x"), 1)))
                assert not socket.poll(int(SILENCE_S * 1000))
    assert "only clients come over TCP" in service.log()
    assert service.processes(INDEX)[0].address == index.address


def test_without_keys_on_loopback(tmp_path: Path) -> None:
    service = TcpService(tmp_path / "run", "--insecure-tcp")
    keys.generate(tmp_path / "keys", ["vain"])
    with service:
        stranger = over_tcp(service, "keyed", tmp_path / "keys" / "client-vain.toml").client
        with closing(stranger):
            why = "takes no key (--insecure-tcp)"
            eventually("the client says why", partial(says, stranger, why, service.url))
        with over_tcp(service, "far", None) as far:
            far.fill([0], seed=1)
            assert far.client.save(hashes(1), [0], timeout=PATIENCE_S).saved == 1
