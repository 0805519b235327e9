"""Settings: file < environment < flag, each setting under one name everywhere.

`pool_size` is `pool_size = "30GiB"` in the file, PEGAFLOW_POOL_SIZE in the environment and
`--pool-size` on the command line.  The file is TOML and is read only when it is named (`--config`
or PEGAFLOW_CONFIG).  An unknown key is an error that names the nearest right one: a mistyped
setting which is silently ignored costs an afternoon.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pegaflow import limits, rundir, sizes
from pegaflow.errors import UserError

PREFIX = "PEGAFLOW_"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "console", "json")

# More warm sessions than any host has engines would only eat memory.
SPARES_MAX = 64

# The connector's, which the engine reads, and our tests': no mistake in the same shell.
_NOT_OURS = re.compile(r"CONFIG|ENDPOINT|MODE|TIMEOUT_MS|TEST_\w+")
# What Kubernetes puts into every pod when a Service is called `pegaflow...`.
_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")


@dataclass(frozen=True)
class Settings:
    #: Absolute; not yet created or checked (`rundir.prepare` does that).
    run_dir: Path
    #: Bytes as asked for, or None for the default of `poolsize`.
    pool_size: int | None = None
    #: A power of two, a multiple of the 4 KiB page.
    extent_size: int = limits.EXTENT_SIZE
    #: Sessions kept ready for the next engine.
    spares: int = limits.SPARES
    #: One of LOG_LEVELS.
    log_level: str = "info"
    #: One of LOG_FORMATS.
    log_format: str = "auto"


def load(
    flags: Mapping[str, object],
    env: Mapping[str, str],
    config: str | None = None,
) -> Settings:
    """The settings in force.  A flag that is None was not given; `config` is the --config flag."""
    path = config or env.get(f"{PREFIX}CONFIG")
    said: dict[str, tuple[str, object]] = {}
    if path:
        said |= _from_file(path)
    said |= _from_environment(env)
    said |= {key: (_flag(key), value) for key, value in flags.items() if value is not None}
    for key, (where, _) in said.items():
        if key not in _PARSERS:
            raise _unknown(key, where)
    parsed = {key: _parse(key, where, value) for key, (where, value) in said.items()}
    named = parsed.pop("run_dir", None)
    run_dir = rundir.resolve(
        None if named is None else str(named), env, os.getuid(), tempfile.gettempdir()
    )
    return Settings(run_dir, **parsed)  # type: ignore[arg-type]


def _from_file(path: str) -> dict[str, tuple[str, object]]:
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {str(error).splitlines()[0]}") from error
    return {key: (f"{key} in {path}", value) for key, value in table.items()}


def _from_environment(env: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    for name, value in env.items():
        rest = name.removeprefix(PREFIX)
        if rest == name or not value or _NOT_OURS.fullmatch(rest) or _KUBERNETES.fullmatch(rest):
            continue
        found[rest.lower()] = (name, value)
    return found


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _unknown(key: str, where: str) -> UserError:
    near = difflib.get_close_matches(key, _PARSERS, n=1, cutoff=0.5)
    if not near:
        return UserError(f"unknown setting {where}; there are {', '.join(sorted(_PARSERS))}")
    right = near[0]
    if where.startswith(PREFIX):
        right = PREFIX + right.upper()
    elif where.startswith("--"):
        right = _flag(right)
    return UserError(f"unknown setting {where}; did you mean {right}?")


def _parse(key: str, where: str, value: object) -> object:
    try:
        return _PARSERS[key](value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _path(value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise UserError(f"not a path: {value!r}")
    return str(value)


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"not a size: {value!r}")
    return sizes.parse(value)


def _extent(value: object) -> int:
    size = _size(value)
    if size & (size - 1) or size < limits.MIB:
        raise UserError(f"{value} is not a power of two of at least 1 MiB")
    return size


def _spares(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal()) or int(text) > SPARES_MAX:
        raise UserError(f"{value!r} is not a number from 0 to {SPARES_MAX}")
    return int(text)


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = str(value).lower()
        if text not in allowed:
            raise UserError(f"{value!r} is none of {', '.join(allowed)}")
        return text

    return parse


_PARSERS: dict[str, Callable[[object], object]] = {
    "run_dir": _path,
    "pool_size": _size,
    "extent_size": _extent,
    "spares": _spares,
    "log_level": _one_of(LOG_LEVELS),
    "log_format": _one_of(LOG_FORMATS),
}
