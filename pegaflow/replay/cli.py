"""`pegaflow replay` and `pegaflow demo` as plain functions; pegaflow/service/cli.py gives them
their flags.

Exit status: 0 done, 1 wrong bytes, nothing served or an engine failed, 2 the arguments were wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pegaflow.core.errors import UserError
from pegaflow.service import rundir, sizes
from pegaflow.wire.units import Bytes, Count

from . import ceiling, report, service
from .engine import Record, Shape
from .errors import TraceError
from .fitting import BLOCK_TOKENS_MAX
from .formats import AUTO, FORMATS
from .reading import Options, read
from .runner import Outcome, Plan, run
from .scopes import IdScope
from .source import STDIN
from .trace import BUNDLED, Trace
from .words import count

ENGINES_MAX: Count = 64
"""Processes started at once."""

MEMORY_MAX: Bytes = 1 << 36
"""Bytes of one engine: beyond it, a size was mistyped."""

SUMMARY_COLUMNS: Count = 80
"""As wide as a terminal is at least."""

DEMO_SHAPE = Shape(layers=8, layer_bytes=8 * 1024, blocks=256)
DEMO_POOL: Bytes = 768 << 20
"""12288 blocks, 42 % of the slice's: eviction runs, and sharing clearly wins."""


def replay_command(
    *traces: Path,
    format: str = AUTO,
    block_tokens: int | None = None,
    ids: str = IdScope.AUTO,
    engines: int = 2,
    requests: int | None = None,
    layers: int = 8,
    layer_size: str = "8KiB",
    engine_blocks: int = 256,
    restart: int | None = None,
    namespace: str | None = None,
    run_dir: str | None = None,
) -> int:
    """Replay a trace through a running service, and check each byte that comes back.

    Args:
        traces: files, one after the other; `-` is standard input.
        format, block_tokens, ids, requests: how they are read, see reading.Options.
        engines: engine processes; request i goes to engine i % engines.
        layers, layer_size: a block is so many pieces of this size.
        engine_blocks: blocks in the memory of one engine.
        restart: kill this engine (from 0) half way and start it again.
        namespace: a name; replays of one name find each other's blocks. Default: a new one.
        run_dir: of the service; default: as for `pegaflow status`, or PEGAFLOW_ENDPOINT.
    """
    try:
        shape = _shape(layers, layer_size, engine_blocks)
        _check(1 <= engines <= ENGINES_MAX, f"--engines is a number from 1 to {ENGINES_MAX}")
        _check(restart is None or 0 <= restart < engines, f"there is no engine {restart}")
        options = _options(format, block_tokens, ids, requests)
        lost = next((one for one in traces if str(one) != STDIN and not one.exists()), None)
        _check(lost is None, f"{lost}: No such file or directory")
    except UserError as error:
        return _fail(str(error), 2)
    endpoint = None
    if run_dir is not None:
        where = rundir.resolve(run_dir, os.environ, os.getuid(), tempfile.gettempdir())
        endpoint = rundir.front_desk(where)
    if why := service.missing(endpoint):
        return _fail(why, 1)
    try:
        trace = read(traces, options)
    except TraceError as error:
        return _fail(str(error), 2)
    top = ceiling.infinite(trace)
    asked = f"{count(len(trace), 'request')}, {count(top.asked, 'block')}, {top.missed} different"
    print(f"{trace.about}; {asked}")
    seed = os.urandom(16) if namespace is None else namespace.encode()
    space = blake2b(seed, digest_size=32, person=b"replay namespace").digest()
    with _progress(len(trace)) as progress:
        outcome = run(
            Plan(
                trace=trace,
                engines=engines,
                shape=shape,
                namespace=space,
                endpoint=endpoint,
                kill=restart,
            ),
            progress,
        )
    if not outcome.attached and outcome.errors:
        return _fail(outcome.errors[0], 1)
    lines = list(report.rows(outcome, top))
    if restart is not None:
        lines.append(report.restarted(outcome, restart))
    _show(lines)
    print(textwrap.fill(report.summary(outcome), SUMMARY_COLUMNS))
    why = report.problem(outcome, trace, engines)
    return _fail(why, 1) if why else 0


