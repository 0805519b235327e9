"""What may be said as the value of a setting: from text, or from TOML, to a value.

Each of these raises `UserError` with one line for people.
"""

from __future__ import annotations

import enum
import ipaddress
import os
from collections.abc import Callable
from typing import TypeVar

from pegaflow.core.errors import UserError
from pegaflow.core.limits import MIB
from pegaflow.core.segments import plan as flushplan
from pegaflow.wire.gpu import device_name
from pegaflow.wire.peer import HOSTS_MAX
from pegaflow.wire.units import Bytes

from . import sizes
from .paths import spelled

PATH_MAX: Bytes = 3800
"""Bytes of a directory's path: Linux takes 4096 with the name of a file behind it."""

NO_HTTP = "none"
"""What is said for no HTTP at all."""

_Word = TypeVar("_Word", bound=enum.StrEnum)

_SPOKEN = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def path(value: object) -> str:
    """A path, as all processes spell it."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise UserError(f"not a path: {value!r}")
    return spelled(str(value))


def folders(value: object) -> tuple[str, ...]:
    """Directories as a list, or as one text with colons between them."""
    given = value if isinstance(value, list | tuple) else path(value).split(":")
    paths = tuple(spelled(os.path.abspath(path(one))) for one in given)
    for one in paths:
        if "\n" in one or len(os.fsencode(one)) > PATH_MAX:
            raise UserError(f"not a path: {one!r}")
    real = [os.path.realpath(one) for one in paths]
    twice = next((p for p, r in zip(paths, real, strict=True) if real.count(r) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name one directory per device")
    return paths


def gpus(value: object) -> tuple[str, ...]:
    """GPUs as a list, or as one text with commas between them."""
    given = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        names = tuple(device_name(str(one)) for one in given)
    except ValueError:
        how = "a number of `nvidia-smi -L`, a UUID (GPU-...) or a PCI bus id (0000:65:00.0)"
        raise UserError(f"{value!r} is no list of GPUs, each {how}") from None
    if len(set(names)) != len(names):
        raise UserError(f"{value!r} names a GPU twice")
    return names


def capacity(value: object) -> int:
    """Bytes of a log."""
    bytes_ = size(value)
    if bytes_ < flushplan.CAPACITY_LEAST:
        raise UserError(f"{value} is less than {sizes.show(flushplan.CAPACITY_LEAST)}")
    return bytes_


def share(value: object) -> float:
    """A part of the whole: 0.5 or 50%."""
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        share = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise UserError(f"{value!r} is no part of the whole, such as 0.5 or 50%")
    return share


def size(value: object) -> int:
    """Bytes: 30GiB, 30gb, 512MB, or a number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"not a size: {value!r}")
    return sizes.parse(value)


def size_of_extent(value: object) -> int:
    """Bytes: a power of two."""
    bytes_ = size(value)
    if bytes_ & (bytes_ - 1) or bytes_ < MIB:
        raise UserError(f"{value} is not a power of two of at least 1 MiB")
    return bytes_


def host_port(value: object) -> str:
    """An IP address and a port."""
    text = str(value).strip().removeprefix("tcp://")
    host, colon, port = text.rpartition(":")
    bare = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        ip = None
    bracketed = host.startswith("[") and host.endswith("]")
    if ip is None or bracketed != (ip.version == 6) or not _is_port(port):
        raise UserError(f"{value!r} is not an IP address and a port, such as 127.0.0.1:50055")
    return f"[{ip}]:{int(port)}" if bracketed else f"{ip}:{int(port)}"


def places(value: object) -> tuple[str, ...]:
    """Other hosts as a list, or as one text with commas between them: NAME@host:port each, or
    host:port."""
    given = value if isinstance(value, list | tuple) else str(value).split(",")
    found = tuple(str(one).strip() for one in given)
    for one in found:
        name, at, where = one.rpartition("@")
        host, _, port = where.rpartition(":")
        named = host.startswith("[") == host.endswith("]") and (":" not in host or host[0] == "[")
        if not (host and named and _is_port(port) and bool(name) == bool(at)):
            raise UserError(f"{one!r} is not NAME@host:port or host:port")
    if len({one.rpartition("@")[2] for one in found}) != len(found):
        raise UserError(f"{value!r} names a place twice")
    if len(found) > HOSTS_MAX:
        raise UserError(f"{len(found)} other hosts are too many: at most {HOSTS_MAX}")
    return found


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 1 << 16


def yes_or_no(value: object) -> bool:
    """true or false."""
    said = str(value).lower()
    if said not in _SPOKEN:
        raise UserError(f"{value!r} is none of true, false")
    return _SPOKEN[said]


def number(least: int, most: int) -> Callable[[object], int]:
    """A parser for whole numbers within these bounds, both included."""

    def parse(value: object) -> int:
        text = str(value)
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise UserError(f"{value!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def http_addr(value: object) -> str:
    """A host and a port, or none."""
    text = str(value).strip()
    if text.lower() == NO_HTTP:
        return NO_HTTP
    host, colon, port = text.rpartition(":")
    named = host.startswith("[") == host.endswith("]") and (":" not in host or host[0] == "[")
    if not (host and named and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise UserError(f"{text!r} is not host:port, such as localhost:80, and not {NO_HTTP}")
    return text


def one_of(words: type[_Word]) -> Callable[[object], _Word]:
    """One of these words."""

    def parse(value: object) -> _Word:
        try:
            return words(str(value).lower())
        except ValueError:
            raise UserError(f"{value!r} is none of {', '.join(words)}") from None

    return parse
