"""Where the service is, as the user of an engine may say it: in our way or in the original's.

Ours is `pegaflow.endpoint` (a socket's path, or tcp://HOST:PORT) with `pegaflow.curve`, a key file
for TCP, or with `pegaflow.owner`, the user (beside the engine's own and root) whose service on this
host is trusted.  The original's is `pegaflow.host` and `pegaflow.port`, which mean tcp://HOST:PORT
here.  The variables PEGAFLOW_ENDPOINT, PEGAFLOW_CURVE, PEGAFLOW_OWNER, PEGAFLOW_HOST and
PEGAFLOW_PORT go before these keys, as they do in the original.  Whatever cannot be used is said in
one line and left out: nothing here may keep an engine from starting.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pegaflow.client import curve as key_files
from pegaflow.client import servicelinks
from pegaflow.client.presence import uid_of
from pegaflow.wire.units import Constant

HOST = "127.0.0.1"
PORT: Constant = 50055
"""The original's, for whoever names only the host."""

_NAMES = ("endpoint", "host", "port")
_TCP = "tcp://"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to find the service."""

    url: str | None  # a path or URL; None: the default run directory's front desk
    curve: str | None  # a key file that can be used; only for TCP
    warnings: tuple[str, ...]
    owner: int | None = None  # a user whose service is trusted, beside our own and root's


def choose(extra: Mapping[str, Any], env: Mapping[str, str]) -> Endpoint:
    """Where the service of an engine is.

    Args:
        extra: kv_connector_extra_config, as the user wrote it.
        env: the environment, which goes first.
    """
    warnings: list[str] = []
    names = (*_NAMES, "curve", "owner")
    variables = {name: env.get(f"PEGAFLOW_{name.upper()}", "") for name in names}
    links = servicelinks.find(env)
    if "://" in variables["port"]:
        if "PEGAFLOW_PORT" not in links:
            warnings.append(f"PEGAFLOW_PORT {variables['port']!r} is no port: it is ignored")
        variables["port"] = ""
    for name in sorted(env.keys() - links):
        rest = name.removeprefix("PEGAFLOW_").lower()
        near = difflib.get_close_matches(rest, names, 1, 0.75)
        if name.startswith("PEGAFLOW_") and near and rest not in names:
            right = near[0].upper()
            warnings.append(f"{name} is ignored; did you mean PEGAFLOW_{right}?")
    keys = {name: extra.get(f"pegaflow.{name}") for name in names}
    url = _url(variables, lambda name: f"PEGAFLOW_{name.upper()}", warnings)
    if not any(variables[name] for name in _NAMES):
        url = _url(keys, lambda name: f"pegaflow.{name}", warnings)
    path = str(variables["curve"] or keys["curve"] or "")
    if url is None or not url.startswith(_TCP):
        owner = _owner(variables["owner"] or keys["owner"], warnings)
        return Endpoint(url, None, tuple(warnings), owner)
    if not path:
        warnings.append(
            f"{url} without a key: only a service started with --insecure-tcp answers; name a key"
            " file of `pegaflow keygen` in pegaflow.curve"
        )
        return Endpoint(url, None, tuple(warnings))
    try:
        key_files.load(path)
    except ValueError as error:
        warnings.append(f"{error}; the service will not answer us")
        return Endpoint(url, None, tuple(warnings))
    return Endpoint(url, path, tuple(warnings))


def _owner(said: Any, warnings: list[str]) -> int | None:
    if said in (None, ""):
        return None
    try:
        return uid_of(said)
    except ValueError as error:
        warnings.append(f"pegaflow.owner: {error}; only our own user's service and root's is used")
        return None


def _url(said: Mapping[str, Any], spell: Callable[[str], str], warnings: list[str]) -> str | None:
    """What one source says; None if nothing, or nothing that can be used."""
    endpoint, host, port = (str(said[name] or "").strip() for name in _NAMES)
    if endpoint:
        if host or port:
            other = spell("host" if host else "port")
            warnings.append(f"{other} is ignored: {spell('endpoint')} says where the service is")
        return endpoint
    if not host and not port:
        return None
    scheme, mark, rest = host.rpartition("://")
    if scheme not in ("", "http", "tcp"):
        warnings.append(
            f"{spell('host')} {host!r}: {scheme} is not spoken; the default endpoint is used. Name"
            " HOST alone, and a key file in pegaflow.curve"
        )
        return None
    name, colon, own_port = rest.rstrip("/").rpartition(":")
    if not colon or rest.endswith("]") or name.count(":") and not name.endswith("]"):
        name, own_port = rest.rstrip("/"), ""
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    number = port or own_port or str(PORT)
    if not (number.isascii() and number.isdecimal() and 0 < int(number) < 1 << 16):
        where = spell("port" if port else "host")
        warnings.append(f"{where} {port or host!r} is no port; the default endpoint is used")
        return None
    return f"{_TCP}{name or HOST}:{int(number)}"
