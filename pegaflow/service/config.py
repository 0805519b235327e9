"""Settings: file < environment < flag, each setting under one name everywhere.

`pool_size` is `pool_size = "30GiB"` in the file, PEGAFLOW_POOL_SIZE in the environment and
`--pool-size` on the command line: settings.py declares them all, and the command line's options are
made from that.  The file is TOML and is read only when it is named (`--config` or PEGAFLOW_CONFIG).
An unknown key is an error that names the nearest right one: a mistyped setting which is silently
ignored costs an afternoon.  An unknown variable may be somebody else's, who also calls his things
PEGAFLOW_...: it is named in a warning (`strangers`).
"""

from __future__ import annotations

import difflib
import enum
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields

from pegaflow.client import servicelinks
from pegaflow.core.errors import UserError

from . import rundir, sizes
from .settings import SETTINGS, Settings

PREFIX = "PEGAFLOW_"

CONNECTORS = ("endpoint", "host", "port", "curve", "owner")
"""What an engine reads (connectors/vllm/endpoint.py): no mistake in the same shell."""

_TESTS = re.compile(r"TEST_\w+")


class Source(enum.StrEnum):
    """Who may say what a setting is; the later ones win."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    kind: Source
    #: The file's path, the variable or the flag; empty for a default.
    name: str = ""


@dataclass(frozen=True)
class _Said:
    where: str  # for an error: "spares in /etc/pegaflow.toml", "PEGAFLOW_SPARES", "--spares"
    value: object
    origin: Origin


def load(
    flags: Mapping[str, object],
    env: Mapping[str, str],
    config: str | None = None,
) -> Settings:
    """The settings in force.

    Args:
        flags: by the setting's name; None or an empty list: not given.
        env: the environment.
        config: the --config flag; None: PEGAFLOW_CONFIG of `env` may name a file.

    Raises:
        UserError: a setting is unknown, or its value cannot be used, in one line that says where.
    """
    return trace(flags, env, config)[0]


def trace(
    flags: Mapping[str, object],
    env: Mapping[str, str],
    config: str | None = None,
) -> tuple[Settings, dict[str, Origin]]:
    """The settings in force, and where they come from.  Arguments and errors are those of `load`.

    Returns:
        The settings, and the origin of every one of them, by name.
    """
    path = config or env.get(f"{PREFIX}CONFIG")
    said: dict[str, _Said] = {}
    if path:
        said |= _from_file(path)
    said |= _from_environment(env)
    for key, value in flags.items():
        if value is not None and value != []:
            said[key] = _Said(flag(key), value, Origin(Source.FLAG, flag(key)))
    for key, saying in said.items():
        if key not in SETTINGS:
            raise _unknown(key, saying.where)
    parsed = {key: _parse(key, saying) for key, saying in said.items()}
    named = parsed.pop("run_dir", None)
    run_dir = rundir.resolve(
        None if named is None else str(named), env, os.getuid(), tempfile.gettempdir()
    )
    settings = Settings(run_dir, **parsed)  # type: ignore[arg-type]
    for key, setting in SETTINGS.items():
        if setting.needs and getattr(settings, key) and not getattr(settings, setting.needs):
            raise UserError(
                f"{said[key].where}: there is no SSD tier without {flag(setting.needs)}"
            )
    default = Origin(Source.DEFAULT)
    return settings, {key: said[key].origin if key in said else default for key in SETTINGS}


def _from_file(path: str) -> dict[str, _Said]:
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {str(error).splitlines()[0]}") from error
    origin = Origin(Source.FILE, os.path.abspath(path))
    return {key: _Said(f"{key} in {path}", value, origin) for key, value in table.items()}


def _from_environment(env: Mapping[str, str]) -> dict[str, _Said]:
    found: dict[str, _Said] = {}
    for key in SETTINGS:
        name = PREFIX + key.upper()
        if env.get(name):
            found[key] = _Said(name, env[name], Origin(Source.ENVIRONMENT, name))
    return found


def strangers(env: Mapping[str, str]) -> str:
    """The variables that begin like ours and are nobody's that we know, in one line for a warning;
    '' without any.  They may be somebody else's, so they stop nothing; or a setting, mistyped."""
    known = [*SETTINGS, "config", *CONNECTORS]
    links = servicelinks.find(env)
    found = []
    for name, value in sorted(env.items()):
        rest = name.removeprefix(PREFIX)
        if rest == name or not value or rest.lower() in known and rest.isupper():
            continue
        if name in links or _TESTS.fullmatch(rest):
            continue
        near = difflib.get_close_matches(rest.lower(), known, n=1, cutoff=0.6)
        found.append(name + (f" (did you mean {PREFIX}{near[0].upper()}?)" if near else ""))
    return ", ".join(found)


def flag(key: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + key.replace("_", "-")


def variable(key: str) -> str:
    """The environment's spelling of a setting."""
    return PREFIX + key.upper()


def default(key: str) -> str:
    """What a setting is if nobody says anything, for a person."""
    (value,) = (field.default for field in fields(Settings) if field.name == key)
    if value is MISSING or value in (None, ()):
        return SETTINGS[key].unset
    if isinstance(value, bool):
        return str(value).lower()
    return sizes.show(value) if SETTINGS[key].metavar == "SIZE" else str(value)


def _unknown(key: str, where: str) -> UserError:
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    if not near:
        return UserError(f"unknown setting {where}; there are {', '.join(sorted(SETTINGS))}")
    right = near[0]
    if where.startswith("--"):
        right = flag(right)
    return UserError(f"unknown setting {where}; did you mean {right}?")


def _parse(key: str, said: _Said) -> object:
    try:
        return SETTINGS[key].parse(said.value)
    except UserError as error:
        raise UserError(f"{said.where}: {error}") from error
