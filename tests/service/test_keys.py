"""The keys for TCP: made once, private, read back, and the settings that need them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from pegaflow.actors.peer.door import door_of
from pegaflow.actors.runtime.tcp import TcpPlan, tcp_of
from pegaflow.client import Client, curve
from pegaflow.core.directory.plan import PeerPlan, Place
from pegaflow.core.errors import UserError
from pegaflow.service import config, keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path / "keys", ["one", "two"])
    return tmp_path / "keys"


def test_client_files_fit_the_server(folder: Path) -> None:
    server = keys.ServerKeys(folder)
    one, two = (curve.load(str(folder / f"client-{name}.toml")) for name in ("one", "two"))
    assert server.allowed() == {one.public, two.public} and one.public != two.public
    assert one.server == two.server == server.public
    assert zmq.curve_public(one.secret) == one.public
    assert zmq.curve_public(server.secret) == server.public
    assert one.secret.decode() not in repr(one)


def test_keys_are_private(folder: Path) -> None:
    old = os.umask(0)
    try:
        keys.generate(folder, ["three"])
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.toml")}
    assert modes == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_more_clients_later_and_fewer(folder: Path) -> None:
    server = keys.ServerKeys(folder)
    keys.generate(folder, ["three"])
    assert keys.ServerKeys(folder).public == server.public
    assert len(server.allowed()) == 3
    (folder / keys.ALLOWED / "one.toml").unlink()
    (folder / keys.ALLOWED / "two.toml").write_text("public = 'x'")
    assert server.allowed() == {curve.load(str(folder / "client-three.toml")).public}


@pytest.mark.parametrize(
    ("names", "line"),
    [(["one"], "one has a key in"), (["../x"], "cannot name a client"), ([""], "cannot name")],
)
def test_a_name_is_taken_or_none(folder: Path, names: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        keys.generate(folder, names)


def test_a_folder_that_is_a_file(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot write .*server.toml"):
        keys.generate(folder / "server.toml", ["x"])


def test_a_server_key_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / keys.SERVER).chmod(0o644)
    with pytest.raises(UserError, match="mode 0644: others could read the key; chmod 600"):
        keys.ServerKeys(folder)


def test_a_folder_without_keys_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*; make keys with `pegaflow keygen"):
        keys.ServerKeys(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "public = 1", "public = 'short'", "public = '" + "~" * 40 + "'", "\xff", "public ="],
)
def test_what_is_no_key_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="is no key file") as caught:
        curve.read(str(path), "public")
    assert "\n" not in str(caught.value)


def test_a_client_with_a_bad_key_file_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the key file"):
        Client("e", bytes(16), endpoint="tcp://127.0.0.1:1", curve=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("addr", "curved", "insecure", "line"),
    [
        ("127.0.0.1:1", False, False, "--addr 127.0.0.1:1 needs --curve-dir .*pegaflow keygen DIR"),
        ("127.0.0.1:1", True, True, "--curve-dir and --insecure-tcp exclude each other"),
        ("10.0.0.1:1", False, True, "--insecure-tcp lets everybody in who reaches 10.0.0.1:1"),
        ("0.0.0.0:1", False, True, "--insecure-tcp lets everybody in"),
        ("[::]:1", False, True, "--insecure-tcp lets everybody in"),
    ],
)
def test_tcp_that_would_let_strangers_in_is_refused(
    folder: Path, addr: str, curved: bool, insecure: bool, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        tcp_of(TcpPlan(addr, str(folder) if curved else None, insecure))


def test_tcp_that_is_safe_is_served(folder: Path) -> None:
    assert tcp_of(TcpPlan(None, str(folder), False)) is None
    curved = tcp_of(TcpPlan("0.0.0.0:7", str(folder), False))
    assert curved is not None and (curved.host, curved.port) == ("0.0.0.0", 7)
    assert curved.keys is not None
    plain = tcp_of(TcpPlan("[::1]:7", None, True))
    assert plain is not None and (plain.host, plain.keys) == ("::1", None)


@pytest.mark.parametrize(
    ("said", "addr"),
    [
        ("127.0.0.1:50055", "127.0.0.1:50055"),
        ("tcp://0.0.0.0:7", "0.0.0.0:7"),
        ("localhost:7", "127.0.0.1:7"),
        ("[::1]:007", "[::1]:7"),
    ],
)
def test_an_address_to_listen_on(said: str, addr: str) -> None:
    assert config.load({"addr": said}, {}).addr == addr


@pytest.mark.parametrize(
    "said", ["50055", "127.0.0.1", "127.0.0.1:", "host:7", "::1:7", "[10.0.0.1]:7", "1.2.3.4:65536"]
)
def test_what_is_no_address_to_listen_on(said: str) -> None:
    with pytest.raises(UserError, match="--addr: .* is not an IP address and a port"):
        config.load({"addr": said}, {})


def test_yes_and_no(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("insecure_tcp = true\n")
    assert config.load({}, {}, str(tmp_path / "c.toml")).insecure_tcp is True
    assert (
        config.load({"insecure_tcp": False}, {"PEGAFLOW_INSECURE_TCP": "1"}).insecure_tcp is False
    )
    with pytest.raises(UserError, match="PEGAFLOW_INSECURE_TCP: 'maybe' is none of true, false"):
        config.load({}, {"PEGAFLOW_INSECURE_TCP": "maybe"})


@pytest.mark.parametrize("part", [".", keys.ALLOWED])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, part: str, mode: int) -> None:
    (folder / part).chmod(mode)
    line = f"has mode {mode:04o} and owner .*: others could let themselves in; .* chmod 700"
    with pytest.raises(UserError, match=line):
        keys.ServerKeys(folder)
    with pytest.raises(UserError, match=line):
        keys.generate(folder, ["three"])


def test_a_folder_that_others_could_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    keys.generate(tmp_path / "open" / "keys", ["one"])
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UserError, match="open has mode 0777: others could replace .*keys"):
        keys.ServerKeys(tmp_path / "open" / "keys")
    (tmp_path / "open").chmod(0o1777)
    assert keys.ServerKeys(tmp_path / "open" / "keys").allowed()


def test_who_may_only_read_a_folder_is_no_danger(folder: Path) -> None:
    folder.chmod(0o755)
    assert len(keys.ServerKeys(folder).allowed()) == 2


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o602])
def test_a_clients_secret_that_others_may_read_or_replace_is_refused(
    folder: Path, mode: int
) -> None:
    path = folder / "client-one.toml"
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o}: others could read the key; chmod 600"):
        curve.load(str(path))
    with pytest.raises(ValueError, match="chmod 600 it"):
        Client("e", bytes(16), endpoint="tcp://127.0.0.1:1", curve=str(path))
    path.chmod(0o640)
    assert curve.load(str(path)).secret


def loose(path: Path) -> None:
    """A key that others may replace."""
    path.write_text((path.parent / "one.toml").read_text())
    path.chmod(0o666)


JUNK: dict[str, Callable[[Path], object]] = {
    "notes.txt is no NAME.toml": lambda path: path.write_text("x"),
    "one.toml~ is no NAME.toml": lambda path: path.write_text("public = 'x'"),
    "short.toml is no file with a public key": lambda path: path.write_text("public = 'x'"),
    "none.toml is no file with a public key": lambda path: path.symlink_to("nowhere"),
    "folder.toml is no file": lambda path: path.mkdir(),
    "pipe.toml is no file": lambda path: os.mkfifo(path),
    "loose.toml may be written by others: chmod 600 it": loose,
    "client.toml holds a client's secret, which belongs to the client alone: take it out": (
        lambda path: path.write_text((path.parents[1] / "client-one.toml").read_text())
    ),
}


@pytest.mark.parametrize("line", JUNK)
def test_junk_among_the_keys_is_named_and_lets_nobody_in(folder: Path, line: str) -> None:
    before = keys.ServerKeys(folder).allowed()
    assert keys.ignored(folder) == ""
    JUNK[line](folder / keys.ALLOWED / line.split()[0])
    assert keys.ignored(folder) == line
    assert keys.ServerKeys(folder).allowed() == before


def test_all_junk_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(20):
        (folder / keys.ALLOWED / f"junk{n:02}").touch()
    (folder / keys.ALLOWED / ".hidden").touch()
    keys.warn(folder)
    said = "".join(capsys.readouterr())
    assert said.count("keys_ignored") == 1 and "junk00 is no NAME.toml" in said
    assert f"and {20 - keys.IGNORED_SHOWN} more" in said and "hidden" not in said


@pytest.mark.parametrize(
    ("part", "mode", "line"),
    [
        (".", 0o777, "has mode 0777 and owner .*: others could let themselves in"),
        (keys.ALLOWED, 0o772, "has mode 0772 and owner .*: others could let themselves in"),
        (keys.SERVER, 0o644, "server.toml has mode 0644: others could read the key; chmod 600 it"),
        ("client-one.toml", 0o604, "client-one.toml has mode 0604: others could read the key"),
    ],
)
def test_a_mode_that_changes_while_the_service_runs_is_one_line(
    folder: Path, part: str, mode: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = keys.ServerKeys(folder)
    known = next(iter(server.allowed()))
    assert server.callback("", known) and keys.exposed(folder) == ""
    (folder / part).chmod(mode)
    for _ in range(3):
        assert server.callback("", known) and not server.callback("", b"x" * 40)
    said = "".join(capsys.readouterr())
    assert said.count("keys_exposed") == 1 and re.search(line, said)
    keys.warn(folder)
    said = "".join(capsys.readouterr())
    assert said.count("keys_exposed") == 1 and re.search(line, said)


HOSTS = ["anna", "bert", "carl"]


def plan(folder: Path, **other: Any) -> PeerPlan:
    told: dict[str, Any] = {
        "peer_listen": "0.0.0.0:7000",
        "peers": ("bert@10.0.0.2:7000",),
        "peer_keys": str(folder / "anna"),
        "insecure_peers": False,
    }
    return PeerPlan(**{**told, **other})


def test_each_host_has_a_folder_that_knows_every_other_one(tmp_path: Path) -> None:
    folders = keys.generate_hosts(tmp_path, HOSTS)
    assert folders == [tmp_path / name for name in HOSTS]
    known = {name: keys.ServerKeys(tmp_path / name) for name in HOSTS}
    for name, own in known.items():
        others = [other for other in HOSTS if other != name]
        assert own.allowed() == {known[other].public for other in others}
        assert [own.key_of(other) for other in others] == [known[other].public for other in others]
        assert own.key_of(name) is None and own.key_of("../bert") is None
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    with pytest.raises(UserError, match="anna is there already"):
        keys.generate_hosts(tmp_path, ["anna"])
    with pytest.raises(UserError, match="cannot name a host"):
        keys.generate_hosts(tmp_path, ["../x"])


def test_the_door_for_other_hosts_has_our_keys_and_theirs(tmp_path: Path) -> None:
    keys.generate_hosts(tmp_path, HOSTS)
    tcp, places = door_of(plan(tmp_path))
    assert tcp.keys is not None and (tcp.host, tcp.port) == ("0.0.0.0", 7000)
    bert = keys.ServerKeys(tmp_path / "bert")
    assert places == (Place("tcp://10.0.0.2:7000", bert.public),)
    loose = plan(
        tmp_path,
        peer_listen="127.0.0.1:7000",
        peer_keys=None,
        peers=("[::1]:7",),
        insecure_peers=True,
    )
    tcp, places = door_of(loose)
    assert tcp.keys is None and places == (Place("tcp://[::1]:7", b""),)
    assert places[0].where == "::1"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"insecure_peers": True}, "exclude each other"),
        ({"peer_keys": None}, "--peer-listen 0.0.0.0:7000 needs --peer-keys"),
        ({"peer_keys": None, "insecure_peers": True}, "lets everybody in who reaches 0.0.0.0:7000"),
        ({"peers": ("10.0.0.2:7000",)}, "say NAME@10.0.0.2:7000"),
        ({"peers": ("dora@10.0.0.2:7000",)}, "there is no key of dora"),
    ],
)
def test_a_door_that_would_let_strangers_in_is_refused(
    tmp_path: Path, other: dict[str, Any], why: str
) -> None:
    keys.generate_hosts(tmp_path, HOSTS)
    with pytest.raises(UserError, match=re.escape(why)):
        door_of(plan(tmp_path, **other))
