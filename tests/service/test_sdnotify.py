"""sd_notify over real sockets."""

import os
import socket
from pathlib import Path

import pytest

from pegaflow.service.sdnotify import VARIABLE, WATCHDOG, WATCHDOG_PID, Notifier


def manager(name: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(name)
    made.setblocking(False)
    return made


@pytest.fixture(params=["path", "abstract"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """NOTIFY_SOCKET's value and the address it means."""
    if request.param == "path":
        return str(tmp_path / "notify"), str(tmp_path / "notify")
    name = f"pegaflow-test-{os.getpid()}"
    return f"@{name}", f"\0{name}"


def test_lines_arrive_as_one_datagram_each(named: tuple[str, str]) -> None:
    said, address = named
    with manager(address) as there:
        env = {VARIABLE: said}
        notifier = Notifier(env)
        notifier.say("READY=1\nSTATUS=up")
        notifier.say("STOPPING=1")
        assert there.recv(4096) == b"READY=1\nSTATUS=up"
        assert there.recv(4096) == b"STOPPING=1"
        assert env == {}, "a child must not speak for us"


def test_nothing_is_said_to_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    Notifier({}).say("READY=1")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("said", ["/nowhere/notify", "@pegaflow-nobody", "vsock:2:1", "x" * 200])
def test_a_broken_socket_is_one_line(said: str, capfd: pytest.CaptureFixture[str]) -> None:
    notifier = Notifier({VARIABLE: said})
    for _ in range(3):
        notifier.say("STATUS=up")
    out, err = capfd.readouterr()
    (line,) = (out + err).strip().splitlines()
    assert "notify_socket_broken" in line and VARIABLE in line


def test_a_path_that_is_too_long_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    notifier = Notifier({VARIABLE: "/" + "long" * 50})
    notifier.say("READY=1")
    notifier.say("STOPPING=1")
    out, err = capfd.readouterr()
    assert (out + err).count("notify_socket_broken") == 1


@pytest.mark.parametrize(
    ("env", "nanoseconds"),
    [
        ({}, 0),
        ({WATCHDOG: "2000000"}, 1_000_000_000),
        ({WATCHDOG: "2000000", WATCHDOG_PID: "7"}, 1_000_000_000),
        ({WATCHDOG: "2000000", WATCHDOG_PID: "8"}, 0),
        ({WATCHDOG: "0"}, 0),
        ({WATCHDOG: "soon"}, 0),
    ],
)
def test_who_is_watched_says_so_twice_as_often(env: dict[str, str], nanoseconds: int) -> None:
    said = {VARIABLE: "/nowhere/notify", **env}
    notifier = Notifier(said)
    assert notifier.ping_ns(7) == nanoseconds
    assert said == {}, "a child must not speak for us"
    assert Notifier(dict(env)).ping_ns(7) == 0, "nobody listens"


def test_what_a_busy_manager_does_not_take_is_said_later(tmp_path: Path) -> None:
    with manager(str(tmp_path / "notify")) as there:
        notifier = Notifier({VARIABLE: str(tmp_path / "notify")})
        backlog = 0
        while not notifier.unsaid:
            notifier.say(f"STATUS={backlog}")
            backlog += 1
        notifier.say("WATCHDOG=1")
        heard = [there.recv(4096) for _ in range(backlog - 1)]
        notifier.say("STOPPING=1")
        heard += [there.recv(4096) for _ in range(3)]
        assert heard[-3:] == [b"STATUS=%d" % (backlog - 1), b"WATCHDOG=1", b"STOPPING=1"]
        assert not notifier.unsaid
