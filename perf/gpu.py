"""Copies between a GPU and the pool, and what is around them: python -m perf.gpu --out FOLDER

On a machine with a GPU, cupy and this package, and torch for one part, in under ten minutes; each
part is a process of its own, so that none that fails or hangs costs more than itself, and what it
has found is printed and written when it ends: `gpu.md`, tables, and `gpu.json`, the same for
programs.  With `--seconds` a part has no more than what is left of them, and one for which nothing
is left is not started.

    host      the machine, what `pegaflow doctor --gpu` says of it, and what its driver does
    layouts   each byte of each layout of a vLLM engine comes back, by each method of copying
    bare      GB/s of copies of segments of 4 KiB to 4 MiB by each method, by the session's code but
              without a service, beside copies of one large pinned buffer over the same bus
    copies    the same of saves and loads through a service, messages included.
              Goals: 0.95 of the bus from 64 KiB on, 0.7 at 16 KiB
    matmul    a decoding engine's matrix products while another engine saves and loads all the
              time, beside the same with nothing under way.  Goal: under 2 % slower
    deaths    engine or session killed by SIGKILL in the middle of copies: the books add up, and
              the bytes are right
    ranks     two tensor parallel ranks on one device: the processes that have a context there
    rounds    1,000 times an engine attaches new memory and gives it up
    attach    an engine's wait for its session with pools of 1, 8 and 32 GiB, with a spare session
              ready and with none; then how long its registered session takes to be dead

With `--quick` sizes are small and figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf import command, gpuhost, gpuparts, gputables, gputorch, machine
from perf.gpucard import Card, environment
from perf.gpuparts import LARGE, SMALL, Rows
from perf.gputables import FULL, MIB, QUICK

PARTS = {
    "host": 60,
    "layouts": 60,
    "bare": 120,
    "copies": 240,
    "matmul": 110,
    "deaths": 120,
    "ranks": 40,
    "rounds": 90,
    "attach": 200,
}
"""In this order; each may take so many seconds.  All of it together takes about half of that."""

ROUNDS, QUICK_ROUNDS = 1000, 20
TIMES, QUICK_TIMES = 5, 1
POOL, QUICK_POOL = 2048 * MIB, 64 * MIB
CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: who loses its parent is ours
END_S = 15.0  # for a part that was told to end
LEAST_S = 10.0  # of a part: imports, a context and a service take most of it


def rows_of(part: str, quick: bool, show: Callable[[dict[str, str]], None]) -> Rows:
    """What a part has found; what is shown before it ends is told of its rows one by one."""
    size = QUICK if quick else FULL
    if part == "host":
        facts = gpuhost.facts()
        for row in facts:
            show(row)
        return facts + gpuhost.questions(show)
    card = Card()
    if part == "bare":
        return gputables.bare(card, size, show)
    if part == "copies":
        return gputables.copies(card, size, show)
    if part == "matmul":
        return gputables.matmul(gputorch.TorchDecode(), size, show)
    if part == "attach":
        return gputables.attach(card, size, show)
    shape, times = (SMALL, QUICK_TIMES) if quick else (LARGE, TIMES)
    with gputables.serving(QUICK_POOL if quick else POOL) as endpoint:
        if part == "layouts":
            return gpuparts.layouts(card, endpoint, show)
        if part == "ranks":
            return gpuparts.ranks(card, endpoint)
        if part == "rounds":
            return gpuparts.rounds(card, endpoint, count=QUICK_ROUNDS if quick else ROUNDS)
        rows: Rows = []
        with gpuparts.failing(rows, what="an engine is killed"):
            rows += gpuparts.engine_killed(endpoint, shape=shape, times=times)
        show(rows[-1])
        with gpuparts.failing(rows, what="a session is killed"):
            rows += gpuparts.session_killed(card, endpoint, shape=shape, times=times)
        show(rows[-1])
        return rows


def table(rows: Rows) -> str:
    """As Markdown."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads), *([row.get(h, "") for h in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(folder: Path | None, part: str, rows: Rows, seconds: float) -> None:
    """Print what a part has found, and keep it."""
    text = f"\n## {part}, {seconds:.0f} s\n\n{table(rows)}"
    print(text, flush=True)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gpu.md").open("a") as file:
        file.write(text)
    kept = folder / "gpu.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found[part] = {"seconds": round(seconds, 1), "rows": rows}
    kept.write_text(json.dumps(found, indent=1) + "\n")


def run_part(part: str, folder: Path | None, quick: bool) -> bool:
    """In this process; whether nothing has failed."""
    start, shown = time.monotonic(), list[dict[str, str]]()

    def show(row: dict[str, str]) -> None:
        shown.append(row)
        print(f"{part}: {', '.join(f'{k} {v}' for k, v in row.items())}", flush=True)

    try:
        rows = rows_of(part, quick, show)
    except Exception as error:
        why = str(error).partition("\n")[0]
        rows = [*shown, {"failed": f"{type(error).__name__}: {why}"}]
        if not isinstance(error, UserError):
            sys.excepthook(type(error), error, error.__traceback__)
    except signals.Interrupted:
        write(folder, part, [*shown, {"failed": "it took too long"}], time.monotonic() - start)
        raise
    write(folder, part, rows, time.monotonic() - start)
    return not any("failed" in row for row in rows)


def run_apart(part: str, given: argparse.Namespace, until: float) -> bool:
    """In a process of its own, for as long as it may take; whether nothing has failed.

    Args:
        until: of time.monotonic, when all of it is to be over.
    """
    seconds = min(PARTS[part], until - time.monotonic() - END_S)
    if seconds < LEAST_S:
        folder = Path(given.out) if given.out else None
        write(
            folder,
            part,
            [{"failed": f"not started: too little of --seconds {given.seconds:g} is left"}],
            0.0,
        )
        return False
    line = [sys.executable, "-m", "perf.gpu", "--only", part]
    line += ["--out", given.out] if given.out else []
    line += ["--quick"] if given.quick else []
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals.held():
            process = subprocess.Popen(line, env=environment())
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds) == 0
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        print(f"{part}: ended after {seconds:.0f} s", flush=True)
        return False
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        end_orphans()


def end_orphans() -> None:
    """A part that had to be killed has left its service to us: end that, too."""
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + END_S
    while children() and time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)


def children() -> list[int]:
    """Processes whose parent we are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="a folder for gpu.md and gpu.json")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; several times")
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of all parts, where these are several"
    )
    given = parser.parse_args()
    parts = given.only or list(PARTS)
    start = time.monotonic()
    if len(parts) == 1:
        well = [run_part(parts[0], Path(given.out) if given.out else None, given.quick)]
    else:
        ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
        well = [run_apart(part, given, start + given.seconds) for part in parts]
    failed = [part for part, good in zip(parts, well, strict=True) if not good]
    print(f"{time.monotonic() - start:.0f} s, {machine.describe()}")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    command.run("perf.gpu", main)
