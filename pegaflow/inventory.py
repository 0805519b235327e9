"""What is set and what the limits are, for whoever runs the service.

A limit stands beside the code that keeps it: a public number of a module with its reason as the
string below it.  Nobody keeps a second list: the modules are read with `ast`, so a limit shows up
here because it exists.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pegaflow
from pegaflow import poolsize, sizes
from pegaflow.config import SETTINGS, Origin, Settings
from pegaflow.errors import UserError

_SECONDS = {"NS": 1e-9, "MS": 1e-3, "S": 1.0, "SECONDS": 1.0}
_UNITS = {"KIB", "MIB", "GIB", "MS"}  # numbers that limit nothing
_BYTES = {"BYTES", "SIZE", "PAGE", "MEMORY", "WHOLE", "CHUNK", "POOL", "MARGIN", "SMALLEST"}


@dataclass(frozen=True)
class Limit:
    """One limit: a number (or several, one per step) of a module."""

    name: str
    module: str
    value: int | float | tuple[int | float, ...]
    #: seconds, bytes, share or count; for `s`, `value` is in the unit that the name ends in
    unit: str
    reason: str

    def shown(self) -> str:
        """The value for a person."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return ", ".join(map(self._one, values))

    def _one(self, value: int | float) -> str:
        if self.unit == "bytes":
            return sizes.show(int(value))
        if self.unit == "seconds":
            seconds = value * _SECONDS[self.name.rpartition("_")[2]]
            return f"{seconds:g} s" if seconds >= 1 or not value else f"{seconds * 1000:g} ms"
        if self.unit == "share":
            return f"{value:.0%}"
        return f"{value:,}"


def all_limits() -> list[Limit]:
    """Every limit of the package, by module and then as they are written there."""
    found = []
    for info in pkgutil.walk_packages(pegaflow.__path__, "pegaflow."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None and spec.origin is not None
        reasons = dict(_numbers(ast.parse(Path(spec.origin).read_text())))
        if any(reasons.values()):
            scope = vars(importlib.import_module(info.name))
            found += [
                Limit(name, info.name, scope[name], _unit(name, scope[name]), why)
                for name, why in reasons.items()
                if why and _is_number(scope[name])
            ]
    return found


def _numbers(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Public constants that may be numbers, with the string below each ('' if there is none)."""
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        text = below.value.value if said else ""  # type: ignore[union-attr]
        if name.isupper() and name[0] != "_" and name not in _UNITS:
            yield name, " ".join(text.split()) if isinstance(text, str) else ""


def _is_number(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unit(name: str, value: object) -> str:
    words = name.split("_")
    if words[-1] in _SECONDS:
        return "seconds"
    if _BYTES & set(words):
        return "bytes"
    return "share" if isinstance(value, float) else "count"


def show_limits(*, as_json: bool) -> None:
    """Print all limits."""
    found = all_limits()
    if as_json:
        rows = [{**dataclasses.asdict(limit), "shown": limit.shown()} for limit in found]
        json.dump(rows, sys.stdout, indent=1)
        print()
        return
    table = Table("limit", "value", "where", "why", box=None)
    for limit in found:
        table.add_row(limit.name, limit.shown(), limit.module, limit.reason)
    _console().print(table)


def show_settings(
    settings: Settings, origins: Mapping[str, Origin], *, with_origin: bool, as_json: bool
) -> None:
    """Print the settings in force; what is not set is shown as `serve` would choose it now."""
    values = {key: getattr(settings, key) for key in SETTINGS}
    notes = {key: f"{o.kind} {o.name}".strip() for key, o in origins.items()}
    if settings.pool_size is None:
        chosen = _default_pool(settings)
        values["pool_size"] = chosen.size or None
        notes["pool_size"] = f"default: {chosen.reason}"
    if as_json:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
        parts = {
            k: {"value": v, "origin": origins[k].kind, "name": origins[k].name}
            if with_origin
            else v
            for k, v in plain.items()
        }
        json.dump(parts, sys.stdout, indent=1)
        print()
        return
    table = Table("setting", "value", *(["from"] if with_origin else []), box=None)
    for key, value in values.items():
        in_bytes = SETTINGS[key].metavar == "SIZE" and isinstance(value, int)
        shown = sizes.show(value) if in_bytes else "-" if value is None else str(value)
        table.add_row(key, shown, *([notes[key]] if with_origin else []))
    _console().print(table)


def _default_pool(settings: Settings) -> poolsize.PoolSize:
    try:
        return poolsize.choose(None, poolsize.look(), settings.extent_size)
    except UserError as err:
        return poolsize.PoolSize(0, str(err))


def _console() -> Console:
    """A console that folds no path and no reason when nobody looks at it."""
    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 400)
