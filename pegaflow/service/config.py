"""Settings: file < environment < flag, each setting under one name everywhere.

`pool_size` is `pool_size = "30GiB"` in the file, PEGAFLOW_POOL_SIZE in the environment and
`--pool-size` on the command line: SETTINGS has them all, and the command line's options are made
from it.  The file is TOML and is read only when it is named (`--config`
or PEGAFLOW_CONFIG).  An unknown key is an error that names the nearest right one: a mistyped
setting which is silently ignored costs an afternoon.  An unknown variable may be somebody else's,
who also calls his things PEGAFLOW_...: it is named in a warning (`strangers`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from pegaflow.core import limits
from pegaflow.core.errors import UserError
from pegaflow.core.segments import plan as flushplan

from . import rundir, sizes
from .paths import spelled

PREFIX = "PEGAFLOW_"
ADMISSIONS = ("all", "reused")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "console", "json")

SPARES_MAX = 64
"""More warm sessions than any host has engines would only eat memory."""

COPY_THREADS_MAX = 16
"""Memory is full of work long before; each thread is a core that the engine does not have."""

SSD_DEPTH_MAX = 64
"""Batches on their way to the log: half a gigabyte that cannot be evicted meanwhile."""

SSD_INFLIGHT_MAX = 128
"""Requests at a time: no disk is faster with more, and each is a thread."""

PATH_MAX = 3800
"""Bytes of a directory's path: Linux takes 4096 with the name of a file behind it."""

PREFETCH_BLOCKS_MAX = 65536
"""As many as one lookup can name."""

DRAIN_TIMEOUT_MAX_S = 60
"""Seconds: whoever stops a service waits no longer before it is killed."""

_SPOKEN = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

CONNECTORS = ("endpoint", "host", "port", "curve", "owner")
"""What an engine reads (connectors/vllm/endpoint.py): no mistake in the same shell."""

_TESTS = re.compile(r"TEST_\w+")
# What Kubernetes puts into every pod when a Service is called `pegaflow...`, by name and value.
_KUBERNETES = (
    (re.compile(r"(\w+_)?SERVICE_HOST"), re.compile(r"[\d.]+|[\da-fA-F:]+")),
    (re.compile(r"(\w+_)?SERVICE_PORT(_\w+)?"), re.compile(r"\d+")),
    (re.compile(r"(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?"), re.compile(r"(tcp|udp|sctp)://\S+")),
    (re.compile(r"(\w+_)?PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)"), re.compile(r"[\w.:]+")),
)


@dataclass(frozen=True)
class Settings:
    """All settings of a service, with their defaults."""

    #: Absolute; not yet created or checked (`rundir.prepare` does that).
    run_dir: Path
    #: Bytes as asked for, or None for the default of `poolsize`.
    pool_size: int | None = None
    #: A power of two, a multiple of the 4 KiB page.
    extent_size: int = limits.EXTENT_SIZE
    spares: int = limits.SPARES
    copy_threads: int = limits.COPY_THREADS
    #: host:port where HTTP is answered, or "none".
    http_addr: str = limits.HTTP_ADDR
    #: host:port of the TCP endpoint, an IP address and 0..65535 (0: any); None: no TCP.
    addr: str | None = None
    #: Folder of the keys for TCP (keys.py).
    curve_dir: str | None = None
    #: Whether TCP is served without keys.
    insecure_tcp: bool = False
    #: Part of the pool that one engine's leases may keep from eviction, above 0 and at most 1.
    max_pinned: float = limits.MAX_PINNED
    #: Whether to start with an empty pool, whatever an earlier life has left.
    fresh: bool = False
    #: Whether a pool with blocks in it outlives a clean stop.
    keep_pool: bool = True
    #: Whether pages are checked against their checksums on every load.
    verify: bool = False
    #: Directories of the SSD tier, absolute, one per device; none: there is no SSD tier.
    ssd_cache_path: tuple[str, ...] = ()
    #: Bytes of the whole log; None: as far as the floor.
    ssd_cache_capacity: int | None = None
    #: Bytes of each file system that stay free; None: a share of it.
    ssd_free_floor: int | None = None
    #: Batches of blocks on their way to the log.
    ssd_write_queue_depth: int = flushplan.WRITE_QUEUE_DEPTH
    #: Writes side by side in each directory.
    ssd_write_inflight: int = flushplan.WRITE_INFLIGHT
    #: Reads side by side in each directory.
    ssd_prefetch_inflight: int = flushplan.PREFETCH_INFLIGHT
    #: Blocks that one engine may await from the log.
    max_prefetch_blocks: int = flushplan.PREFETCH_BLOCKS
    #: One of ADMISSIONS.
    ssd_admission: str = "all"
    #: Whether to remove what is in the log.
    fresh_ssd: bool = False
    #: Seconds at the end for blocks that are not in the log yet.
    drain_timeout: int = flushplan.DRAIN_NS // 1_000_000_000
    #: One of LOG_LEVELS.
    log_level: str = "info"
    #: One of LOG_FORMATS.
    log_format: str = "auto"


