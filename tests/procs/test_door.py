"""Who finds whom: engines and services of other users, and what each command says of a service."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from pegaflow.client import Client
from pegaflow.wire.control import Inspect, OpenSession, Refused
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, FRONT_DESK, SUPERVISOR, Address

from .service import Engine, Service, eventually

OTHER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "run") as started:
        yield started


@pytest.fixture
def commons() -> Iterator[Path]:
    """A directory that every user can go through."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


def says(command: str, run_dir: Path) -> str:
    """What a command that fails says of this run directory, in its one line."""
    done = subprocess.run(
        [sys.executable, "-m", "pegaflow", command, "--run-dir", str(run_dir)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("pegaflow: ").rstrip("\n")


def why(endpoint: str) -> str:
    """What an engine says of this front desk."""
    client = Client("engine", bytes(16), endpoint=endpoint)
    assert not client.connect(0.3)
    refusal = client.refusal
    client.close()
    return refusal


def test_all_commands_and_engines_say_the_same_of_a_service(served: Service) -> None:
    pid, run_dir = served.pid, served.run_dir
    commands = ("serve", "purge", "status")
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    try:
        lines = [*(says(command, run_dir) for command in commands), why(served.endpoint)]
    finally:
        os.kill(pid, signal.SIGCONT)
    for said in lines:
        assert f"pid {pid}" in said and f"it is stopped (state T): `kill -CONT {pid}`" in said
    with Engine(served, "after"):
        assert "after" in served.status_text()


def test_an_engine_joins_as_soon_as_the_obstacle_is_gone(served: Service) -> None:
    served.run_dir.chmod(0o711)
    engine = Engine(served)
    assert not engine.client.connect(0.3)
    assert engine.client.refusal == f"{served.run_dir} has mode 0711, not 0700"
    served.run_dir.chmod(0o700)
    engine.attach()
    assert engine.client.refusal == ""
    engine.client.close()


class Stranger:
    """A front desk of somebody else's, which would talk to anybody."""

    def __init__(self, run_dir: Path, uid: int) -> None:
        run_dir.mkdir(mode=0o700)
        os.chown(run_dir, uid, -1)
        self.endpoint = str(run_dir / "pegaflow.sock")
        self.context: zmq.Context[Any] = zmq.Context()
        self.desk = self.context.socket(zmq.ROUTER)
        os.seteuid(uid)
        try:
            self.desk.bind(f"ipc://{self.endpoint}")
        finally:
            os.seteuid(os.getuid())

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(0)


@needs_root
def test_a_strangers_service_is_not_joined_unless_he_is_named(commons: Path) -> None:
    """As when somebody was first to make the directory where an engine looks."""
    with Stranger(commons / "run", OTHER) as stranger:
        assert f"{commons}/run belongs to uid {OTHER}" in why(stranger.endpoint)
        assert not stranger.desk.poll(0), "not a word was said to him"
        client = Client("engine", bytes(16), endpoint=stranger.endpoint, owner=OTHER)
        assert not client.connect(0.3)
        assert isinstance(unpack(stranger.desk.recv_multipart()[1:]).message, OpenSession)
        client.close()


def test_an_answer_of_a_stranger_is_not_believed(tmp_path: Path) -> None:
    """The directory became his between our look and the answer."""
    with Stranger(tmp_path / "run", os.getuid()) as stranger:
        client = Client("engine", bytes(16), endpoint=stranger.endpoint)
        for trusted in (False, True):
            trust = frozenset({os.getuid()} if trusted else {OTHER})
            client.poll(0)
            client._who = dataclasses.replace(client._who, trust=trust)
            while not stranger.desk.poll(0):
                client.poll(0.01)
            name, *frames = stranger.desk.recv_multipart()
            asked = unpack(frames)
            boss, refused = Address(SUPERVISOR, Incarnation(1)), Refused(Status.BUSY, "his word")
            answer = Envelope(boss, asked.sender, refused, 0, answer=asked.question)
            stranger.desk.send_multipart([name, *pack(answer)])
            if trusted:
                eventually("his word is believed", partial(has_heard, client))
            else:
                client.connect(0.3)
                assert client.refusal != "his word"
            client._machine._lose(0)
        client.close()


def has_heard(client: Client) -> bool:
    return not client.connect(0.1) and client.refusal == "his word"


@needs_root
def test_the_service_hears_no_other_user(commons: Path) -> None:
    """Even if somebody has opened the directory and the sockets to everybody."""
    context: zmq.Context[Any] = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)  # a refused word is never sent, and would be waited for
    with Service(commons / "run") as service:
        actors = service.run_dir / "actors"
        # The one that was started first may come up last.
        spare = next(row for row in service.processes("session") if row.state == "spare")
        doors = [Path(service.endpoint), actors / f"{spare.address}.sock"]
        for folder in (service.run_dir, actors):
            folder.chmod(0o711)
        for refused, path in enumerate(doors, 1):
            path.chmod(0o666)
            caller = context.socket(zmq.DEALER)
            me = Address(CLIENT, Incarnation(99))
            caller.setsockopt(zmq.ROUTING_ID, me.routing_id)
            caller.setsockopt(zmq.RECONNECT_IVL, -1)  # nor refused twice, or as root let in
            os.seteuid(OTHER)
            try:
                caller.connect(f"ipc://{path}")
                caller.send_multipart(pack(Envelope(me, FRONT_DESK, Inspect(), 1)))
                eventually("he is refused", partial(has_refused, service, refused))
            finally:
                os.seteuid(0)
            assert not caller.poll(0)
        context.destroy(0)
        line = next(line for line in service.log().splitlines() if "peer_refused" in line)
        assert f"uid {OTHER}" in line and f'"pid": "{os.getpid()}"' in line
        eventually("and counted", lambda: service.counter("peers_refused") == len(doors))


def has_refused(service: Service, times: int) -> bool:
    return service.log().count('"peer_refused"') == times


# Leaves an orphan that lives as long as a pipe is open, and becomes the service.
SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
pipe, *command = sys.argv[1:]
middle = os.fork()
if not middle:
    orphan = os.fork()
    if orphan:
        print(orphan, flush=True)
    else:
        os.read(int(pipe), 1)
    os._exit(0)
os.waitpid(middle, 0)
os.execv(sys.executable, [sys.executable, *command])
"""


def test_an_orphan_that_is_given_to_the_service_is_buried(tmp_path: Path) -> None:
    """As it is to the first process of a container; a subreaper is one without a container."""
    service = Service(tmp_path / "run")
    service.run_dir.mkdir(mode=0o700)
    read, write = os.pipe()
    command = [sys.executable, "-c", SUBREAPER, str(read), *service._command[1:]]
    with (service.run_dir / "log").open("ab") as log:
        service._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, process_group=0, pass_fds=[read]
        )
    assert service._process.stdout is not None
    orphan = Path("/proc", service._process.stdout.readline().decode().strip())
    try:
        eventually("the service is up", service.up)
        assert orphan.exists()
        os.close(write)
        eventually("the orphan is buried", lambda: not orphan.exists())
        os.kill(service.processes("index")[0].pid, signal.SIGKILL)
        eventually("a child of its own is missed", lambda: '"child_gone"' in service.log())
        line = next(line for line in service.log().splitlines() if '"child_gone"' in line)
        assert "265" in line or "SIGKILL" in line, "its exit status was not taken from it"
        eventually("and replaced", service.up)
        assert service.stop() == 0
    finally:
        os.close(read)
        service.__exit__(None, None, None)


def test_a_service_without_streams_serves(tmp_path: Path) -> None:
    service = Service(tmp_path / "run")
    service.run_dir.mkdir(mode=0o700)
    (service.run_dir / "log").touch()
    service._process = subprocess.Popen(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *service._command], process_group=0
    )
    try:
        eventually("the service is up", service.up)
        with Engine(service) as engine:
            assert engine.client.attached
    finally:
        os.killpg(service._process.pid, signal.SIGTERM)
        service.__exit__(None, None, None)
