"""A bounce file: slots that a client fills, and their way into the pool."""

import mmap
from functools import partial
from pathlib import Path

import pytest

from pegaflow.core.pool.columns import column
from pegaflow.device.engine.staged import Bounce
from tests.actors.steps import steps

PAGE = 16 * 1024


def test_slots_go_to_their_offsets_and_no_byte_beside_them(tmp_path: Path) -> None:
    bounce, pool = Bounce(str(tmp_path / "bounce"), 3, PAGE), mmap.mmap(-1, 4 * PAGE)
    assert bounce.reserve() == ""
    with open(bounce.file.path, "r+b") as client:
        client.write(b"".join(bytes((n,)) * PAGE for n in (1, 2, 3)))
    bounce.fill(pool, column((2, 0)), column((0, 3 * PAGE)), PAGE - 64)
    rest = bytes(64)
    assert pool[:PAGE] == b"\3" * (PAGE - 64) + rest
    assert pool[PAGE : 3 * PAGE] == bytes(2 * PAGE)
    assert pool[3 * PAGE :] == b"\1" * (PAGE - 64) + rest


def test_neighbours_that_go_to_neighbours_are_copied_at_once(tmp_path: Path) -> None:
    count = 64
    bounce, pool = Bounce(str(tmp_path / "bounce"), count, PAGE), mmap.mmap(-1, count * PAGE)
    assert bounce.reserve() == ""
    with open(bounce.file.path, "r+b") as client:
        client.write(b"".join(bytes((n,)) * PAGE for n in range(count)))

    def fill(slots: list[int], pages: list[int]) -> int:
        took = steps(partial(bounce.fill, pool, column(slots), column(pages) * PAGE, PAGE))
        for slot, page in zip(slots, pages, strict=True):
            assert pool[page * PAGE : (page + 1) * PAGE] == bytes((slot,)) * PAGE
        return took

    slots, half = list(range(count)), count // 2
    fill(slots[:2], slots[:2])  # finds cold caches
    one_by_one = fill(slots, slots[::-1])
    assert 2 * fill(slots, slots[half:] + slots[:half]) < one_by_one


def test_its_name_is_taken_by_nobody_else(tmp_path: Path) -> None:
    bounce = Bounce(str(tmp_path / "bounce"), 1, PAGE)
    with pytest.raises(FileExistsError):
        Bounce(bounce.file.path, 1, PAGE)


def test_a_session_that_has_no_room_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounce = Bounce(str(tmp_path / "bounce"), 1, PAGE)

    def full(*of: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert "No space left" in bounce.reserve()