def demo_command(pool_size: str | None = None, keep: bool = False) -> int:
    """Start a service, replay a real conversation trace from two engines, kill one half way.

    Args:
        pool_size: of the service.
        keep: let the service live on after the replay, until a signal ends us.
    """
    try:
        pool = DEMO_POOL if pool_size is None else sizes.parse(pool_size)
    except UserError as error:
        return _fail(f"--pool-size: {error}", 2)
    trace = read([BUNDLED])
    top = ceiling.infinite(trace)
    pool_blocks = pool // DEMO_SHAPE.block_bytes
    print(
        f"A pool of {sizes.show(pool)}, {count(pool_blocks, 'block')} of "
        f"{sizes.show(DEMO_SHAPE.block_bytes)}; two engines replay {len(trace)} real requests, "
        f"{top.asked} blocks, {top.missed} of them different. One is killed half way.",
        flush=True,
    )
    http = ("--http-addr", "127.0.0.1:0") if keep else ()
    try:
        with service.running(pool, extra=http) as endpoint:
            plan = Plan(trace, 2, DEMO_SHAPE, os.urandom(32), endpoint=endpoint, kill=1)
            with _progress(len(trace)) as progress:
                outcome = run(plan, progress)
            code = _tell_demo(trace, outcome, pool_blocks)
            if keep:
                where = Path(endpoint).parent
                print(f"The service lives on, see pegaflow status --run-dir {where} (Ctrl-C ends)")
                sys.stdout.flush()
                signal.pause()
    except UserError as error:
        return _fail(str(error), 1)
    return code


def _tell_demo(trace: Trace, outcome: Outcome, pool_blocks: int) -> int:
    """Print what came of it; the exit status."""
    top = ceiling.infinite(trace)
    split = ceiling.lru(trace, pool_blocks, pools=2)
    lines = list(report.rows(outcome, top))
    lines.append(
        ("two isolated pools", f"of half the size would have hit {report.percent(split.rate)}")
    )
    lines.append(report.restarted(outcome, 1))
    _show(lines)
    print(textwrap.fill(report.summary(outcome), SUMMARY_COLUMNS))
    why = report.problem(outcome, trace, 2)
    return _fail(why, 1) if why else 0


def _shape(layers: int, layer_size: str, blocks: int) -> Shape:
    size = sizes.parse(layer_size)
    _check(layers > 0 and blocks > 0, "--layers and --engine-blocks are numbers from 1")
    shape = Shape(layers, size, blocks)
    memory = shape.block_bytes * blocks
    _check(memory <= MEMORY_MAX, f"an engine would need {sizes.show(memory)} of memory")
    return shape


def _options(format: str, block_tokens: int | None, ids: str, limit: int | None) -> Options:
    known = (AUTO, *sorted(FORMATS))
    _check(format in known, f"--format is one of {', '.join(known)}")
    _check(ids in tuple(IdScope), f"--ids is one of {', '.join(IdScope)}")
    fits = block_tokens is None or 0 < block_tokens <= BLOCK_TOKENS_MAX
    _check(fits, f"--block-tokens is a number from 1 to {BLOCK_TOKENS_MAX}")
    _check(limit is None or limit > 0, "--requests is a number from 1")
    return Options(format, block_tokens, IdScope(ids), limit)


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise UserError(otherwise)


@contextmanager
def _progress(requests: int) -> Iterator[Callable[[Record], None]]:
    """A progress bar on stderr if that is a terminal."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("replay", total=requests)
        yield lambda record: bar.advance(task)


def _show(rows: Iterable[report.Row]) -> None:
    for name, value in rows:
        print(f"{name:<18}  {value}")


def _fail(line: str, code: int) -> int:
    print(f"pegaflow: {line}", file=sys.stderr)
    return code
