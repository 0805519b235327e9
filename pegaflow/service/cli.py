"""The command line: `pegaflow serve | purge | status | doctor | config | keygen | replay | demo`.

Exit codes: 0 done, 1 it failed for a reason said in one line, 2 the command line was wrong.
What only one command needs is imported by that command: every actor starts through this file.
"""

import dataclasses
import enum
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pegaflow import version
from pegaflow.client import presence
from pegaflow.core.errors import CommandLineError, UserError
from pegaflow.replay.scopes import IdScope
from pegaflow.wire.message import WireError

from . import config, logs, rundir, signals, sizes, streams
from .flags import with_settings
from .settings import Settings

if TYPE_CHECKING:
    from pegaflow.device.poolfiles import Kept

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""How every command is asked for help."""

app = typer.Typer(
    name="pegaflow",
    help="An external KV-cache service for LLM inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)
config_app = typer.Typer(
    help="What is set, and what the limits are.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(config_app, name="config")

RunDir = Annotated[
    str | None, typer.Option(help="Where sockets, lock and crash records are.", metavar="DIR")
]


class Format(enum.StrEnum):
    """How a command answers."""

    table = enum.auto()
    json = enum.auto()


TraceFormat = enum.StrEnum(
    "TraceFormat", ["auto", "mooncake", "bailian", "weka", "dynamo", "aiperf"]
)

AnswerFormat = Annotated[Format, typer.Option(help="For people, or for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pegaflow {version.installed()}")
        raise typer.Exit


@app.callback()
def before(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """An external KV-cache service for LLM inference."""
    if context.invoked_subcommand != "serve":
        signals.interruptible()


@app.command()
@with_settings
def serve(flags: Mapping[str, object], config_file: str | None) -> None:
    """Run the cache service in the foreground (SIGINT or SIGTERM stops it).

    Each setting is an option, a variable (named in brackets) or a line of the file that --config
    names; an option wins over a variable, a variable over the file.
    """
    from . import serve as service

    environment = dict(os.environ)

    def read() -> Settings:
        return config.load(flags, environment, config_file)

    settings = read()
    logs.configure(settings.log_level, settings.log_format, actor="supervisor")
    logs.take_over()
    logs.enable_faulthandler()
    unknown = config.strangers(os.environ)
    if unknown:
        logs.get_logger().warning("variables_unknown", ignored=unknown)
    os.environ["PEGAFLOW_LOG_LEVEL"] = settings.log_level
    os.environ["PEGAFLOW_LOG_FORMAT"] = settings.log_format
    raise typer.Exit(service.serve(settings, read))


@app.command()
def purge(
    run_dir: RunDir = None,
    list_: Annotated[bool, typer.Option("--list", help="Show all pools, free nothing.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Free all that are not in use.")] = False,
) -> None:
    """Free the pool that a stopped service has kept for its next start."""
    from . import serve as service

    if list_:
        _show_pools(service.kept_pools())
        return
    if all_:
        freed, stay = service.purge_all()
        print(f"freed {sizes.show(freed)}")
        for name in stay:
            print(f"{name} is in use")
        return
    where = rundir.resolve(run_dir, os.environ, os.getuid(), tempfile.gettempdir())
    freed = service.purge(where)
    print(f"freed {sizes.show(freed)}" if freed else f"no pool was kept for {where}")


@app.command()
def status(
    run_dir: RunDir = None,
    format: AnswerFormat = Format.table,
) -> None:
    """Show processes, incarnations, pool, blocks, sessions and hit rate.

    With --format json it is the same object that /v1/status answers.
    """
    from pegaflow.client import inspect

    where = rundir.resolve(run_dir, os.environ, os.getuid(), tempfile.gettempdir())
    desk = rundir.front_desk(where)
    # root may look at everybody's
    seen = presence.look(desk, presence.trusted() if os.geteuid() else None)
    try:
        report = inspect(desk) if seen.listens else None
    except WireError as err:
        raise UserError(f"the service in {where} is of another version: {err}") from None
    if report is None:
        raise UserError(seen.advice)
    if format is Format.json:
        from pegaflow.observe import metrics

        print(json.dumps(metrics.status(report, report.at)))
    else:
        from pegaflow.observe import table as statustable

        statustable.show(report)


@app.command()
def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="What GPU memory needs; it is an error to have no GPU.")
    ] = False,
    pool_size: Annotated[
        str | None, typer.Option(help="Of the pool that is meant. [default: serve's]")
    ] = None,
    format: AnswerFormat = Format.table,
) -> None:
    """Check what this host has for the service, and say what to do: all of it, or what is chosen.

    One line each; the exit code is 1 if something is lacking.
    """
    from pegaflow.device import gpufacts

    from . import doctor as checks
    from . import poolsize

    settings = config.load({"pool_size": pool_size}, os.environ)
    facts, huge = gpufacts.read(), settings.use_hugepages
    places = facts.hugetlb if huge else ()
    pool_bytes = checks.pool_of(settings.pool_size, poolsize.look(), places)
    lines = checks.gpu(facts, pool_bytes, wanted=gpu, huge=huge)
    if format is Format.json:
        print(json.dumps([dataclasses.asdict(line) for line in lines]))
    else:
        print(*lines, sep="\n")
    if any(line.verdict is checks.Verdict.LACKS for line in lines):
        raise typer.Exit(1)


@app.command()
def keygen(
    folder: Annotated[Path, typer.Argument(help="Where the keys are, or are to be.")],
    clients: Annotated[
        list[str] | None, typer.Argument(help="Names of new clients, or of all hosts.")
    ] = None,
    *,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Keys with which these hosts know each other.")
    ] = False,
) -> None:
    """Make the keys for TCP: the server's, once, and those of new clients (default: `client`); or
    with --hosts a folder for each host."""
    from . import keys

    if hosts:
        if not clients:
            raise CommandLineError("keygen --hosts needs the names of all hosts")
        for path in keys.generate_hosts(folder, clients):
            print(f"{path}: carry it to {path.name}, and name it there in --peer-keys")
        print("serve with: pegaflow serve --peer-listen HOST:PORT --peers NAME@HOST:PORT ...")
        return
    for path in keys.generate(folder, clients or ["client"]):
        print(f"{path}: carry it to the client, name it in PEGAFLOW_CURVE or pegaflow.curve")
    print(f"serve with: pegaflow serve --addr HOST:PORT --curve-dir {folder}")


@config_app.command("show")
@with_settings
def config_show(
    flags: Mapping[str, object],
    config_file: str | None,
    *,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value is from.")] = False,
    format: AnswerFormat = Format.table,
) -> None:
    """Show the settings that `serve` would run with, given the same options."""
    from pegaflow.observe import inventory

    settings, origins = config.trace(flags, os.environ, config_file)
    unknown = config.strangers(os.environ)
    if unknown:
        print(f"pegaflow: unknown variables are ignored: {unknown}", file=sys.stderr)
    inventory.show_settings(settings, origins, with_origin=origin, as_json=format is Format.json)


@config_app.command("limits")
def config_limits(
    everything: Annotated[
        bool, typer.Option("--all", help="The inner numbers of the code, too.")
    ] = False,
    format: AnswerFormat = Format.table,
) -> None:
    """Show every limit with its value and its reason."""
    from pegaflow.observe import inventory

    inventory.show_limits(as_json=format is Format.json, inner=everything)


@app.command()
def replay(
    traces: Annotated[
        list[Path], typer.Argument(help="Files of a trace, packed or not; - is stdin.")
    ],
    format: Annotated[
        TraceFormat, typer.Option(help="Of the files.", case_sensitive=False)
    ] = TraceFormat.auto,
    block_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a block, where the trace does not tell.")
    ] = None,
    ids: Annotated[
        IdScope, typer.Option(help="Where an id is the same block.", case_sensitive=False)
    ] = IdScope.AUTO,
    engines: Annotated[int, typer.Option(help="Engine processes.")] = 2,
    requests: Annotated[int | None, typer.Option(help="Only so many requests.")] = None,
    layers: Annotated[int, typer.Option(help="Layers of a block.")] = 8,
    layer_size: Annotated[str, typer.Option(help="Size of one layer of a block.")] = "8KiB",
    engine_blocks: Annotated[int, typer.Option(help="Blocks in one engine's memory.")] = 256,
    restart: Annotated[
        int | None, typer.Option(help="Kill this engine (from 0) half way, start it again.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Replays of one name find each other's blocks.")
    ] = None,
    run_dir: RunDir = None,
) -> None:
    """Replay a trace of prompts through a running service and check each byte that comes back."""
    from pegaflow.replay.cli import replay_command

    code = replay_command(
        *traces,
        format=format,
        block_tokens=block_tokens,
        ids=ids,
        engines=engines,
        requests=requests,
        layers=layers,
        layer_size=layer_size,
        engine_blocks=engine_blocks,
        restart=restart,
        namespace=namespace,
        run_dir=run_dir,
    )
    raise typer.Exit(code)


@app.command()
def demo(
    pool_size: Annotated[
        str | None, typer.Option(help="Of the service. [default: 768 MiB]", metavar="SIZE")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let the service live on afterwards, until Ctrl-C.")
    ] = False,
) -> None:
    """Start a service, replay a real trace from two engines, kill one half way."""
    from pegaflow.replay.cli import demo_command

    raise typer.Exit(demo_command(pool_size, keep))


def _show_pools(pools: "Sequence[Kept]") -> None:
    """One line a pool, and what to do."""
    for pool in pools:
        state = f"in use by {pool.owner}" if pool.owner else "free to purge"
        print(
            f"{pool.path}: {state}, {sizes.show(pool.taken_bytes)} of memory with "
            f"{sizes.show(pool.sealed_bytes)} of blocks, run directory {pool.run_dir or 'unknown'}"
        )
    if not pools:
        print("no pool is kept")


def main() -> None:
    """Entry point of `pegaflow`."""
    run("pegaflow", lambda: app(prog_name="pegaflow"))


def run(program: str, command: Callable[[], object]) -> None:
    """Run a command: what the user can put right is one line, a signal is what ends us.

    Args:
        program: its name, for the line of an error.
        command: ends by returning, by an exception, or by SystemExit.

    Raises:
        SystemExit: the command has ended with an error.
    """
    streams.settle()
    try:
        with streams.written(program):
            command()
    except UserError as err:
        print(f"{program}: {err}", file=sys.stderr)
        raise SystemExit(err.exit_code) from None
    except signals.Interrupted as end:
        signals.die_of(end.number)


if __name__ == "__main__":
    main()
