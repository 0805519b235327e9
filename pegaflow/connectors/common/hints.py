"""What is asked for one request, beside what the engine's configuration says. Pure.

Two sides may ask. A client says it with the request, in `kv_transfer_params`, under names with our
prefix; names without it are for other connectors. Whoever routes requests says it in `kv_hints`, as
an action of the type ACTION whose payload has the same names without the prefix; actions of other
types are for others. Where both speak, the client is followed.

Nothing that is said here can harm the request: what is not understood is named in one line, and
ignored.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pegaflow.wire.units import Count

PREFIX = "pegaflow."
ACTION = "pegaflow"
"""The type of our actions in `kv_hints`."""

VERSION = "1"
"""Of our actions."""

SHOWN_MAX: Count = 40
"""Characters of a name or a value in a line of the log: it comes from outside."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What is acted on."""

    skip_save: bool = False  # nothing that the request computes is saved
    skip_load: bool = False  # the cache is not asked
    wait_for_full_prefix: bool = False  # wait until the cache has all of the prompt's blocks


NO_HINTS = Hints()


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _duration(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "skip_save": (_flag, "true or false"),
    "skip_load": (_flag, "true or false"),
    "wait_for_full_prefix": (_flag, "true or false"),
    "pin": (_flag, "true or false"),
    "ttl_s": (_duration, "a number of seconds"),
    "priority": (_whole, "a whole number"),
}
"""Every name that may be said. `pin`, `ttl_s` and `priority` are accepted for the sake of those who
say them already; the service keeps blocks by their use alone."""


def hints(params: Any, envelope: Any, default: Hints) -> tuple[Hints, str]:
    """What is asked for a request.

    Args:
        params: its `kv_transfer_params`.
        envelope: its `kv_hints`.
        default: where nothing is said.

    Returns:
        What holds, and what was not understood, '' if everything was.
    """
    if params is None and envelope is None:
        return default, ""
    ignored: list[str] = []
    said: dict[str, Any] = {}
    for name, value in [*_routed(envelope, ignored), *_asked(params, ignored)]:
        known, kind = KINDS.get(name, (None, ""))
        if known is None:
            ignored.append(f"{_shown(name)} is unknown")
        elif not known(value):
            ignored.append(f"{name} {_shown(value)} is not {kind}")
        elif name in Hints.__slots__:
            said[name] = value
    return replace(default, **said), "; ".join(ignored)


def _asked(params: Any, ignored: list[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(params, Mapping):
        for name, value in params.items():
            if isinstance(name, str) and name.startswith(PREFIX):
                yield name.removeprefix(PREFIX), value
    elif params is not None:
        ignored.append(f"kv_transfer_params {_shown(params)} are no names and values")


def _routed(envelope: Any, ignored: list[str]) -> Iterator[tuple[str, Any]]:
    actions = getattr(envelope, "actions", ())
    for action in actions if isinstance(actions, list | tuple) else ():
        if getattr(action, "action_type", "") != ACTION:
            continue
        version, payload = getattr(action, "action_version", ""), getattr(action, "payload", None)
        if version != VERSION or not isinstance(payload, Mapping):
            ignored.append(f"an action of version {_shown(version)} is not understood")
            continue
        yield from payload.items()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
