"""The whole service goes and comes back: its blocks stay, and nothing else does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pegaflow.service import rundir
from pegaflow.service.serve import shm_stem
from pegaflow.wire.status import Status
from tests.device.test_locks import holder

from .service import PATIENCE_S, Engine, Service, eventually, keys

BLOCKS = list(range(16))


def terminated(service: Service) -> None:
    assert service.stop() == 0


def killed(service: Service) -> None:
    service.kill()


def orphaned(service: Service) -> None:
    """Only the supervisor is killed; its children follow it by themselves."""
    os.kill(service.pid, signal.SIGKILL)
    assert service._process is not None
    service._process.wait()


def said(service: Service, event: str) -> list[dict[str, Any]]:
    """The lines of the log with this event."""
    lines = [json.loads(line) for line in service.log().splitlines()]
    return [line for line in lines if line["event"] == event]


def files(service: Service) -> list[str]:
    """Its files in shared memory."""
    return sorted(p.name for p in Path("/dev/shm").glob(f"{shm_stem(service.run_dir)}.*"))


@pytest.mark.parametrize("end", [terminated, killed, orphaned], ids=lambda end: end.__name__)
def test_every_sealed_block_is_a_hit_in_the_next_life(
    tmp_path: Path, end: Callable[[Service], None]
) -> None:
    with Service(tmp_path / "run") as service:
        with Engine(service) as engine:
            engine.fill(BLOCKS, seed=10)
            assert engine.client.save(keys(16), BLOCKS).saved == 16
            end(service)
        before = files(service)
        service.start()
        assert files(service)[:1] == before[:1], "it is the same pool"
        assert "adopted from an earlier life" in said(service, "serving")[-1]["reason"]
        with Engine(service, "another") as engine:
            found = engine.client.lookup(keys(16), timeout=5.0)
            assert found.lease is not None and found.blocks == 16
            assert engine.client.load(found.lease, BLOCKS).status is Status.OK
            assert engine.holds(BLOCKS, seed=10)
        service.settled()


def purged(service: Service) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pegaflow", "purge", "--run-dir", str(service.run_dir)]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_is_kept_is_told_and_purged(tmp_path: Path) -> None:
    with Service(tmp_path / "run") as service:
        with Engine(service) as engine:
            assert engine.client.save(keys(16), BLOCKS).saved == 16
        refused = purged(service)
        assert refused.returncode == 1 and "already running" in refused.stderr
        assert service.stop() == 0
        (kept,) = said(service, "pool_kept")
        assert (kept["pages"], kept["blocks"]) == (16, "1 MiB")
        assert kept["free_it"] == f"pegaflow purge --run-dir {service.run_dir}"
        assert files(service) != []
        for says in ("freed", "no pool was kept"):
            done = purged(service)
            assert done.returncode == 0 and done.stdout.startswith(says)
            assert files(service) == []


@pytest.mark.parametrize(
    ("extra", "size", "why"),
    [
        (("--fresh",), "64MiB", "--fresh was asked for"),
        (("--extent-size", "16MiB"), "64MiB", "its extents have 33554432 bytes"),
    ],
)
def test_another_extent_size_or_a_wish_starts_empty_with_one_line(
    tmp_path: Path, extra: tuple[str, ...], size: str, why: str
) -> None:
    old = Service(tmp_path / "run")
    with old:
        with Engine(old) as engine:
            assert engine.client.save(keys(16), BLOCKS).saved == 16
            (session,) = {r.address.incarnation for r in old.processes() if r.engine}
        old.kill()
        before = files(old)
        with Service(tmp_path / "run", pool_size=size, extra=extra) as new, Engine(new) as engine:
            (line,) = said(new, "pool_not_adopted")
            assert why in line["why"]
            assert engine.client.lookup(keys(16)).blocks == 0
            assert not set(before) & set(files(new)), "the old names are gone, the new ones are new"
            assert session < min(r.address.incarnation for r in new.processes())


@pytest.mark.parametrize("way", ["process_vm", "staged"])
def test_a_pool_grows_and_shrinks_and_keeps_what_fits(tmp_path: Path, way: str) -> None:
    service = Service(tmp_path / "run", pool_size="64MiB", extra=("--extent-size", "4MiB"))
    with service, Engine(service, way=way, blocks=1024) as engine:
        for size, least in ((64, 512), (128, 512), (96, 512), (32, 400), (16, 200)):
            if size != 64:
                service.kill()
                at = service._command.index("--pool-size")
                service._command[at + 1] = f"{size}MiB"
                service.start()
                assert len(files(service)) >= 2 and said(service, "pool_not_adopted") == []
                report = service.report()
                assert report.pool_bytes == size << 20
                room = os.stat(report.pool_path).st_blocks * 512
                assert room <= (size << 20) + (1 << 20), "what went is given back"
            else:
                for first in range(0, 512, 64):
                    blocks = list(range(first, first + 64))
                    engine.fill(blocks, seed=first)
                    assert engine.client.save(keys(64, seed=first), blocks, timeout=5).saved == 64
            eventually(
                "it is served again", lambda: engine.client.lookup(keys(1)).status is Status.OK
            )
            hits = 0
            for first in range(0, 512, 64):
                target = list(range(512, 576))
                found = engine.client.lookup(keys(64, seed=first), timeout=5.0)
                if found.lease is not None:
                    target = target[: found.blocks]
                    assert engine.client.load(found.lease, target, timeout=5.0).status is Status.OK
                    assert engine.holds(target, seed=first), f"{size} MiB: other bytes"
                    hits += found.blocks
            assert hits >= least * (size >= 32), (size, hits)


def test_without_a_size_the_adopted_one_stays(tmp_path: Path) -> None:
    with Service(tmp_path / "run", pool_size="96MiB") as service, Engine(service) as engine:
        assert engine.client.save(keys(4), BLOCKS[:4]).saved == 4
        service.kill()
        at = service._command.index("--pool-size")
        del service._command[at : at + 2]
        service.start()
        report = service.report()
        assert report.pool_bytes == 96 << 20
        eventually("its blocks are hits", lambda: engine.client.lookup(keys(4)).blocks == 4)


def test_without_keep_pool_nothing_is_kept(tmp_path: Path) -> None:
    with Service(tmp_path / "run", extra=("--no-keep-pool",)) as service:
        with Engine(service) as engine:
            assert engine.client.save(keys(4), BLOCKS[:4]).saved == 4
        assert service.stop() == 0
        assert files(service) == []


def test_an_orphan_that_may_still_write_is_killed_before_its_pool_is_adopted(
    tmp_path: Path,
) -> None:
    with Service(tmp_path / "run") as service:
        with Engine(service) as engine:
            assert engine.client.save(keys(16), BLOCKS).saved == 16
        report = service.report()
        service.kill()
        with holder(Path(report.pool_path), report.processes[0].address.incarnation) as orphan:
            orphan.send_signal(signal.SIGSTOP)
            service.start()
            assert orphan.wait(PATIENCE_S) == -signal.SIGKILL
            assert said(service, "orphans_killed")[0]["pids"] == [orphan.pid]
        with Engine(service) as engine:
            assert engine.client.lookup(keys(16), timeout=5.0).blocks == 16


def test_what_others_might_open_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Service(tmp_path / "run") as service, Engine(service):
            private = [tmp_path / "run", service.run_dir / rundir.ACTORS]
            assert {p.stat().st_mode & 0o777 for p in private} == {0o700}
            shared = [Path("/dev/shm", name) for name in files(service)]
            assert len(shared) >= 2
            inside = [p for p in service.run_dir.rglob("*") if p.is_socket()]
            assert len(inside) >= 4
            assert {p.stat().st_mode & 0o777 for p in (*shared, *inside)} == {0o600}
    finally:
        os.umask(before)


class Busy:
    """An engine that saves and loads in a thread of its own, and checks what it gets."""

    def __init__(self, service: Service, number: int) -> None:
        self.wrong = 0
        self.loaded = 0
        self.sealed: set[int] = set()  # chains that were there
        self._stop = threading.Event()
        self._engine = Engine(service, f"busy {number}", blocks=32)
        self._thread = threading.Thread(target=self._run, args=(number,))
        self._thread.start()

    def _run(self, number: int) -> None:
        engine, turn = self._engine, 0
        while not self._stop.is_set():
            turn += 1
            chain = (turn + number) % 12
            found = engine.client.lookup(keys(8, seed=chain), timeout=0.5)
            if found.lease is None or found.blocks < 8:
                engine.fill(list(range(8)), seed=100 * chain)
                engine.client.save(keys(8, seed=chain), list(range(8)), timeout=1.0)
                self._stop.wait(0.01)
            elif engine.client.load(found.lease, list(range(8, 16))).status is Status.OK:
                self.loaded += 1
                self.sealed.add(chain)
                self.wrong += not engine.holds(list(range(8, 16)), seed=100 * chain)

    def finds_its_blocks(self) -> None:
        least = self.loaded + 3
        eventually("an engine finds its blocks", lambda: self.loaded >= least)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.client.close()


CALM = ["serving", "serving", "spare", "spare"]


def states(service: Service) -> list[str]:
    """Of its sessions."""
    return sorted(r.state for r in service.processes("session"))


@contextmanager
def busy(service: Service) -> Iterator[list[Busy]]:
    engines = [Busy(service, n) for n in range(2)]
    try:
        yield engines
    finally:
        for engine in engines:
            engine.end()


def test_ten_restarts_under_load_leave_everything_as_it_was(tmp_path: Path) -> None:
    seen: list[tuple[Counter[str], int, int]] = []  # processes, descriptors, shared files
    with Service(tmp_path / "run") as service:
        with busy(service) as engines:
            for life in range(11):
                eventually("both engines are served", lambda: states(service) == CALM)
                for engine in engines:
                    engine.finds_its_blocks()
                rows = service.processes()
                fds = [len(os.listdir(f"/proc/{r.pid}/fd")) for r in rows if not r.engine]
                kinds = Counter(r.address.name for r in rows)
                seen.append((kinds, sum(fds), len(files(service))))
                (killed if life % 2 else terminated)(service)
                eventually("all of it is dead", lambda: service.left_over() == [])
                service.start()
        kinds, fds_before, shared = seen[0]
        assert [k for k, _, _ in seen] == [kinds] * 11
        assert {s for _, _, s in seen} == {shared}
        assert all(abs(f - fds_before) <= 4 for _, f, _ in seen), seen
        assert [engine.wrong for engine in engines] == [0, 0]
        sealed = set.union(*(engine.sealed for engine in engines))
        assert sealed and service.counter("blocks_evicted") == 0
        with Engine(service, "last") as last:
            for chain in sealed:
                found = last.client.lookup(keys(8, seed=chain), timeout=5.0)
                assert found.lease is not None and found.blocks == 8
                assert last.client.load(found.lease, list(range(8))).status is Status.OK
                assert last.holds(list(range(8)), seed=100 * chain)
        service.settled()