@dataclass(frozen=True)
class Setting:
    """One setting, wherever it is said."""

    #: What was said, made a value; raises `UserError`.
    parse: Callable[[object], object]
    help: str
    metavar: str
    #: Whether the flag may be given several times.
    many: bool = False
    #: All that may be said, in this spelling or in another case; empty: no list has it.
    choices: tuple[str, ...] = ()
    #: What holds if nothing is said, where the default is none of the values.
    unset: str = "none"


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    #: default, file, environment or flag
    kind: str
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
    """The settings in force.  A flag that is None was not given; `config` is the --config flag."""
    return trace(flags, env, config)[0]


def trace(
    flags: Mapping[str, object],
    env: Mapping[str, str],
    config: str | None = None,
) -> tuple[Settings, dict[str, Origin]]:
    """The settings in force as `load` gives them, and where each of them comes from."""
    path = config or env.get(f"{PREFIX}CONFIG")
    said: dict[str, _Said] = {}
    if path:
        said |= _from_file(path)
    said |= _from_environment(env)
    for key, value in flags.items():
        if value is not None and value != []:
            said[key] = _Said(flag(key), value, Origin("flag", flag(key)))
    for key, saying in said.items():
        if key not in SETTINGS:
            raise _unknown(key, saying.where)
    parsed = {key: _parse(key, saying) for key, saying in said.items()}
    named = parsed.pop("run_dir", None)
    run_dir = rundir.resolve(
        None if named is None else str(named), env, os.getuid(), tempfile.gettempdir()
    )
    settings = Settings(run_dir, **parsed)  # type: ignore[arg-type]
    for key in ("ssd_cache_capacity", "ssd_free_floor", "fresh_ssd"):
        if getattr(settings, key) and not settings.ssd_cache_path:
            raise UserError(f"{said[key].where}: there is no SSD tier without --ssd-cache-path")
    default = Origin("default")
    return settings, {key: said[key].origin if key in said else default for key in SETTINGS}


def _from_file(path: str) -> dict[str, _Said]:
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {str(error).splitlines()[0]}") from error
    origin = Origin("file", os.path.abspath(path))
    return {key: _Said(f"{key} in {path}", value, origin) for key, value in table.items()}


def _from_environment(env: Mapping[str, str]) -> dict[str, _Said]:
    found: dict[str, _Said] = {}
    for key in SETTINGS:
        name = PREFIX + key.upper()
        if env.get(name):
            found[key] = _Said(name, env[name], Origin("environment", name))
    return found


def strangers(env: Mapping[str, str]) -> str:
    """The variables that begin like ours and are nobody's that we know, in one line for a warning;
    '' without any.  They may be somebody else's, so they stop nothing; or a setting, mistyped."""
    known = [*SETTINGS, "config", *CONNECTORS]
    found = []
    for name, value in sorted(env.items()):
        rest = name.removeprefix(PREFIX)
        if rest == name or not value or rest.lower() in known and rest.isupper():
            continue
        kubernetes = any(n.fullmatch(rest) and v.fullmatch(value) for n, v in _KUBERNETES)
        if kubernetes or _TESTS.fullmatch(rest):
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


