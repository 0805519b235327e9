"""A service whose pool is of huge pages, killed and started again.  Where none are reserved nothing
of this can run; `sysctl -w vm.nr_hugepages=64` and a mounted hugetlbfs are enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.device import hugepages
from pegaflow.device.hugepages import HugePages
from pegaflow.service.serve import shm_stem
from pegaflow.wire.status import Status

from .service import Engine, Service, eventually, keys, logged

BLOCKS = list(range(16))
POOL = 64 << 20


def left() -> int:
    """Huge pages that a new file can have, wherever it lies."""
    return sum(place.available for place in hugepages.look())


@pytest.fixture
def place() -> HugePages:
    places = [p for p in hugepages.look() if p.writable and p.page_bytes <= POOL]
    needed = 0 if not places else places[0].pages(POOL) + 1
    if len(places) != 1 or places[0].available < needed:
        pytest.skip("64 MiB of huge pages have to be reserved, and a hugetlbfs mounted")
    return places[0]


@pytest.fixture
def life(tmp_path: Path, place: HugePages) -> Iterator[Service]:
    before = left()
    ssd = ("--ssd-cache-path", str(tmp_path / "ssd"), "--ssd-cache-capacity", "64MiB")
    (tmp_path / "ssd").mkdir()
    made = Service(tmp_path / "run", extra=("--use-hugepages", "--verify", *ssd))
    try:
        yield made
    finally:
        made.__exit__(None, None, None)
        command = [sys.executable, "-m", "pegaflow", "purge", "--run-dir", str(made.run_dir)]
        subprocess.run(command, check=True, capture_output=True)
        eventually("every page is back", lambda: left() == before)


def pools(service: Service, place: HugePages) -> list[str]:
    """The pool's files: that of its bytes, and what is in /dev/shm."""
    stem = shm_stem(service.run_dir)
    folders = (Path(place.folder), Path("/dev/shm"))
    return [path.name for folder in folders for path in folder.glob(f"{stem}.*.[pl]*")]


def filled(service: Service, way: str) -> None:
    with Engine(service, "first", way=way) as engine:
        engine.fill(BLOCKS, seed=10)
        assert engine.client.save(keys(16), BLOCKS).saved == 16


def found(service: Service, way: str, count: int = 16) -> None:
    """So many blocks are found, and their bytes are those that were saved."""
    with Engine(service, f"another-{way}", way=way) as engine:
        held = engine.client.lookup(keys(16))
        assert held.blocks == count
        if held.lease is not None:
            assert engine.client.load(held.lease, BLOCKS[:count]).status is Status.OK
            assert engine.holds(BLOCKS[:count], seed=10)


def test_every_block_is_a_hit_in_the_next_life_and_none_with_fresh(
    life: Service, place: HugePages
) -> None:
    before = left()
    life.start()
    filled(life, "staged")
    name = pools(life, place)
    assert [path.rsplit(".", 1)[1] for path in name] == ["pool", "ledger"]
    assert before - left() == place.pages(POOL) + 1, "all of it, before it is there"
    shown = life.status_text()
    assert f"pool file: {place.folder}/{name[0]}, in pages of 2 MiB" in shown
    eventually("spares have all of it", lambda: life.counter("session_entered_bytes") >= POOL)
    life.kill()
    assert pools(life, place) == name
    life.start()
    assert pools(life, place) == name
    for other in ("staged", "auto"):
        found(life, other)
    life.settled()
    assert life.stop() == 0
    life._command.append("--fresh")
    life.start()
    assert pools(life, place) == [path.replace(".1.", ".2.") for path in name]
    assert before - left() == place.pages(POOL) + 1, "the old one's are free"


def test_too_few_are_one_line_and_the_old_pool_stays(life: Service, place: HugePages) -> None:
    life.start()
    filled(life, "auto")
    assert life.stop() == 0
    much = (left() + place.pages(POOL)) * place.page_bytes + (1 << 30)
    command = [*life._command, "--pool-size", str(much)]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()[-1:]
    assert done.returncode == 1 and line.startswith("pegaflow: the pool needs ")
    assert f" huge pages of {place.size} in {place.folder}, {place.total} are reserved and" in line
    life.start()
    found(life, "auto")


def test_who_takes_all_other_pages_takes_none_of_the_pools(life: Service, place: HugePages) -> None:
    """While the pool grows, and with its allocator stopped in it: nobody dies, nothing is short."""
    life.start()
    allocator = life.processes("allocator")[0].pid
    os.kill(allocator, signal.SIGSTOP)
    path = Path(place.folder) / f"pegaflow-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = left()
        os.ftruncate(fd, max(1, rest) * place.page_bytes)
        if rest:
            os.posix_fallocate(fd, 0, rest * place.page_bytes)
        assert left() == 0
        os.kill(allocator, signal.SIGCONT)
        filled(life, "auto")
        found(life, "staged")
        eventually("all of it is there", lambda: not life.counter("pool_absent_bytes"))
    finally:
        os.kill(allocator, signal.SIGCONT)
        os.close(fd)
        path.unlink()
    events = {line["event"] for line in logged(life.log())}
    assert "pool_ready" in events and "pool_short" not in events
