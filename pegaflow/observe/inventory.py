"""What is set and what the limits are, for whoever runs the service.

A limit stands beside the code that keeps it: a public number of a module with its reason as the
string below it.  Nobody keeps a second list: the modules are read with `ast`, so a limit shows up
here because it exists.  Its name is its module's and its own, so no two are alike.

Of these numbers many are nobody's affair but the code's: the sizes of fields on a disk, how much is
looked at in one turn.  `INNER` names the modules that have no others, and the few elsewhere; what
is left are the limits that an operator or an engine can run into.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import json
import pkgutil
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pegaflow
from pegaflow.core.errors import UserError
from pegaflow.device import hugepages
from pegaflow.service import poolsize, sizes
from pegaflow.service.config import Origin, Source
from pegaflow.service.settings import SETTINGS, Settings


class Unit(enum.StrEnum):
    """What a limit is shown in."""

    SECONDS = "seconds"
    BYTES = "bytes"
    COUNT = "count"
    SHARE = "share"


_UNITS = {
    "Nanoseconds": (Unit.SECONDS, 1e-9),
    "Milliseconds": (Unit.SECONDS, 1e-3),
    "Seconds": (Unit.SECONDS, 1.0),
    "Bytes": (Unit.BYTES, 1.0),
    "Count": (Unit.COUNT, 1.0),
    "Share": (Unit.SHARE, 1.0),
}  # of wire/units.py: what it is shown as, and what one of it is there

_PIPED_WIDTH = 160  # columns that lines in a pipe or a file are laid out for, though none is cut

INNER = frozenset(
    """
    actors.allocator.reservations.UNSTATED_MAX
    actors.allocator.returns.SCAN_PAGES actors.flusher.device actors.flusher.inventory
    actors.roles.pages actors.flusher.reading actors.flusher.shutdown actors.flusher.tier
    actors.flusher.volumes.SEGMENTS actors.flusher.write_back
    actors.index.ssd.write_back.LOOK_PAGES actors.roles.recovery actors.runtime.blackbox
    actors.runtime.host actors.runtime.vitals actors.session.device
    actors.session.batches.BATCH_BLOCKS actors.session.orders.EARLY_MAX actors.session.publish
    actors.session.reservation actors.session.space actors.supervisor.reporting client.curve
    client.shell connectors.vllm.compat connectors.vllm.layout connectors.vllm.namespace
    core.blocks.adoption core.blocks.backlog core.limits.IOV_MAX
    core.policy.lru core.pool.ledger core.segments.codec device.disk.SCAN_BYTES
    device.engine.process_vm device.poolfiles replay
    service.keys.IGNORED_SHOWN
    service.logs.BYTES_SHOWN service.sdnotify.UNSAID_MAX wire.envelope
    wire.flusher.MANIFEST_KEYS wire.layout wire.links.DRAIN_MAX wire.links.DRAIN_NS
    wire.links.QUEUE_MAX wire.message.ITEMS_MAX wire.session.PROOF_BYTES wire.values.NUMBER_MAX
    """.split()
)
"""Modules, with all below them, and single numbers that nobody outside the code runs into."""


@dataclass(frozen=True)
class Limit:
    """One limit: a number (or several, one per step) of a module."""

    name: str
    module: str
    value: int | float | tuple[int | float, ...]
    #: Its type: one of wire/units.py.
    kind: str
    reason: str

    @property
    def unit(self) -> Unit:
        """What it is shown in."""
        return _UNITS[self.kind][0]

    @property
    def full_name(self) -> str:
        """Which no other number has."""
        return f"{self.module.removeprefix('pegaflow.')}.{self.name}"

    @property
    def inner(self) -> bool:
        """Whether nobody outside the code runs into it."""
        parts = self.full_name.split(".")
        return any(".".join(parts[:n]) in INNER for n in range(1, len(parts) + 1))

    def shown(self) -> str:
        """The value for a person."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return ", ".join(map(self._one, values))

    def _one(self, value: int | float) -> str:
        unit, one = _UNITS[self.kind]
        if unit is Unit.BYTES:
            return sizes.show(int(value))
        if unit is Unit.SECONDS:
            seconds = value * one
            return f"{seconds:g} s" if seconds >= 1 or not value else f"{seconds * 1000:g} ms"
        return f"{100 * value:.3g}%" if unit is Unit.SHARE else f"{value:,}"


