"""What every table needs: the machine and its load, percentiles, goals, and the limit of memory.

A figure means little on a machine that others use too, so each table prints the load beside it and
measures its physical limit in the same run, taking turns with what it is compared to.

What stands in for an engine's memory comes from `memory`, and never from numpy.  numpy's large
arrays begin 16 bytes into a page, since the C library keeps its header there; an engine's tensors
begin 64 bytes into one (PyTorch aligns them so), pinned memory and the pool at its start.  It
matters: `rep movsb`, by which the C library and the kernel copy pieces like ours, is several times
slower on a processor such as AMD's third EPYC when the target begins 1 to some 30 bytes further
into its page than the source, without a single page fault: 3 to 7 times in `memcpy` of pieces under
1 MiB, 2 to 3 times in `process_vm_writev` of any.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
Copy = Callable[[Bytes, Bytes, npt.NDArray[np.uint64], npt.NDArray[np.uint64], int], None]
"""copy(target, source, target offsets, source offsets, bytes of each piece)"""

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).absolute().parents[1])}
"""For `python -m perf...` as a child, from any folder."""

WIDTH = 180  # of a table: a row is one line

COMPILERS = ("cc", "gcc", "clang")

C_LOOP = """
#include <stddef.h>
#include <string.h>
void copy(char *to, const char *from, const size_t *at, const size_t *out, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++)
        memcpy(to + at[i], from + out[i], size);
}
"""


def describe() -> str:
    """Processor, cores and load, in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores, load {load()}"


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all values do not exceed."""
    assert values and 0 < percent <= 100
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def verdict(value: float, goal: float, *, least: bool = False) -> str:
    """`pass` or `miss`, with the goal: a most, or a least."""
    good = value >= goal if least else value <= goal
    return f"{'pass' if good else 'miss'} ({'>=' if least else '<'} {goal:g})"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def show(table: Table, *lines: str) -> None:
    """Print a table, as wide as it is, with these lines and the machine under it."""
    console = Console(width=WIDTH, highlight=False)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(describe())


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that one call takes, and what it returns."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def medians(turns: int, calls: Sequence[Callable[[], object]]) -> list[float]:
    """The median seconds of each call; they take turns, so that all see the same machine."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, own in zip(calls, seconds, strict=True):
            own.append(timed(call)[0])
    return [median(own) for own in seconds]


def memory(size: int) -> Bytes:
    """Memory of an engine, touched: it begins with a page."""
    found = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    found[:] = 1
    return found


@contextmanager
def memcpy_loop() -> Iterator[tuple[Copy, str]]:
    """A C loop of memcpy over scattered pieces, and its name; ctypes.memmove without a compiler."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as folder:
        library = _compile(Path(folder))
        if library is None:
            yield _memmove_loop, "ctypes.memmove, no C compiler here: 0.3 us per piece slower"
            return
        function = library.copy
        function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_size_t] * 2
        function.restype = None

        def copy(
            to: Bytes,
            source: Bytes,
            at: npt.NDArray[np.uint64],
            out: npt.NDArray[np.uint64],
            size: int,
        ) -> None:
            pointers = (to.ctypes.data, source.ctypes.data, at.ctypes.data, out.ctypes.data)
            function(*pointers, len(at), size)

        yield copy, "C memcpy loop"


def _compile(folder: Path) -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    source, library = folder / "copy.c", folder / "copy.so"
    source.write_text(C_LOOP)
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return ctypes.CDLL(str(library))


def _memmove_loop(
    to: Bytes,
    source: Bytes,
    at: npt.NDArray[np.uint64],
    out: npt.NDArray[np.uint64],
    size: int,
) -> None:
    target, origin = to.ctypes.data, source.ctypes.data
    for there, here in zip(at.tolist(), out.tolist(), strict=True):
        ctypes.memmove(target + there, origin + here, size)
