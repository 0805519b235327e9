"""Pages of a shared file entered into the page tables: those that are there, and no others."""

import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.device import pagetables
from pegaflow.device.memory import SharedFile

PAGE = mmap.PAGESIZE
PAGES = 256


@pytest.fixture
def file() -> Iterator[SharedFile]:
    """Of shared memory, without a page."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-test-", dir="/dev/shm") as folder:  # noqa: S108
        yield SharedFile.create(str(Path(folder, "pool")), PAGES * PAGE)


def faults(file: SharedFile, first: int, count: int) -> int:
    """How often this thread is interrupted while it writes to so many pages and reads them."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for page in range(first, first + count):
        file.map[page * PAGE] = 7
        assert file.map[page * PAGE] == 7
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def taken(file: SharedFile) -> int:
    """Bytes of memory."""
    return os.fstat(file.fd).st_blocks * 512


def test_who_touches_them_is_not_interrupted(file: SharedFile) -> None:
    assert file.reserve(0, file.length) == ""
    assert pagetables.enter(file, PAGE, file.length - PAGE) == file.length - PAGE
    assert faults(file, 1, PAGES - 1) < 8, "some are Python's own"


def test_without_that_everybody_is(file: SharedFile) -> None:
    """The control: it is what is measured above."""
    assert file.reserve(0, file.length) == ""
    assert faults(file, 0, PAGES) >= PAGES


def test_it_ends_with_the_first_page_that_is_not_there_and_makes_none_real(
    file: SharedFile,
) -> None:
    assert pagetables.enter(file, 0, file.length) == 0 and taken(file) == 0
    assert file.reserve(0, 64 * PAGE) == ""
    assert file.reserve(128 * PAGE, PAGE) == ""
    assert pagetables.enter(file, 0, file.length) == 64 * PAGE
    assert pagetables.enter(file, 64 * PAGE, PAGE) == 0
    assert pagetables.enter(file, 128 * PAGE, 2 * PAGE) == PAGE
    assert taken(file) == 65 * PAGE


def test_what_it_holds_stays(file: SharedFile) -> None:
    assert file.reserve(0, file.length) == ""
    file.map[:5] = b"bytes"
    assert pagetables.enter(file, 0, file.length) == file.length
    assert file.map[:6] == b"bytes\0"


def test_a_kernel_that_does_not_know_it_is_an_error(
    file: SharedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file.reserve(0, file.length) == ""
    monkeypatch.setattr(pagetables, "_POPULATE_READ", 1 << 20)  # no advice of any kernel
    with pytest.raises(OSError, match="Invalid argument"):
        pagetables.enter(file, 0, file.length)