def all_limits() -> list[Limit]:
    """Every limit of the package, by module and then as they are written there."""
    found = []
    for info in pkgutil.walk_packages(pegaflow.__path__, "pegaflow."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None and spec.origin is not None
        declared = list(_numbers(ast.parse(Path(spec.origin).read_text())))
        if declared:
            scope = vars(importlib.import_module(info.name))
            found += [
                Limit(name, info.name, scope[name], kind, reason=why)
                for name, kind, why in declared
            ]
    return found


def _numbers(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Public numbers that have a unit: name, unit, and the string below."""
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        kind = ast.unparse(node.annotation).removeprefix("tuple[").split(",")[0]
        kind = kind.removeprefix("units.")
        said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        text = below.value.value if said else ""  # type: ignore[union-attr]
        if kind in _UNITS and node.target.id[0] != "_":
            yield node.target.id, kind, " ".join(str(text).split())


def show_limits(*, as_json: bool, inner: bool = False) -> None:
    """Print the limits.

    Args:
        as_json: as a list of objects, instead of a line each.
        inner: also the numbers that are nobody's affair but the code's.
    """
    found = [limit for limit in all_limits() if inner or not limit.inner]
    if as_json:
        rows = [
            {
                **{"name": limit.full_name, "module": limit.module, "value": limit.value},
                **{"unit": limit.unit, "reason": limit.reason, "shown": limit.shown()},
            }
            for limit in found
        ]
        json.dump(rows, sys.stdout, indent=1)
        print()
        return
    _print_rows([(limit.full_name, limit.shown(), limit.reason) for limit in found])


def show_settings(
    settings: Settings, origins: Mapping[str, Origin], *, with_origin: bool, as_json: bool
) -> None:
    """Print the settings in force; what is not set is shown as `serve` would choose it now.

    Args:
        origins: of each setting, as `config.trace` gives them.
        with_origin: whether to say where each value comes from.
        as_json: as one object, instead of a line each.
    """
    values = {key: getattr(settings, key) for key in SETTINGS}
    notes = {key: f"{o.kind} {o.name}".strip() for key, o in origins.items()}
    notes |= {
        key: f"default: {setting.why}"
        for key, setting in SETTINGS.items()
        if setting.why and origins[key].kind is Source.DEFAULT
    }
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
    shown = []
    for key, value in values.items():
        shown.append((key, _said(key, value), notes[key] if with_origin else ""))
    _print_rows(shown)


def _said(key: str, value: object) -> str:
    """A value as one would write it."""
    if value in (None, ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and SETTINGS[key].metavar == "SIZE":
        return sizes.show(value)
    return ":".join(value) if isinstance(value, tuple) else str(value)


def _default_pool(settings: Settings) -> poolsize.PoolSize:
    try:
        pages = hugepages.best(hugepages.look()) if settings.use_hugepages else None
        return poolsize.choose(None, poolsize.look(), settings.extent_size, pages)
    except UserError as err:
        return poolsize.PoolSize(0, str(err))


def _print_rows(rows: list[tuple[str, str, str]]) -> None:
    """A line each; on a terminal one that is too long for it has its last part below."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(laid_out(rows, width))


def laid_out(rows: list[tuple[str, str, str]], width: int | None) -> str:
    """Rows of a table as text. A value that would need more than a quarter of the width does not
    widen the column of the others.

    A value that would need more than a quarter of them does not widen the column of the others.

    Args:
        rows: name, value and note of each.
        width: columns of the terminal; None: as many as it takes.
    """
    first = max(len(name) for name, _, _ in rows)
    room = (width or _PIPED_WIDTH) // 4
    second = max((len(value) for _, value, _ in rows if len(value) < room), default=0)
    lines = []
    for name, value, note in rows:
        line = f"{name:<{first}}  {value:<{second}}  {note}".rstrip()
        if width is None or len(line) <= width:
            lines.append(line)
            continue
        head, indent = f"{name:<{first}}  {value}", "    "
        below = [note] if len(head) <= width else [value, note]
        lines.append(head if len(head) <= width else name)
        for part in below:
            lines += textwrap.wrap(part, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)
