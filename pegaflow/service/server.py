"""`pegaflow-server`: the door for those who come from the original PegaFlow.

It takes the original's command line and runs `pegaflow serve`.  Each of its flags is passed on
(a setting of the same name), left out (what it asks for is how this version always works), or
refused with one line that names the replacement or says that this version has none.  Our own flags
work here too.  Nothing is ignored in silence: a cache that runs without the SSD it was given would
be found out under load.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from pegaflow import version
from pegaflow.core.errors import CommandLineError

from . import cli

PROGRAM = "pegaflow-server"

ALWAYS = {
    "--blockwise-alloc": "each block has its own page",
    "--enable-prometheus": "/metrics is served wherever HTTP is",
}
"""Flags without a value that ask for what is always so."""

SPELLED = {"--device": "--devices", "--disable-numa-affinity": "--no-numa-affinity"}
"""Flags that the original, or an earlier version of it, has in another spelling."""

LOG_LEVELS = {"trace": "debug", "warn": "warning"}
"""The original's log levels that are called otherwise here."""

_NAMED = "hosts are named in --peers and find each other; leave it out"
_TCP = "blocks of other hosts are read over TCP so far; leave it out"
_SCRAPE = "there is no OTLP export; let a collector scrape /metrics of --http-addr"
_HIT_RATE = "hit rates are counted exactly, see /metrics of --http-addr; leave it out"

REFUSED = {
    "--advertise-addr": "a host is reached where --peers of the others say; leave it out",
    "--enable-lfu-admission": "this version admits every block and evicts the least recently used",
    "--hint-value-size": "pages are cut to each engine's blocks; leave it out",
    "--metaserver-addr": _NAMED,
    "--metaserver-queue-depth": _NAMED,
    "--metric-hll-bucket-bits": _HIT_RATE,
    "--metric-hll-windows": _HIT_RATE,
    "--metrics-otel-endpoint": _SCRAPE,
    "--metrics-period-secs": _SCRAPE,
    "--nics": _TCP,
    "--pool-shards": "no lock is shared that a second shard would relieve; leave it out",
    "--qps-per-peer": _TCP,
    "--ssd-cache-shards": "each --ssd-cache-path is a log of its own, written in parallel",
    "--ssd-prefetch-queue-depth": "no read is dropped; see --max-prefetch-blocks",
    "--trace-sample-rate": "this version traces no requests; see --log-level debug",
    "--transfer-lock-timeout-secs": "a loan ends when its reader is silent for 3 s; leave it out",
}
"""Flags that cannot be honoured, and why in a few words."""


def translate(arguments: list[str]) -> list[str]:
    """The arguments of `pegaflow serve` that mean the same.

    Raises:
        CommandLineError: one of them cannot be honoured.
    """
    out: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in REFUSED:
            raise CommandLineError(f"{name} is not supported: {REFUSED[name]}")
        if name in ALWAYS:
            continue
        if out and out[-1] == "--log-level":
            argument = LOG_LEVELS.get(argument.lower(), argument)
        elif name == "--log-level" and equals:
            argument = f"{name}={LOG_LEVELS.get(value.lower(), value)}"
        elif name in SPELLED:
            argument = SPELLED[name] + equals + value
        out.append(argument)
    return out


def main() -> None:
    """Entry point of `pegaflow-server`."""
    cli.run(PROGRAM, _serve)


def metaserver() -> None:
    """Entry point of `pegaflow-metaserver`, which nothing needs any more."""
    print(
        "pegaflow-metaserver: there is none; hosts tell each other what they have: start each with "
        "`pegaflow serve --peer-listen HOST:PORT --peers NAME@HOST:PORT`",
        file=sys.stderr,
    )
    sys.exit(2)


def _serve() -> None:
    given = sys.argv[1:]
    if given == ["--version"]:
        print(f"{PROGRAM} {version.installed()}")
        return
    group: Any = typer.main.get_command(cli.app)
    serve = group.commands["serve"]
    serve.epilog = (
        f"Of the original {PROGRAM}'s options these change nothing: {', '.join(ALWAYS)}. "
        f"These are refused, with what to do instead: {', '.join(REFUSED)}."
    )
    serve.main(translate(given), PROGRAM, **cli.CONTEXT)
