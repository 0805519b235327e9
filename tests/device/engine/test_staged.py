"""A bounce file: slots that a client fills, and their way into the pool."""

import mmap
from pathlib import Path

import pytest

from pegaflow.device.engine.staged import Bounce

PAGE = 16 * 1024


def test_slots_go_to_their_offsets_and_no_byte_beside_them(tmp_path: Path) -> None:
    bounce, pool = Bounce(str(tmp_path / "bounce"), 3, PAGE), mmap.mmap(-1, 4 * PAGE)
    assert bounce.reserve() == ""
    with open(bounce.file.path, "r+b") as client:
        client.write(b"".join(bytes((n,)) * PAGE for n in (1, 2, 3)))
    bounce.fill(pool, (2, 0), (0, 3 * PAGE), PAGE - 64)
    rest = bytes(64)
    assert pool[:PAGE] == b"\3" * (PAGE - 64) + rest
    assert pool[PAGE : 3 * PAGE] == bytes(2 * PAGE)
    assert pool[3 * PAGE :] == b"\1" * (PAGE - 64) + rest


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
