"""The key file of a TCP client: its own pair and the server's public key, as `pegaflow keygen`
wrote it.

A TOML file of three keys in Z85 text (40 characters each): `public`, `secret`, `server`.  A file
with a secret that every user of the host may read is refused: the secret is none.
"""

from __future__ import annotations

import os
import stat
import struct
import tomllib
from dataclasses import dataclass, field

from zmq.utils import z85

from pegaflow.wire.units import Count

KEY_CHARS: Count = 40
"""A CURVE key of 32 bytes in Z85."""


class Exposed(ValueError):
    """A secret that others may read."""


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs to be let in, and to know that it talks to its server; Z85 text."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes


def load(path: str) -> ClientKeys:
    """The keys in a client's key file.

    Raises:
        ValueError: it cannot be read, or others may read it, or it is no such file, in one line.
    """
    return ClientKeys(*read(path, "public", "secret", "server"))


def read(path: str, *names: str) -> list[bytes]:
    """These keys of a key file, as `load` reads it.

    Args:
        path: the key file.
        *names: of the keys that are wanted.

    Returns:
        Z85 text, in the order of the names.

    Raises:
        ValueError: as `load`.
        Exposed: "secret" is wanted, and every user of the host may read the file.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            table = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"cannot read the key file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no key file: it is not TOML") from error
    found = []
    for name in names:
        text = table.get(name)
        if not isinstance(text, str) or not is_key(text):
            raise ValueError(f"{path} is no key file for this: it has no key {name!r}")
        found.append(text.encode())
    if "secret" in names and mode & 0o007:
        raise Exposed(f"{path} has mode {mode:04o}: others could read the key; chmod 600 it")
    return found


def is_key(text: str) -> bool:
    """Whether this is 32 bytes in Z85."""
    if len(text) != KEY_CHARS or not text.isascii():
        return False
    try:
        return len(z85.decode(text.encode())) == 32
    except (KeyError, ValueError, struct.error):
        return False
