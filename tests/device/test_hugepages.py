"""A pool of huge pages: where it lies, what is said of too few, and, where some are reserved, that
nobody who uses its files dies of a page that is not there."""

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.client.buffers import FileView
from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.device import hugepages, locks, pagetables, poolfiles, poolnames
from pegaflow.device.hugepages import HugePages
from pegaflow.device.memory import Extents, SharedFile
from pegaflow.device.poolfiles import PoolFiles, Wanted
from pegaflow.wire.identities import Incarnation, PageId

from .test_locks import living
from .test_poolfiles import RECORD

EXTENT = 4 << 20
GEOMETRY = Geometry(2 * EXTENT, EXTENT)
HUGE = Wanted(None, None, False, "/run/here", huge=True)
FEW = HugePages("/dev/hugepages", 2 << 20, total=64, free=40, promised=8)


@pytest.fixture
def stem(tmp_path: Path) -> str:
    (tmp_path / "shm").mkdir()
    return str(tmp_path / "shm" / "pegaflow-0-abc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is taken for a hugetlbfs."""
    made = tmp_path / "huge"
    made.mkdir()
    monkeypatch.setattr(hugepages, "folders", lambda: [str(tmp_path / "other"), str(made)])
    return made


def sealed(files: PoolFiles) -> None:
    """Have a block in its first page."""
    assert Extents(files.pool, files.file, GEOMETRY).grow(0) == ""
    files.pool.map[:5] = b"bytes"
    files.ledger.seal([PageId(0)], [RECORD])


def made(stem: str, folder: Path | str, geometry: Geometry = GEOMETRY) -> PoolFiles:
    files = poolfiles.make(stem, geometry, Incarnation(6), folder=str(folder), run_dir="/run/here")
    sealed(files)
    return files


def names(*folders: Path | str) -> list[str]:
    return sorted(path.name for folder in folders for path in Path(folder).iterdir())


def test_the_pool_alone_lies_elsewhere_and_is_found_there(stem: str, folder: Path) -> None:
    made(stem, folder)
    assert names(folder) == ["pegaflow-0-abc.1.pool"]
    assert names(Path(stem).parent) == ["pegaflow-0-abc.1.ledger"]
    found = poolfiles.adopt(stem, HUGE)
    assert found.files is not None and found.files.huge and found.files.sealed()[0] == 1
    (shown,) = poolfiles.kept(stem)
    assert (shown.path, shown.run_dir) == (f"{folder}/pegaflow-0-abc.1.pool", "/run/here")
    assert poolnames.remove(stem, found.files) == (0, []) and len(names(folder)) == 1
    found.files.unlink()
    assert names(folder, Path(stem).parent) == []


@pytest.mark.parametrize("huge", [True, False])
def test_a_pool_that_lies_where_it_is_not_wanted_is_removed(
    stem: str, folder: Path, huge: bool
) -> None:
    made(stem, "" if huge else folder)
    found = poolfiles.adopt(stem, replace(HUGE, huge=huge))
    assert found.files is None
    assert f"--use-hugepages was {'' if huge else 'not '}asked for" in found.refused[0]
    assert poolnames.remove(stem)[0] > 2 * EXTENT // 2
    assert names(folder, Path(stem).parent) == []


def test_one_in_which_a_service_lives_stays(stem: str, folder: Path) -> None:
    path = made(stem, folder).pool.path
    with living(path, service=9) as pid:
        found = poolfiles.adopt(stem, HUGE)
        assert found.in_use == (f"{stem}.1.pool is in use by another service (pid {pid})",)
        assert poolnames.remove(stem) == (0, [f"{stem}.1"]) and len(names(folder)) == 1
    assert poolnames.remove(stem)[1] == [] and names(folder) == []


def test_what_is_left_without_its_ledger_is_removed(stem: str, folder: Path) -> None:
    made(stem, folder)
    Path(f"{stem}.1.ledger").unlink()
    assert poolfiles.adopt(stem, HUGE).files is None
    assert poolnames.remove(stem)[0] > 0 and names(folder) == []


def test_a_name_that_is_taken_there_is_followed_by_another(stem: str, folder: Path) -> None:
    (folder / "pegaflow-0-abc.1.pool").touch()
    files = made(stem, folder)
    assert files.pool.path.startswith(f"{folder}/pegaflow-0-abc.")
    assert Path(files.pool.path).stem == Path(files.file.path).stem != "pegaflow-0-abc.1"


def test_without_its_pages_nothing_is_made(
    stem: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedFile, "promise", lambda *_: "too few")
    with pytest.raises(UserError, match="too few"):
        made(stem, folder)
    assert names(folder, Path(stem).parent) == []


def test_a_pool_for_whose_growth_there_are_too_few_stays_as_it_was(
    stem: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(stem, folder)
    larger = replace(HUGE, pool_bytes=4 * EXTENT)
    with monkeypatch.context() as patch:
        patch.setattr(SharedFile, "promise", lambda file, length, had=0: f"{length - had} lack")
        with pytest.raises(UserError, match=f"{2 * EXTENT} lack"):
            poolfiles.adopt(stem, larger)
        found = poolfiles.adopt(stem, HUGE)
        assert found.files is None and "lack" in found.refused[0]
    files = poolfiles.adopt(stem, larger).files
    assert files is not None and files.sealed()[0] == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (FEW, "64 are reserved and 32 of them free: sysctl -w vm.nr_hugepages=132, or name"),
        (replace(FEW, page_bytes=1 << 30), "echo 132 > /sys/kernel/mm/hugepages/hugepages-1048576"),
        (replace(FEW, room=7), "which takes 7 more (its mount option size=): remount it"),
        (replace(FEW, free=200), "192 of them free, but the kernel gives fewer: a limit of the"),
    ],
)
def test_too_few_are_one_line_with_what_to_do(
    place: HugePages, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugepages, "default_bytes", lambda: 2 << 20)
    line = place.shortage(100)
    assert line.startswith(f"the pool needs 100 huge pages of {place.size} in /dev/hugepages")
    assert said in line and "\n" not in line


