"""The keys of a service that listens on TCP, in one folder that `pegaflow keygen` makes:

    server.toml          the service's pair; stays there
    allowed/NAME.toml    the public key of each client that is let in: remove it to lock NAME out
    client-NAME.toml     for the client: its pair and the server's public key (client/curve.py);
                         carry it to the client's host and delete it here

All are of mode 0600.  The service reads `allowed` at each handshake (which nobody reaches who does
not know the server's public key), so a client can be added or locked out without a restart; a
connection that is already open stays.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import zmq

from pegaflow.client import curve
from pegaflow.errors import UserError

SERVER = "server.toml"
ALLOWED = "allowed"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def generate(folder: Path, names: list[str]) -> list[Path]:
    """Make the server's pair if there is none, and one client pair per name; the client files.

    Raises:
        UserError: a name cannot be used or is taken, or the folder cannot be written.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot name a client: use letters, digits, '.', '_', '-'")
        if (folder / ALLOWED / f"{name}.toml").exists():
            raise UserError(f"{name} has a key in {folder} already: choose another name")
    try:
        for part in (folder, folder / ALLOWED):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / SERVER).exists():
            public, secret = zmq.curve_keypair()
            _write(folder / SERVER, public=public, secret=secret)
        server, _ = _pair(folder)
        written = []
        for name in names:
            public, secret = zmq.curve_keypair()
            path = folder / f"client-{name}.toml"
            _write(path, public=public, secret=secret, server=server)
            _write(folder / ALLOWED / f"{name}.toml", public=public)
            written.append(path)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
    return written


def _write(path: Path, **keys: bytes) -> None:
    text = "".join(f"{name} = '{key.decode()}'\n" for name, key in keys.items())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)


def _pair(folder: Path) -> tuple[bytes, bytes]:
    try:
        public, secret = curve.read(str(folder / SERVER), "public", "secret")
    except ValueError as error:
        raise UserError(f"{error}; make keys with `pegaflow keygen {folder}`") from error
    return public, secret


class ServerKeys:
    """The server's pair, and who is let in.

    Raises:
        UserError: the folder has no keys, or others may read them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public, self.secret = _pair(folder)
        mode = stat.S_IMODE((folder / SERVER).stat().st_mode)
        if mode & 0o007:
            raise UserError(
                f"{folder / SERVER} has mode {mode:04o}: others could read the key; chmod 600 it"
            )

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client of this public key (Z85) is let in; the form that zmq.auth wants."""
        return key in self.allowed()

    def allowed(self) -> set[bytes]:
        """Public keys of the clients that are let in, as of now; a broken file lets nobody in."""
        return {key for path in (self.folder / ALLOWED).glob("*.toml") for key in _public(path)}


def _public(path: Path) -> list[bytes]:
    try:
        return curve.read(str(path), "public")
    except ValueError:
        return []
