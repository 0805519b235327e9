"""Real engines behind `vllm serve`, asked by `vllm bench serve`: python -m perf.serve (needs vLLM)

    bash tests/connectors/vllm/install.sh ENGINES 0.33.0
    python -m perf.peers.install lmcache --over ENGINES/0.33.0/bin/python
    python -m perf.serve --over ENGINES/0.33.0/bin/python

Contestants (contestants.py) take turns; in a turn each starts its service and one engine on the
CPU at a time, with the same random model, and nothing else runs.  What is asked is the same in
every turn: prompts of random tokens, a few at a time.

    cold                     prompts that nobody has computed
    kept                     the same again, found by vLLM in its own prefix cache: the time of a
                             step in which next to nothing is computed, which no connector can beat
    warm                     the same again, when vLLM's own prefix cache was emptied
    warm, restarted          the same, by an engine that was started on the service of the first
    prefix repetition        new prompts; eight of them begin alike, by three quarters
    repetition, restarted    the same, by the second engine

What an engine without a connector keeps is asked of it alone.  Whoever finds nothing by its nature
takes no part: that engine in what is warm, and native offloading after a restart.  Before what is
measured, each engine has computed and found a few other prompts.

What each run has come to is said on stderr while it goes on.

`free` leaves the last core to the service and the client, and binds the engine with all its
processes to the others; with `busy` all of them have every core.

Goals: cold, the engine without a connector has at most 1.03 times the tokens a second where a core
is free; warm, half of the time to the first token of LMCache's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.table import Table

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf import command, machine
from perf.machine import ENVIRONMENT
from perf.peers.contestants import Handle, default_folder
from perf.serve import engine
from perf.serve.contestants import (
    CHUNK_TOKENS,
    LMCACHE,
    NATIVE,
    NONE,
    OURS,
    Contestant,
    contestants,
)
from perf.serve.cores import Cores, on, ways
from perf.serve.engine import Engine
from perf.serve.table import (
    COLD,
    COLUMNS,
    KEPT,
    REPEATED,
    REPEATED_RESTARTED,
    RESTARTED,
    WARM,
    Run,
    rows,
)

WHO = (NONE, OURS, LMCACHE, NATIVE)
POOL = 2 << 30
PROMPT_TOKENS, LAST_TOKENS, NEW_TOKENS = 1024, 16, 8
"""What may be found of a prompt, in whole chunks of LMCache's (vLLM's blocks are of a smaller power
of two, so that all can find the same), what is computed in any case, and what is generated."""
REPEATED_SHARE, EACH = 3 / 4, 8  # of prompts that begin alike
WARM_UP = 2  # prompts


@dataclass(frozen=True)
class Load:
    """What is asked."""

    prompts: int
    at_once: int
    tokens: int  # of a prompt, that may be found
    restart: bool = True

    def new(self, seed: int, count: int = 0) -> Prompts:
        """Prompts that have nothing in common, as many as all unless it is said how many."""
        return Prompts(seed, count or self.prompts, self.tokens, self.tokens)

    def alike(self, seed: int) -> Prompts:
        """Prompts of which EACH begin alike."""
        first = int(self.tokens * REPEATED_SHARE) // CHUNK_TOKENS * CHUNK_TOKENS
        return Prompts(seed, self.prompts, self.tokens, first, each=EACH)


@dataclass(frozen=True)
class Prompts:
    """Of one `vllm bench serve`; the same for the same seed."""

    seed: int
    count: int
    tokens: int  # of each, but for the last
    first: int  # the leading ones, which `each` prompts have in common
    each: int = 1

    def arguments(self) -> list[str]:
        """Of its command line."""
        how = {
            "prefix-len": self.first,
            "suffix-len": self.tokens - self.first + LAST_TOKENS,
            "num-prefixes": self.count // self.each,
            "output-len": NEW_TOKENS,
        }
        given = ["--dataset-name", "prefix_repetition", "--num-prompts", str(self.count)]
        for name, value in how.items():
            given += [f"--prefix-repetition-{name}", str(value)]
        return [*given, "--seed", str(self.seed)]


class Client:
    """`vllm bench serve`."""

    def __init__(self, handle: Handle, model: Path, at_once: int) -> None:
        self._handle = handle
        self._always = ["--model", str(model), "--max-concurrency", str(at_once), "--ignore-eos"]
        self._always += ["--save-detailed", "--disable-tqdm", "--ready-check-timeout-sec", "0"]

    def bench(self, target: Engine, prompts: Prompts, *, who: str, what: str, turn: int) -> Run:
        """Ask for all; what came of it.

        Raises:
            UserError: a request has failed.
        """
        before = target.found()
        arguments = [*self._always, "--base-url", target.url, *prompts.arguments()]
        result = self._handle.ask("bench", arguments)
        if result["completed"] != prompts.count:
            raise UserError(f"{result['completed']} of {prompts.count} requests were answered")
        return Run(
            who=who,
            what=what,
            turn=turn,
            seconds=result["duration"],
            prompt_tokens=result["total_input_tokens"],
            new_tokens=result["total_output_tokens"],
            found=target.found() - before,
            ttfts=tuple(result["ttfts"]),
            load=os.getloadavg()[0],
        )


@contextmanager
def client(python: Path, model: Path, at_once: int) -> Iterator[Client]:
    """Start one."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as name:
        said = Path(name, "said")
        handle: Handle | None = None
        try:
            with said.open("wb") as log, signals.held():
                process = subprocess.Popen(
                    [python, "-m", "perf.serve.client"],
                    env={**ENVIRONMENT, **engine.SETTINGS},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
                handle = Handle("the client", process, said)
            handle.answer()
            yield Client(handle, model, at_once)
        finally:
            if handle is not None:
                handle.end()


class Bench(Protocol):
    """Measures one engine."""

    def __call__(self, what: str, prompts: Prompts, *, forget: bool = True) -> None:
        """Ask; then have the engine empty its own prefix cache, if it is to forget."""


class Turns:
    """All turns of one way to share the cores."""

    def __init__(self, cores: Cores, model: Path, load: Load, asks: Client) -> None:
        self._cores, self._model, self._load, self._client = cores, model, load, asks
        self.runs: list[Run] = []

    def turn(self, contestant: Contestant, number: int) -> None:
        """Its service, and its engines one after the other.

        Raises:
            UserError: something does not start, or a request fails.
        """
        new, alike = self._load.new(1), self._load.alike(2)
        finds = contestant.name != NONE
        with contestant.service(POOL) as told:
            with self._engine(contestant, told, number, self._load.new(3, WARM_UP)) as bench:
                bench(COLD, new, forget=finds)
                bench(WARM if finds else KEPT, new)
                bench(REPEATED, alike)
            if contestant.name in {NONE, NATIVE} or not self._load.restart:
                return
            with self._engine(contestant, told, number, self._load.new(4, WARM_UP)) as bench:
                bench(RESTARTED, new)
                bench(REPEATED_RESTARTED, alike)

    @contextmanager
    def _engine(
        self, contestant: Contestant, told: str, number: int, first: Prompts
    ) -> Iterator[Bench]:
        """Start one that has computed and found the first prompts; what measures it."""
        with (
            tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as name,
            engine.running(
                contestant, self._model, told, cores=self._cores, log=Path(name, "log")
            ) as target,
        ):

            def bench(what: str, prompts: Prompts, *, forget: bool = True) -> None:
                run = self._client.bench(
                    target, prompts, who=contestant.name, what=what, turn=number
                )
                if forget:
                    target.forget()
                if what:
                    self.runs.append(run)
                    print(f"{self._cores.name}: {run}", file=sys.stderr)

            for _ in range(2):
                bench("", first)
            yield bench


def compare(
    cores: Cores, chosen: Sequence[Contestant], model: Path, load: Load, turns: int
) -> tuple[list[Run], list[str]]:
    """All turns; and a line of each that could not."""
    lines: dict[str, str] = {}
    going = list(chosen)
    with on(cores.rest), client(chosen[0].python, model, load.at_once) as asks:
        measured = Turns(cores, model, load, asks)
        for number in range(turns):
            for contestant in tuple(going):
                try:
                    measured.turn(contestant, number)
                except UserError as error:
                    going.remove(contestant)
                    lines[contestant.name] = f"{contestant.name}, {cores.name}: {error}"
    return measured.runs, list(lines.values())


def choose(python: Path, peers: Path, names: Sequence[str]) -> tuple[list[Contestant], list[str]]:
    """Who can take part, and a line for each other one.

    Raises:
        UserError: there is no vLLM.
    """
    chosen, lines = [], []
    for contestant in contestants(python, peers):
        if contestant.name not in {NONE, *names}:
            continue
        missing = contestant.missing()
        if missing and contestant.name == NONE:
            raise UserError(missing)
        if missing:
            lines.append(missing)
        else:
            chosen.append(contestant)
    return chosen, lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few prompts, one turn, no restart")
    parser.add_argument("--over", type=Path, required=True, metavar="PYTHON", help="that has vLLM")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="FOLDER")
    known = ways(os.sched_getaffinity(0))
    parser.add_argument("--cores", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3 * EACH, help="of each run")
    parser.add_argument("--at-once", type=int, default=2, help="requests under way")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="may be found")
    given = parser.parse_args()
    load = Load(given.prompts, given.at_once, given.prompt_tokens)
    turns, cores = given.turns, given.cores
    who = given.who
    if given.quick:
        load, turns, cores = replace(load, prompts=EACH, restart=False), 1, cores[:1]
        who = [name for name in who if name != NATIVE]
    if load.prompts < EACH or load.prompts % EACH:
        raise UserError(f"--prompts {load.prompts}: {EACH} each begin alike, so a multiple of it")
    most = engine.MAX_TOKENS - CHUNK_TOKENS
    if not CHUNK_TOKENS <= load.tokens <= most or load.tokens % CHUNK_TOKENS:
        raise UserError(
            f"--prompt-tokens {load.tokens}: a multiple of {CHUNK_TOKENS} up to {most} is wanted"
        )
    chosen, lines = choose(given.over, given.peers, who)
    each = f"{load.prompts} prompts of {load.tokens + LAST_TOKENS} tokens, {NEW_TOKENS} new ones"
    caption = f"milliseconds; {turns} turns of {each}, {load.at_once} at once"
    table = Table(*COLUMNS, box=None, caption=caption)
    with tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as name:
        model = Path(name, "model")
        make = [str(given.over), "-m", "perf.serve.model", str(model)]
        environment = {**ENVIRONMENT, **engine.SETTINGS}
        if subprocess.run(make, env=environment, stdout=sys.stderr).returncode:
            raise UserError("the model cannot be made; why stands above")
        for way in cores:
            runs, failed = compare(known[way], chosen, model, load, turns)
            lines += failed
            for row in rows(way, runs):
                table.add_row(*row)
    machine.show(table, *lines)


if __name__ == "__main__":
    command.run("perf.serve", main)
