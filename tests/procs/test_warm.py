"""Spares that have the pool in their page tables, and a pool whose pages were touched, by real
processes."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.wire.control import ProcessRow

from .service import Engine, Service, eventually, keys

POOL = 256 << 20
BLOCKS = list(range(16))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    run = tmp_path_factory.mktemp("run")
    with Service(run, pool_size="256MiB", extra=("--extent-size", "16MiB")) as made:
        yield made


def mapped(row: ProcessRow) -> int:
    """Bytes of the pool that the page tables of this process have."""
    try:
        text = Path(f"/proc/{row.pid}/smaps").read_text()
    except OSError:  # the session of an engine that is gone has ended since it was shown
        return 0
    found = re.search(r"/dev/shm/\S+\.pool\n(?:.*\n)*?Rss: +(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def all_warm(service: Service) -> bool:
    sessions = service.processes("session")
    return bool(sessions) and all(mapped(row) >= POOL for row in sessions if row.pid)


def untouched(service: Service) -> bool:
    """Whether there is a page of the pool that nobody has touched; the kernel calls it a hole."""
    report = service.report()
    fd = os.open(report.pool_path, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < POOL
    finally:
        os.close(fd)


def save_and_load(service: Service, name: str) -> None:
    with Engine(service, name, way="process_vm") as engine:
        engine.fill(BLOCKS, seed=3)
        hashes = keys(16, seed=sum(map(ord, name)))
        assert engine.client.save(hashes, BLOCKS).saved == 16
        engine.view[:] = 0
        found = engine.client.lookup(hashes)
        assert found.blocks == 16 and found.lease is not None
        engine.client.load(found.lease, BLOCKS)
        assert engine.holds(BLOCKS, seed=3)


def test_spares_have_the_whole_pool_once_it_has_grown(service: Service) -> None:
    eventually("every session has all of it", lambda: all_warm(service))
    assert not untouched(service)
    eventually("the allocator says so", lambda: service.counter("pool_absent_bytes") == 0)
    save_and_load(service, "first")


def test_the_spare_that_replaces_a_killed_one_is_warm_too(service: Service) -> None:
    eventually("every session has all of it", lambda: all_warm(service))
    spares = [row for row in service.processes("session") if row.state == "spare"]
    for row in spares:
        os.kill(row.pid, signal.SIGKILL)
    dead = {row.address for row in spares}

    def replaced() -> bool:
        rows = {row.address for row in service.processes("session")}
        return bool(rows) and not rows & dead and service.up() and all_warm(service)

    eventually("the new ones have all of it", replaced)
    save_and_load(service, "second")


def test_an_allocator_that_is_killed_while_the_pool_grows_leaves_no_page_untouched(
    tmp_path: Path,
) -> None:
    with Service(tmp_path / "run", pool_size="256MiB", extra=("--extent-size", "16MiB")) as made:
        for _ in range(3):
            (victim,) = made.processes("allocator")
            os.kill(victim.pid, signal.SIGKILL)
            eventually(
                "another one is up",
                lambda old=victim.address: (
                    old  # type: ignore[misc]
                    not in {row.address for row in made.processes("allocator")}
                    and made.up()
                ),
            )
        eventually("the pool is there", lambda: made.counter("pool_absent_bytes") == 0)
        eventually("every session has all of it", lambda: all_warm(made))
        assert not untouched(made)
        save_and_load(made, "engine")
        made.settled()
