"""The variables that Kubernetes puts into every pod of a namespace with a Service that is called
pegaflow or pegaflow-...: they begin like ours, and are none of them.

Of a Service, NAME, each has exactly this form, with one address in all of them and ports from 1:

    NAME_SERVICE_HOST=10.0.0.1       NAME_PORT_80_TCP=tcp://10.0.0.1:80
    NAME_SERVICE_PORT=80             NAME_PORT_80_TCP_PROTO=tcp
    NAME_SERVICE_PORT_HTTP=80        NAME_PORT_80_TCP_PORT=80
    NAME_PORT=tcp://10.0.0.1:80      NAME_PORT_80_TCP_ADDR=10.0.0.1

Anything else is a variable that somebody has set, and perhaps meant otherwise.
"""

import ipaddress
import re
from collections.abc import Mapping

_HOST = re.compile(r"PEGAFLOW_(\w+_)?SERVICE_HOST")
_PORT = re.compile(r"SERVICE_PORT(_\w+)?")
_LINK = re.compile(r"PORT(_(?P<port>\d+)_(?P<proto>TCP|UDP|SCTP)(_(?P<part>PROTO|PORT|ADDR))?)?")


def find(env: Mapping[str, str]) -> set[str]:
    """Their names."""
    found: set[str] = set()
    for name, host in env.items():
        if not _HOST.fullmatch(name) or not _is_address(host):
            continue
        stem = name.removesuffix("SERVICE_HOST")
        rests = (other.removeprefix(stem) for other in env if other.startswith(stem))
        found.add(name)
        found |= {stem + rest for rest in rests if _is_of(rest, env[stem + rest], host)}
    return found


def _is_of(rest: str, value: str, host: str) -> bool:
    """Whether this is a variable of the Service at this address, by its name behind NAME_."""
    if _PORT.fullmatch(rest):
        return _is_port(value)
    link = _LINK.fullmatch(rest)
    if link is None:
        return False
    port, proto, part = link["port"], (link["proto"] or "").lower(), link["part"]
    if part is not None:
        return value == {"PROTO": proto, "PORT": port, "ADDR": host}[part]
    scheme, _, where = value.partition("://")
    at, _, number = where.rpartition(":")
    fits = (scheme, number) == (proto, port) if proto else scheme in ("tcp", "udp", "sctp")
    return fits and at == (f"[{host}]" if ":" in host else host) and _is_port(number)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16
