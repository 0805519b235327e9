"""What happens in a mount namespace of its own, where /dev/shm or the run directory is too small.

    python -m tests.procs.cramped SCENARIO FOLDER

Each scenario asserts for itself; `inside` runs one and hands back what it said.  The namespace is
a user's own (unshare -rm), so neither a privilege nor a switch in the product is needed.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from .service import PATIENCE_S, Engine, Service, eventually, keys

SHM_BYTES = 48 << 20


def can() -> bool:
    """Whether this machine lets a user have such a namespace."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


def inside(scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a scenario."""
    command = ["unshare", "-rm", "--propagation", "private", sys.executable]
    command += ["-m", "tests.procs.cramped", scenario, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_S)


def mount(where: Path | str, options: str) -> None:
    """A tmpfs there, or other options for the one that is there."""
    Path(where).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True)


def refused(folder: Path, *flags: str) -> str:
    """The one line with which `pegaflow serve` gives up."""
    command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(folder / "run"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    lines = [line for line in done.stderr.splitlines() if line.startswith("pegaflow: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return lines[0]


def take_room(size: int) -> None:
    """Fill up so much of /dev/shm as soon as a pool is there, and before its service has any child
    that makes it real."""
    eventually("a pool is made", lambda: any(Path("/dev/shm").glob("*.pool")))
    with open("/dev/shm/waste", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def no_room_in_shm(folder: Path) -> None:
    """A pool that cannot fit is refused, whoever chose its size."""
    mount("/dev/shm", f"size={SHM_BYTES},mode=1777")
    line = refused(folder, "--pool-size", "64MiB")
    assert "48 MiB is free in /dev/shm" in line and "--shm-size" in line
    line = refused(folder)
    assert "in /dev/shm" in line and "--shm-size" in line


def shm_read_only(folder: Path) -> None:
    """Nobody may write to /dev/shm."""
    mount("/dev/shm", f"size={SHM_BYTES},ro")
    assert "Read-only file system" in refused(folder, "--pool-size", "32MiB")


def shm_fills_up(folder: Path) -> None:
    """Somebody takes what there was room for: the pool grows until /dev/shm is full and serves with
    what it has; nobody touches a hole."""
    mount("/dev/shm", f"size={SHM_BYTES + (1 << 20)},mode=1777")
    size = str(SHM_BYTES)
    taker = Thread(target=take_room, args=(4 << 20,))
    taker.start()
    with Service(folder / "run", pool_size=size, extra=("--extent-size", "1MiB")) as service:
        taker.join()
        eventually("the pool is short", lambda: "pool_short" in service.log())
        assert service.log().count("No space left on device") == 1
        first = Engine(service, "first")
        why = "No space left on device"  # it needs room for a bounce file
        eventually("it is told", lambda: first.client.connect(0.1) or why in first.client.refusal)
        mount("/dev/shm", f"remount,size={8 * SHM_BYTES}")
        with first:
            for wave in range(16):
                first.fill(list(range(64)), seed=1000 * wave)
                assert first.client.save(keys(64, seed=wave), list(range(64))).saved == 64
            eventually("blocks were evicted", lambda: service.counter("blocks_evicted") > 0)
            found = first.client.lookup(keys(64, seed=15))
            assert found.lease is not None and found.blocks == 64
            first.memory[:] = 0
            first.client.load(found.lease, list(range(64)))
            assert first.holds(list(range(64)), seed=15000)
        assert service.counter("pool_absent_bytes") > 0
        service.settled()
        assert "Traceback" not in service.log() and "Fatal" not in service.log()


def run_dir_full_at_start(folder: Path) -> None:
    """There is no room for folders, lock or socket: one line, whatever is missing."""
    for inodes in (1, 2, 3):
        mount(folder / "run", f"nr_inodes={inodes},mode=700")
        assert "No space left on device" in refused(folder, "--pool-size", "32MiB")
        subprocess.run(["umount", str(folder / "run")], check=True)


def run_dir_fills_up(folder: Path) -> None:
    """A spare that cannot listen says so in a line and is tried again; engines go on."""
    mount(folder / "run", "nr_inodes=64,mode=700")
    with Service(folder / "run", extra=("--spares", "1")) as service, Engine(service) as engine:
        eventually("a spare is there", service.up)
        waste: list[Path] = []

        def no_room() -> bool:
            """CopyBatch every file that can be made, also the one of the spare that died."""
            try:
                while True:
                    path = service.run_dir / f"waste{len(waste)}"
                    path.touch()
                    waste.append(path)
            except OSError:
                return "cannot listen at" in service.log()

        no_room()
        spare = next(r for r in service.processes("session") if r.state == "spare")
        os.kill(spare.pid, 9)
        eventually("a spare cannot listen", no_room)
        engine.fill([0, 1, 2, 3], seed=1)
        assert engine.client.save(keys(4), [0, 1, 2, 3]).saved == 4
        assert engine.client.lookup(keys(4)).blocks == 4
        for path in waste:
            path.unlink()
        eventually("a spare is there again", service.up)
        assert "Traceback" not in service.log()


SCENARIOS: dict[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        no_room_in_shm,
        shm_read_only,
        shm_fills_up,
        run_dir_full_at_start,
        run_dir_fills_up,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