def test_what_a_new_file_can_have() -> None:
    assert [FEW.available, replace(FEW, room=3).available] == [32, 3]
    assert replace(FEW, promised=99).available == 0
    assert [FEW.pages(n) for n in (1, 2 << 20, (2 << 20) + 1)] == [1, 1, 2]


def test_the_mount_in_which_most_fits_is_taken() -> None:
    large = HugePages("/large", 1 << 30, total=2, free=1, promised=0)
    assert hugepages.best([FEW, large]) is large
    assert hugepages.best([FEW, replace(large, writable=False)]) is FEW
    assert hugepages.best([FEW, replace(FEW, folder="/same")]) is FEW
    with pytest.raises(UserError, match="no file in /dev/hugepages: mount -t hugetlbfs -o uid="):
        hugepages.best([replace(FEW, writable=False)])
    with pytest.raises(UserError, match="no hugetlbfs is mounted"):
        hugepages.best([])


def test_mounts_are_read_once_each(tmp_path: Path) -> None:
    for name in ("a b", "proc/self", "sys/kernel/mm/hugepages/hugepages-2048kB"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "again").symlink_to(tmp_path / "a b")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nHugepagesize:    2048 kB\n")
    kinds = {"a\\040b": "hugetlbfs", "proc": "tmpfs", "again": "hugetlbfs", "none": "hugetlbfs"}
    mounts = [f"none {tmp_path}/{name} {kind} rw 0 0\n" for name, kind in kinds.items()]
    (tmp_path / "proc/self/mounts").write_text("".join(mounts))
    numbers = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    for name, number in (("nr", 64), ("free", 40), ("resv", 8)):
        (numbers / f"{name}_hugepages").write_text(f"{number}\n")

    def stat(folder: str, blocks: int = 0) -> Any:
        return SimpleNamespace(f_bsize=2 << 20, f_blocks=blocks, f_bavail=5)

    assert hugepages.look(tmp_path, stat) == [replace(FEW, folder=f"{tmp_path}/a b")]
    limited = hugepages.look(tmp_path, lambda folder: stat(folder, 9))
    assert [place.room for place in limited] == [5]
    assert hugepages.default_bytes(tmp_path) == 2 << 20
    assert hugepages.look(tmp_path / "nothing") == [] and hugepages.default_bytes(numbers) == 0


def test_another_file_system_promises_nothing_and_has_no_huge_pages(tmp_path: Path) -> None:
    file = SharedFile.create(str(tmp_path / "file"), 5000)
    assert (file.length, file.huge, file.page_bytes) == (5000, False, mmap.PAGESIZE)
    assert file.promise(1 << 60) == ""


LEAST = 12  # pages: what the tests below use at most


