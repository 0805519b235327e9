"""The keys of a service that listens on TCP, in one folder that `pegaflow keygen` makes:

    server.toml          the service's pair; stays there
    allowed/NAME.toml    the public key of each client that is let in: remove it to lock NAME out
    client-NAME.toml     for the client: its pair and the server's public key (client/curve.py);
                         carry it to the client's host and delete it here

All are of mode 0600.  Whoever can write to the folder lets himself in, so one that others may write
to is refused (but for a file system that is read-only anyway, as Kubernetes mounts secrets), and a
file of `allowed` that others may write to counts for nothing.  What is no key there is ignored, and
named once.  The service reads `allowed` at each handshake (which nobody reaches who does not know
the server's public key), so a client can be added or locked out without a restart; a connection
that is already open stays.

Modes change while a service runs.  With each handshake and on SIGHUP it looks again at the folder
and at every secret in it, and says what others could read or replace (`exposed`); it goes on, for
who may write to the folder can still make no file of ours, and only those let anybody in.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import zmq

from pegaflow.client import curve
from pegaflow.core.errors import UserError
from pegaflow.wire.units import Count

from . import logs

SERVER = "server.toml"
ALLOWED = "allowed"

IGNORED_SHOWN: Count = 8
"""Names in one line of the log; the rest is counted."""

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
        _check_private(folder)
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


def generate_hosts(folder: Path, names: list[str]) -> list[Path]:
    """Make a folder for each host: its own pair, and the public key of every other one.

    Returns:
        These folders, one to be carried to each host.

    Raises:
        UserError: a name cannot be used or is taken, or the folder cannot be written.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot name a host: use letters, digits, '.', '_', '-'")
        if (folder / name).exists():
            raise UserError(f"{folder / name} is there already: name another folder")
    pairs = {name: zmq.curve_keypair() for name in names}
    try:
        for name, (public, secret) in pairs.items():
            own = folder / name
            (own / ALLOWED).mkdir(mode=0o700, parents=True)
            own.chmod(0o700)
            _write(own / SERVER, public=public, secret=secret)
            for other in names:
                if other != name:
                    _write(own / ALLOWED / f"{other}.toml", public=pairs[other][0])
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
    return [folder / name for name in names]


def _write(path: Path, **keys: bytes) -> None:
    text = "".join(f"{name} = '{key.decode()}'\n" for name, key in keys.items())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)


def _pair(folder: Path) -> tuple[bytes, bytes]:
    try:
        public, secret = curve.read(str(folder / SERVER), "public", "secret")
    except curve.Exposed as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"{error}; make keys with `pegaflow keygen {folder}`") from error
    return public, secret


class ServerKeys:
    """The server's pair, and who is let in.

    Raises:
        UserError: the folder has no keys, or others may read or replace them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public, self.secret = _pair(folder)
        _check_private(folder)

        self._said = ""  # what was exposed at the last handshake

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client is let in; the form that zmq.auth wants.

        Args:
            domain: of no meaning here.
            key: the client's public key, in Z85.
        """
        before, self._said = self._said, exposed(self.folder)
        if self._said != before:
            _warn_of_exposed(self._said)
        return key in self.allowed()

    def key_of(self, name: str) -> bytes | None:
        """The public key of whoever is let in under this name; None: nobody is."""
        return _public(self.folder / ALLOWED / f"{name}.toml")[0] if _NAME.fullmatch(name) else None

    def allowed(self) -> set[bytes]:
        """Public keys of the clients that are let in, as of now; a broken file lets nobody in."""
        return {key for path in _entries(self.folder) if (key := _public(path)[0]) is not None}


def ignored(folder: Path) -> str:
    """What is in `allowed` and lets nobody in or does not belong there, and why, in one line; empty
    if there is nothing of that kind."""
    found = [f"{path.name} {why}" for path in _entries(folder) if (why := _public(path)[1])]
    return _listed(found)


def exposed(folder: Path) -> str:
    """What others could read or replace, of the folder and of the secrets in it, in one line; empty
    if there is nothing of that kind."""
    found = []
    try:
        _check_private(folder)
    except UserError as error:
        found.append(str(error))
    for path in (folder / SERVER, *sorted(folder.glob("client-*.toml"))):
        try:
            curve.read(str(path), "secret")
        except curve.Exposed as error:
            found.append(str(error))
        except ValueError:
            pass  # no secret of ours
    return _listed(found)


def _listed(found: list[str]) -> str:
    more = len(found) - IGNORED_SHOWN
    return "; ".join(found[:IGNORED_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def warn(folder: Path) -> None:
    """One line of the log if something is ignored, and one if something is exposed."""
    what = ignored(folder)
    if what:
        logs.get_logger().warning("keys_ignored", folder=str(folder / ALLOWED), what=what)
    _warn_of_exposed(exposed(folder))


def _warn_of_exposed(what: str) -> None:
    if what:
        logs.get_logger().warning("keys_exposed", what=what)


def _entries(folder: Path) -> list[Path]:
    """What is in `allowed`, but for hidden files."""
    try:
        return sorted(p for p in (folder / ALLOWED).iterdir() if not p.name.startswith("."))
    except OSError:
        return []


def _public(path: Path) -> tuple[bytes | None, str]:
    """The key in this file, if it counts, and what is wrong with the file, if something is."""
    if path.suffix != ".toml":
        return None, "is no NAME.toml"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None, "is no file"
        (key,) = curve.read(str(path), "public")
    except (ValueError, OSError):
        return None, "is no file with a public key"
    if _others_may_write(found, path):
        return None, "may be written by others: chmod 600 it"
    try:
        curve.read(str(path), "secret")
    except curve.Exposed:
        pass
    except ValueError:
        return key, ""
    return key, "holds a client's secret, which belongs to the client alone: take it out"


def _others_may_write(found: os.stat_result, path: Path) -> bool:
    foreign = found.st_uid not in (os.getuid(), 0)
    return (foreign or bool(found.st_mode & 0o022)) and not _read_only(path)


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _check_private(folder: Path) -> None:
    """That nobody else can put a key into this folder, or another folder in its place.

    Raises:
        UserError: somebody can.
    """
    try:
        for part in (folder, folder / ALLOWED):
            found = part.stat()
            if _others_may_write(found, part):
                mode = stat.S_IMODE(found.st_mode)
                raise UserError(
                    f"{part} has mode {mode:04o} and owner {found.st_uid}: others could let "
                    "themselves in; make it yours and chmod 700 it"
                )
        for parent in folder.resolve().parents:
            mode = stat.S_IMODE(parent.stat().st_mode)
            if mode & 0o002 and not mode & stat.S_ISVTX and not _read_only(parent):
                raise UserError(
                    f"{parent} has mode {mode:04o}: others could replace {folder}; chmod o-w it"
                )
    except OSError as error:
        raise UserError(f"cannot look at {error.filename}: {error.strerror}") from error