def _path(value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise UserError(f"not a path: {value!r}")
    return spelled(str(value))


def _folders(value: object) -> tuple[str, ...]:
    """Directories as a list, or as one text with colons between them."""
    given = value if isinstance(value, list | tuple) else _path(value).split(":")
    paths = tuple(spelled(os.path.abspath(_path(one))) for one in given)
    for path in paths:
        if "\n" in path or len(os.fsencode(path)) > PATH_MAX:
            raise UserError(f"not a path: {path!r}")
    real = [os.path.realpath(path) for path in paths]
    twice = next((p for p, r in zip(paths, real, strict=True) if real.count(r) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name one directory per device")
    return paths


def _capacity(value: object) -> int:
    size = _size(value)
    if size < flushplan.CAPACITY_LEAST:
        raise UserError(f"{value} is less than {sizes.show(flushplan.CAPACITY_LEAST)}")
    return size


def _share(value: object) -> float:
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        share = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise UserError(f"{value!r} is no part of the whole, such as 0.5 or 50%")
    return share


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"not a size: {value!r}")
    return sizes.parse(value)


def _size_of_extent(value: object) -> int:
    size = _size(value)
    if size & (size - 1) or size < limits.MIB:
        raise UserError(f"{value} is not a power of two of at least 1 MiB")
    return size


def _host_port(value: object) -> str:
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


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 1 << 16


def _yes_or_no(value: object) -> bool:
    said = str(value).lower()
    if said not in _SPOKEN:
        raise UserError(f"{value!r} is none of true, false")
    return _SPOKEN[said]


def _number(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        text = str(value)
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise UserError(f"{value!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def _http_addr(value: object) -> str:
    text = str(value).strip()
    if text.lower() == "none":
        return "none"
    host, colon, port = text.rpartition(":")
    named = host.startswith("[") == host.endswith("]") and (":" not in host or host[0] == "[")
    if not (host and named and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise UserError(f"{text!r} is not host:port, such as {limits.HTTP_ADDR}, and not none")
    return text


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = str(value).lower()
        if text not in allowed:
            raise UserError(f"{value!r} is none of {', '.join(allowed)}")
        return text

    return parse


SETTINGS: dict[str, Setting] = {
    "run_dir": Setting(
        _path,
        "Where sockets, lock and crash records are.",
        "DIR",
        unset="$XDG_RUNTIME_DIR/pegaflow, else pegaflow-UID in the temporary directory",
    ),
    "pool_size": Setting(
        _size,
        "Host memory of the pool, for example 30GiB.",
        "SIZE",
        unset="a quarter of the memory, less where less is free",
    ),
    "extent_size": Setting(_size_of_extent, "Unit in which page sizes share the pool.", "SIZE"),
    "spares": Setting(_number(0, SPARES_MAX), "Sessions kept ready for the next engine.", "N"),
    "copy_threads": Setting(
        _number(1, COPY_THREADS_MAX), "Threads with which each session copies.", "N"
    ),
    "max_pinned": Setting(
        _share, "Part of the pool that one engine's leases may hold, such as 0.5 or 50%.", "SHARE"
    ),
    "http_addr": Setting(_http_addr, "Where health and metrics are served, or none.", "HOST:PORT"),
    "addr": Setting(_host_port, "Also listen for clients on TCP; needs --curve-dir.", "HOST:PORT"),
    "curve_dir": Setting(_path, "The keys for TCP, as `pegaflow keygen` made them.", "DIR"),
    "insecure_tcp": Setting(_yes_or_no, "Listen on TCP without keys; on loopback only.", ""),
    "fresh": Setting(_yes_or_no, "Start with an empty pool, whatever was kept.", ""),
    "keep_pool": Setting(_yes_or_no, "Keep the pool's blocks for the next start.", ""),
    "verify": Setting(_yes_or_no, "Check each page's checksum when it is loaded.", ""),
    "ssd_cache_path": Setting(
        _folders, "A directory for the SSD tier; one per device.", "DIR", many=True
    ),
    "ssd_cache_capacity": Setting(
        _capacity, "Bytes of the whole log, for example 512gb.", "SIZE", unset="as far as the floor"
    ),
    "ssd_free_floor": Setting(
        _size, "Bytes of each file system that stay free.", "SIZE", unset="a twentieth of it"
    ),
    "ssd_write_queue_depth": Setting(
        _number(1, SSD_DEPTH_MAX), "Batches of blocks on their way to the log.", "N"
    ),
    "ssd_write_inflight": Setting(
        _number(1, SSD_INFLIGHT_MAX), "Writes side by side in each directory.", "N"
    ),
    "ssd_prefetch_inflight": Setting(
        _number(1, SSD_INFLIGHT_MAX), "Reads side by side in each directory.", "N"
    ),
    "max_prefetch_blocks": Setting(
        _number(1, PREFETCH_BLOCKS_MAX), "Blocks that one engine may await from the log.", "N"
    ),
    "ssd_admission": Setting(
        _one_of(ADMISSIONS),
        "Write all blocks, or those reused: asked for or saved again.",
        "WHAT",
        choices=ADMISSIONS,
    ),
    "fresh_ssd": Setting(_yes_or_no, "Remove what is in the log.", ""),
    "drain_timeout": Setting(
        _number(0, DRAIN_TIMEOUT_MAX_S), "Seconds at the end to write what is not in the log.", "S"
    ),
    "log_level": Setting(
        _one_of(LOG_LEVELS), "The least level of a line in the log.", "LEVEL", choices=LOG_LEVELS
    ),
    "log_format": Setting(
        _one_of(LOG_FORMATS),
        "The form of the log; auto: console on a terminal, json elsewhere.",
        "FORMAT",
        choices=LOG_FORMATS,
    ),
}
"""All settings, by name."""