@pytest.fixture
def real() -> Iterator[HugePages]:
    """A hugetlbfs with some pages."""
    places = [p for p in hugepages.look() if p.writable and p.available >= LEAST]
    if not places or places[0].page_bytes > EXTENT:
        pytest.skip(f"{LEAST} huge pages have to be reserved, and a hugetlbfs mounted")
    yield places[0]


@pytest.fixture
def reserved(real: HugePages) -> Iterator[Path]:
    """A folder in it."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-test-", dir=real.folder) as made:
        yield Path(made)


def left() -> tuple[int, int]:
    """Pages that are free, and of them those that are promised."""
    place = hugepages.look()[0]
    return place.free, place.promised


def test_all_pages_are_promised_before_one_is_used(real: HugePages, reserved: Path) -> None:
    before = left()
    file = SharedFile.create(str(reserved / "pool"), 5 * real.page_bytes - 7)
    assert file.huge and file.length == 5 * real.page_bytes and left() == before
    locks.claim(file.fd)
    assert file.promise(file.length) == "" == file.promise(file.length)
    assert left() == (before[0], before[1] + 5)
    assert file.reserve(0, real.page_bytes + 1) == "" and left() == (before[0] - 2, before[1] + 3)
    command = [sys.executable, "-c", TAKE, file.path]
    assert subprocess.run(command).returncode == 1, "no lock is lost by it"
    file.unlink()
    file.close()
    assert left() == before


TAKE = """
import os, sys
from pegaflow.device import locks
sys.exit(0 if locks.take(os.open(sys.argv[1], os.O_RDWR)) else 1)
"""


def test_too_many_are_refused_and_none_is_kept(real: HugePages, reserved: Path) -> None:
    before = left()
    file = SharedFile.create(str(reserved / "pool"), (real.available + 3) * real.page_bytes)
    assert f"needs {real.available + 3} huge pages" in file.promise(file.length)
    assert "needs 3 huge pages" in file.promise(file.length, real.available * real.page_bytes)
    assert left() == before
    view = FileView(file.path, write=False, known=file.id)
    assert len(view.bytes) == file.length and left() == before, "who only maps it counts none"
    file.close()


def test_who_touches_what_was_neither_promised_nor_made_real_dies(
    real: HugePages, reserved: Path
) -> None:
    """The control: it is what everything here is for."""
    file = SharedFile.create(str(reserved / "pool"), (real.available + 1) * real.page_bytes)
    command = [sys.executable, "-c", TOUCH, file.path, str(real.page_bytes)]
    assert subprocess.run(command).returncode == -signal.SIGBUS
    assert file.reserve(0, file.length) == "No space left on device"
    file.close()


TOUCH = """
import sys
from pegaflow.device.memory import SharedFile
file = SharedFile.adopt(sys.argv[1])
for at in range(0, file.length, int(sys.argv[2])):
    file.map[at] = 1
"""


def test_a_session_enters_what_is_there_and_copies_without_a_fault(
    real: HugePages, reserved: Path, stem: str
) -> None:
    before = left()
    files = made(stem, reserved)  # its first extent is there
    assert pagetables.enter(files.pool, 0, 2 * EXTENT) == EXTENT
    assert pagetables.enter(files.pool, EXTENT, EXTENT) == 0
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    ctypes.memset(files.pool.address, 3, EXTENT)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults < 4
    Extents(files.pool, files.file, GEOMETRY).grow(1)
    assert pagetables.enter(files.pool, EXTENT, EXTENT) == EXTENT
    files.unlink()
    files.pool.close()
    assert left() == before


def test_one_that_shrinks_gives_pages_back_and_grows_again(
    real: HugePages, reserved: Path, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugepages, "folders", lambda root=None: [str(reserved)])
    before, page = left(), real.page_bytes
    made(stem, reserved).pool.close()
    for extents in (1, 2, 1):
        files = poolfiles.adopt(stem, replace(HUGE, pool_bytes=extents * EXTENT)).files
        assert files is not None and files.sealed()[0] == 1 and files.pool.map[:5] == b"bytes"
        free, promised = left()
        assert (before[0] - free) + (promised - before[1]) == extents * EXTENT // page + 1
        again = FileView(files.pool.path, write=False, known=files.pool.id)
        assert left() == (free, promised), "what was given back is not counted again"
        assert bytes(again.bytes[:5]) == b"bytes"
        assert os.fstat(files.pool.fd).st_size == 2 * EXTENT + page, "no file is cut"
        files.pool.close()
