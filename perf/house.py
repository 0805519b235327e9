"""A real service with an index of as many blocks as a table wants, without the memory for them.

`python -m perf.house serve ...` is `pegaflow serve ...`, except that no extent of the pool ever
becomes real: the ledger has a record for each of a million pages, the pool file stays a hole, and
the allocator has nothing to give, so nothing can be saved, and no session asks for pages: for each
that asks in vain the index would give up all that it has.  What looks at blocks and never at their
bytes, a lookup, cannot tell.  Every other line of the service is the real one.

The blocks are put there by a session that does not exist: this process claims and seals them over
the real socket of the index.

The allocator has a thread that spins in Python, and gives its interpreter lock up only when it is
made to, for as long as the file `spin` is in the run directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from pegaflow.actors.__main__ import main as actor
from pegaflow.actors.runtime import process
from pegaflow.actors.runtime.contract import Effect
from pegaflow.actors.session.reservation import Reservation
from pegaflow.client import inspect
from pegaflow.client.place import dealer
from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.device.memory import Extents
from pegaflow.replay import service
from pegaflow.service import cli, serve
from pegaflow.service.rundir import front_desk
from pegaflow.service.settings import Settings
from pegaflow.wire.control import Report
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp, numbered
from pegaflow.wire.index import Claim, Claimed, EndClaim, Seal, Sealed
from pegaflow.wire.message import Message
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, Address
from perf.machine import ENVIRONMENT

SPIN = "PERF_SPIN"  # in the environment: the path of that file
EXTENT = 32 << 20
CHAIN = 1024  # blocks of one chain: the longest lookup of the latency table

START_SECONDS = 30.0


def main() -> None:
    """`pegaflow`, without memory."""
    commands = process.child_command

    def child_command(address: Address, settings: Settings, supervisor: int) -> list[str]:
        command = commands(address, settings, Incarnation(supervisor))
        command[command.index("pegaflow.actors")] = "perf.house"
        return command

    def grow(extents: Extents, extent: int) -> str:
        return "this pool is a hole on purpose"

    def refill(reservation: Reservation, now: int) -> list[Effect]:
        return []

    vars(serve)["child_command"] = child_command
    setattr(Reservation, "refill", refill)  # noqa: B010  (as below)
    setattr(Extents, "grow", grow)  # noqa: B010  (mypy knows a method cannot be assigned)
    if sys.argv[1] == "serve":
        cli.main()
    if sys.argv[1] == ALLOCATOR:
        threading.Thread(target=_spin, args=(os.environ[SPIN],), daemon=True).start()
    sys.exit(actor())


def _spin(path: str) -> None:
    while True:
        if not os.path.exists(path):
            time.sleep(0.05)
            continue
        for _ in range(100_000):
            pass


@contextmanager
def spinning(run_dir: Path) -> Iterator[None]:
    """The allocator spins."""
    flag = run_dir / "spin"
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


@contextmanager
def running(blocks: int) -> Iterator[Path]:
    """A service whose pool has room for so many blocks; its run directory.

    Raises:
        UserError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="pegaflow-perf-", ignore_cleanup_errors=True) as name:
        run_dir, log = Path(name, "run"), Path(name, "log")
        pool = -(-blocks * MIN_PAGE // EXTENT) * EXTENT
        arguments = ["--pool-size", str(pool), "--extent-size", str(EXTENT)]
        arguments += ["--log-format", "json", "--http-addr", "127.0.0.1:0"]
        environment = {**ENVIRONMENT, SPIN: str(run_dir / "spin")}
        with service.group(
            run_dir, log, arguments, "perf.house", environment=environment
        ) as process:
            _wait(run_dir, process)
            yield run_dir


def _wait(run_dir: Path, process: subprocess.Popen[bytes]) -> None:
    endpoint = front_desk(run_dir)
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        report = inspect(endpoint, 0.2) if os.path.exists(endpoint) else None
        states = {row.address.name: row.state for row in report.processes} if report else {}
        if states.get(INDEX) == "up" and states.get(SESSION) == "spare":
            return
        time.sleep(0.02)
    raise UserError(f"the service did not start: {(log_of(run_dir).splitlines() or [''])[-1]}")


def log_of(run_dir: Path) -> str:
    """What the service has said."""
    return (run_dir.parent / "log").read_text()


def namespace_of(engine: str, run_dir: Path) -> Namespace:
    """What the session of this engine, which has attached, calls its blocks by."""
    for line in log_of(run_dir).splitlines():
        said = json.loads(line)
        if said["event"] == "engine_attached" and said["engine"] == engine:
            return Namespace(bytes.fromhex(said["namespace"]))
    raise UserError(f"the session of {engine} has not said its namespace")


def metrics_of(run_dir: Path) -> str:
    """The URL of its metrics, once the gateway has said its port."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        report = inspect(front_desk(run_dir), 2.0)
        for row in report.processes if report else ():
            for counter in row.counters:
                if counter.name == "http_port" and counter.value:
                    return f"http://127.0.0.1:{counter.value}/metrics"
        time.sleep(0.1)
    raise UserError("the gateway has no port")


def keys(count: int, chain: int) -> list[Key]:
    """Block hashes of 32 bytes: the first `count` of a chain."""
    return [Key(b"%016x%016x" % (chain, block)) for block in range(count)]


def fill(run_dir: Path, namespace: Namespace, blocks: int) -> None:
    """Put chains of CHAIN blocks into the index, until it has so many."""
    report = inspect(front_desk(run_dir), 2.0)
    assert isinstance(report, Report)
    index = next(row.address for row in report.processes if row.address.name == INDEX)
    me = Address(SESSION, Incarnation(1 << 40))
    with zmq.Context() as context, dealer(context, f"{run_dir}/actors/{index}.sock", me) as link:
        link.setsockopt(zmq.IMMEDIATE, 0)

        def ask(message: Message, question: int = 1) -> Message | None:
            link.poll(2000, zmq.POLLOUT)
            link.send_multipart(pack(Envelope(me, index, message, question)))
            return unpack(link.recv_multipart()).message if question else None

        for chain in range(-(-blocks // CHAIN)):
            own = keys(min(CHAIN, blocks - chain * CHAIN), chain)
            pages = numbered(PageId(chain * CHAIN), len(own))
            claimed = ask(Claim(namespace, tuple(own)))
            assert isinstance(claimed, Claimed) and len(claimed.positions) == len(own)
            parents = (Key(bytes(len(own[0]))), *own[:-1])
            stamps = numbered(Stamp(pages[0] + 1), len(own))
            size = MIN_PAGE
            seal = Seal(
                claimed.number,
                namespace,
                size,
                size,
                shards=1,
                keys=tuple(own),
                parents=parents,
                pages=tuple(pages),
                stamps=tuple(stamps),
            )
            sealed = ask(seal)
            assert isinstance(sealed, Sealed) and len(sealed.positions) == len(own)
            ask(EndClaim(claimed.number), 0)


if __name__ == "__main__":
    main()
