"""Two services and one pool, by every way that we know of to bring that about: no engine of either
gets a byte of the other's, and the one that lives says what was done to it.

Each test starts a second service where the first still serves.  Both get blocks under the same keys
with other bytes, and every block is loaded and compared afterwards, on both sides.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pegaflow.wire.status import Status

from .service import Engine, Service, eventually, keys, logged

COUNT = 16
BLOCKS = list(range(COUNT))
ELSEWHERE = list(range(COUNT, 2 * COUNT))

as_root = pytest.mark.skipif(
    os.getuid() != 0, reason="needs root: mount namespaces, bind mounts, another user"
)


class Tenant:
    """An engine whose every block is known."""

    def __init__(self, service: Service, name: str, seed: int) -> None:
        self.engine = Engine(service, name).attach()
        self.seed = seed
        self.engine.fill(BLOCKS, seed)
        assert self.engine.client.save(keys(COUNT), BLOCKS, timeout=5.0).status is Status.OK

    def finds_its_own(self) -> bool:
        """Whether every block is a hit; what is loaded must be what this tenant saved."""
        client = self.engine.client
        found = client.lookup(keys(COUNT), timeout=5.0)
        if found.lease is None or found.blocks < COUNT:
            return False
        self.engine.view[:, ELSEWHERE] = 0
        if client.load(found.lease, ELSEWHERE, timeout=5.0).status is not Status.OK:
            return False
        assert self.engine.holds(ELSEWHERE, self.seed), "bytes of somebody else"
        return True

    def settles(self) -> None:
        """It finds its own, at the latest after its session or index has come back."""
        eventually("every block is a hit", self.finds_its_own)

    def close(self) -> None:
        self.engine.client.close()


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "run", http_addr="127.0.0.1:0") as service:
        eventually("it can be asked", lambda: bool(lines(service, "http_serving")))
        yield service


def lines(service: Service, event: str) -> list[dict[str, Any]]:
    """What the log says under this name."""
    rows = logged(service.log())
    return [row for row in rows if row["event"] == event]


def ready(service: Service) -> tuple[int, list[str]]:
    """The answer of /readyz: status and reasons."""
    port = lines(service, "http_serving")[-1]["address"].rpartition(":")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)["reasons"]
    except urllib.error.HTTPError as err:
        return err.code, json.load(err)["reasons"]


def serve(service: Service, *before: str) -> subprocess.CompletedProcess[str]:
    """Another `serve` with the same command line, which is expected to end by itself."""
    command = [*before, *service._command]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


def listens(path: Path) -> bool:
    """Whether there is a socket that somebody made."""
    return path.is_socket()


def test_lock_and_sockets_removed_as_an_age_cleaner_does(first: Service) -> None:
    tenant = Tenant(first, "one", 1)
    for path in [*first.run_dir.glob("*.sock"), *first.run_dir.glob("actors/*.sock")]:
        path.unlink()
    (first.run_dir / "lock").unlink()
    other = serve(first)
    assert other.returncode == 1 and "already running" in other.stderr
    eventually("there is a front desk again", lambda: listens(first.run_dir / "pegaflow.sock"))
    eventually("there is a lock again", (first.run_dir / "lock").exists)
    assert f"pid {first.pid}" in serve(first).stderr
    eventually("it answers again", first.up)
    tenant.settles()
    sockets = {f"{r.address}.sock" for r in first.processes() if r.address.name != "supervisor"}
    eventually(
        "each child has a socket again",
        lambda: sockets <= {p.name for p in first.run_dir.glob("actors/*.sock")},
    )
    with Engine(first, "two") as late:  # whose session dials index and allocator at these sockets
        assert late.client.lookup(keys(COUNT), timeout=5.0).blocks == COUNT
    tenant.close()


def test_the_run_directory_removed(first: Service) -> None:
    tenant = Tenant(first, "one", 1)
    # A spare that came up just then would die of it.
    children = [str(one) for one in first.at_rest(engines=1) if one.name != "supervisor"]
    with (first.run_dir / "log").open() as log:
        shutil.rmtree(first.run_dir)
        eventually("it has made another one", lambda: listens(first.run_dir / "pegaflow.sock"))
        sockets = [first.run_dir / "actors" / f"{child}.sock" for child in children]
        eventually("so has each child", lambda: all(map(listens, sockets)))
        eventually("and it answers", first.up)
        said: list[str] = []

        def was_said() -> bool:
            said.extend(line for line in log if "socket_bound_again" in line)
            return bool(said)

        eventually("it says so", was_said)
    assert len(said) == 1 and all(name in said[0] for name in ("supervisor", "allocator", "index"))
    (first.run_dir / "log").touch()
    other = serve(first)
    assert other.returncode == 1 and f"already running, pid {first.pid}" in other.stderr
    eventually("it answers again", first.up)
    with Engine(first, "two") as late:
        assert late.client.lookup(keys(COUNT), timeout=5.0).blocks == COUNT
    tenant.settles()
    tenant.close()


def test_the_run_directory_taken_by_another_service(first: Service, tmp_path: Path) -> None:
    """The first is stopped meanwhile, so the second is the faster one."""
    tenant = Tenant(first, "one", 1)
    elsewhere = tmp_path / "elsewhere"
    os.kill(first.pid, signal.SIGSTOP)
    first.run_dir.rename(elsewhere)
    second = Service(first.run_dir)
    try:
        with second:
            (said,) = lines(second, "pool_in_use")
            assert f"pid {first.pid}" in said["why"]
            assert not lines(second, "pool_not_adopted")
            stranger = Tenant(second, "two", 2)
            os.kill(first.pid, signal.SIGCONT)
            shutil.copy(elsewhere / "log", tmp_path / "log")
            first.run_dir = elsewhere
            reason = f"already running, pid {second.pid}"
            eventually("it says so", lambda: reason in first.log())
            eventually("it is not ready", lambda: reason in " ".join(ready(first)[1]))
            assert ready(first)[0] == 503
            assert len(lines(first, "files_lost")) == 1
            tenant.settles()
            stranger.settles()
            assert first.stop() == 0
            eventually("the other one goes on", second.up)
            stranger.settles()
            stranger.close()
    finally:
        first.resume()
        tenant.close()


@pytest.mark.parametrize("what", ["copied", "hard linked", "replaced by a copy"])
def test_files_of_the_pool(first: Service, tmp_path: Path, what: str) -> None:
    """The next service of this stem looks at them while the first still serves."""
    tenant = Tenant(first, "one", 1)
    report = first.report()
    names = [Path(report.pool_path), Path(report.ledger_path)]
    for path in names:
        number = path.name.split(".")[1]
        newer = path.with_name(path.name.replace(f".{number}.", ".77."))
        if what == "hard linked":
            newer.hardlink_to(path)
        else:
            shutil.copy2(path, newer)
        if what == "replaced by a copy":
            newer.rename(path)
    tenant.engine.fill(BLOCKS, 3)
    tenant.engine.client.save(keys(COUNT, seed=3), BLOCKS, timeout=5.0)
    os.kill(first.pid, signal.SIGSTOP)
    first.run_dir.rename(tmp_path / "elsewhere")
    second = Service(first.run_dir)
    try:
        with second:
            assert not any("adopted" in r["reason"] for r in lines(second, "serving"))
            stranger = Tenant(second, "two", 2)
            os.kill(first.pid, signal.SIGCONT)
            tenant.settles()
            stranger.settles()
            stranger.close()
    finally:
        first.resume()
        first.run_dir = tmp_path / "elsewhere"
        tenant.close()


@pytest.mark.parametrize("name", ["pegaflow.sock", "actors", "index"])
def test_a_name_taken_by_something_else_is_said_and_survived(first: Service, name: str) -> None:
    """A directory for a socket and a file for a directory; an actor dies meanwhile."""
    tenant = Tenant(first, "one", 1)
    (index,) = first.processes("index")
    path = first.run_dir / (f"actors/{index.address}.sock" if name == "index" else name)
    path.rename(first.run_dir / "away")
    path.touch() if name == "actors" else path.mkdir()
    eventually("it is said", lambda: str(path) in " ".join(ready(first)[1]))
    assert ready(first)[0] == 503 and len(lines(first, "files_lost")) == 1
    if name == "actors":
        os.kill(index.pid, signal.SIGKILL)
        eventually("its death is noticed", lambda: bool(lines(first, "child_gone")))
    path.unlink() if name == "actors" else path.rmdir()
    eventually("it is ready again", lambda: ready(first) == (200, []), 40)
    with Engine(first, "two") as late:  # which is told the way by the front desk
        eventually("hits", lambda: late.client.lookup(keys(COUNT), timeout=5.0).blocks == COUNT)
    tenant.settles()
    tenant.close()
    assert first.stop() == 0 and "Traceback" not in first.log()


def test_another_socket_in_the_place_of_one_is_replaced(first: Service) -> None:
    (index,) = first.processes("index")
    for path in (first.run_dir / "pegaflow.sock", first.run_dir / f"actors/{index.address}.sock"):
        before = path.stat()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            taken = path.stat()
            eventually("it is", partial(changed, path, before, taken))
    eventually("it answers", first.up)
    with Engine(first, "two") as late:
        assert late.client.lookup(keys(COUNT), timeout=5.0).blocks == 0


def changed(path: Path, *old: os.stat_result) -> bool:
    """Whether another socket is there than those."""
    return path.is_socket() and path.stat().st_ino not in [found.st_ino for found in old]


def test_a_pool_replaced_under_a_service_is_said_and_survived(first: Service) -> None:
    tenant = Tenant(first, "one", 1)
    report = first.report()
    for path in (Path(report.pool_path), Path(report.ledger_path)):
        copy = path.with_name("pegaflow-copy")
        shutil.copy2(path, copy)
        copy.rename(path)
    names = {report.pool_path, report.ledger_path}
    eventually("both are said", lambda: {reason.split()[0] for reason in ready(first)[1]} == names)
    assert ready(first)[0] == 503
    for name in ("index", "allocator"):
        os.kill(first.processes(name)[0].pid, signal.SIGKILL)
    tenant.settles()
    staged = Engine(first, "staged", way="staged")
    # What the tenant uses does not need them, so they may be on their way still.
    eventually(
        "it is said what cannot be mapped",
        lambda: not staged.client.connect(0.1) and report.pool_path in staged.client.refusal,
    )
    staged.client.close()
    tenant.close()
    assert first.stop() == 0
    for path in (Path(report.pool_path), Path(report.ledger_path)):
        assert path.exists(), "it is not the service's own"
        path.unlink()


def test_every_writer_of_the_pool_has_it_locked(first: Service) -> None:
    """Whoever maps a file of the pool for writing is among the holders that the kernel lists."""
    tenant = Tenant(first, "one", 1)
    report = first.report()
    for path in (report.pool_path, report.ledger_path):
        inode = os.stat(path).st_ino
        writers = set()
        for row in first.processes():
            maps = Path(f"/proc/{row.pid}/maps").read_text().splitlines()
            if any(m.endswith(path) and m.split()[1].startswith("rw-s") for m in maps):
                writers.add(row.pid)
        # Read after the maps: the tenant's session was a spare, and another one is just starting.
        locks = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
        holders = {int(r[4]) for r in locks if r[1] == "POSIX" and r[5].endswith(f":{inode}")}
        assert first.pid in writers and len(writers) >= 3
        assert writers <= holders
    tenant.close()


@as_root
def test_two_mount_namespaces_that_share_memory(first: Service, tmp_path: Path) -> None:
    """As two containers with --ipc=host: each has its own directory at the same path."""
    tenant = Tenant(first, "one", 1)
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    script = f'mount --bind {own} {first.run_dir} && exec "$0" "$@"'
    second = Service(first.run_dir)
    second._command = ["unshare", "--mount", "bash", "-c", script, *second._command]
    log = (tmp_path / "second.log").open("ab")
    with log:
        process = subprocess.Popen(second._command, stderr=log, process_group=0)
    try:
        second.run_dir, second.endpoint = own, str(own / "pegaflow.sock")
        eventually("it answers", lambda: bool(second.processes("session")), 20)
        said = (tmp_path / "second.log").read_text()
        assert "pool_in_use" in said and f"pid {first.pid}" in said
        assert "adopted from" not in said
        eventually("it answers", lambda: "serving" in (tmp_path / "second.log").read_text())
        # Its sessions' sockets are named by the path that they have over there.
        stranger = subprocess.run(
            [
                *("nsenter", "--target", str(process.pid), "--mount", f"--wd={os.getcwd()}"),
                *(sys.executable, "-m", "tests.procs.tenant", str(first.run_dir), "2"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert stranger.stdout == "its own\n", stranger.stderr
        tenant.settles()
        eventually("it is ready", lambda: ready(first) == (200, []))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
        tenant.close()


@as_root
def test_a_bind_mount_of_the_run_directory_is_the_same_directory(
    first: Service, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o700)
    script = f'mount --bind {first.run_dir} {there} && exec "$0" "$@"'
    second = Service(there)
    done = serve(second, "unshare", "--mount", "bash", "-c", script)
    assert done.returncode == 1 and f"already running, pid {first.pid}" in done.stderr


@as_root
def test_another_user_in_the_same_run_directory(first: Service) -> None:
    script = """
import os, sys
from pathlib import Path
from pegaflow.service import rundir
from pegaflow.core.errors import UserError
os.setgroups([])
os.setuid(12345)
try:
    rundir.ServiceLock.acquire(rundir.prepare(Path(sys.argv[1])))
except UserError as err:
    sys.exit(str(err))
"""
    command = [sys.executable, "-c", script, str(first.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and str(first.run_dir) in done.stderr
    assert "Traceback" not in done.stderr
