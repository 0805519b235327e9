"""The inbox's file: made again when it is gone or another's, removed only while it is ours."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.runtime.host import Host
from pegaflow.actors.runtime.loop import Loop
from pegaflow.core.errors import UserError
from tests.actors.rig import BOSS, HELLO, IDX


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(Host(Gateway(IDX, BOSS, HELLO)), lambda number, job: None)
    yield made
    made.context.destroy(linger=0)


def nothing(path: Path) -> None:
    """It was removed."""


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def a_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def reached(path: Path) -> bool:
    """Whether ZeroMQ listens there: it greets whoever comes."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        return peer.recv(1) == b"\xff"


@pytest.mark.parametrize("put", [nothing, Path.touch, a_socket, a_link])
def test_a_socket_that_is_gone_or_anothers_is_bound_again(
    loop: Loop, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "inbox"
    loop.bind(str(path))
    assert loop.bind_again() == "" and reached(path)
    path.unlink()
    put(path)
    assert loop.bind_again() == "" and reached(path)
    before = path.stat()
    assert loop.bind_again() == "" and path.stat() == before
    loop.unlink()
    assert not path.exists()


def test_a_directory_in_its_place_is_one_line(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    path.mkdir()
    with pytest.raises(UserError, match="cannot listen at .*inbox: Is a directory"):
        loop.bind(str(path))
    assert "Is a directory" in loop.bind_again()
    loop.unlink()
    path.rmdir()
    assert loop.bind_again() == "" and reached(path)


def test_what_is_anothers_is_not_removed(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    loop.bind(str(path))
    path.unlink()
    a_socket(path)
    loop.unlink()
    assert path.exists()
