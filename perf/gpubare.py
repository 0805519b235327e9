"""The session's copies without a service: a process beside that opens the memory and moves blocks.

It has what a session has of a GPU (pegaflow/device/engine/cuda_ipc.py) and memory of its own in the
pool's place, registered at once; it is told to save and to load, and says how long the copy took.
So what perf.gpu's table of copies has beyond that is messages, and where no service can run, this
still can.

    python -m perf.gpubare      reads what to open, then orders, a line each, from stdin
"""

from __future__ import annotations

import ctypes
import json
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from pegaflow.core.errors import UserError
from pegaflow.device.engine.cuda_ipc import Gpus
from pegaflow.service import signals, sizes
from pegaflow.wire.gpu import Backend, GpuMemory, GpuRegion
from pegaflow.wire.jobs import Result
from pegaflow.wire.layout import page_size
from perf import command
from perf.gpucard import WAIT_S, Bus, GpuShape, Memory, environment

READY, SAVE, LOAD = "ready", "save", "load"


def main() -> None:
    """Be that process."""
    told = json.loads(sys.stdin.readline())
    shape = GpuShape(*told["shape"])
    memory = GpuMemory(
        told["bus"],
        bytes.fromhex(told["uuid"]),
        tuple(GpuRegion(bytes.fromhex(handle), offset) for handle, offset in told["regions"]),
        event=bytes.fromhex(told["event"]),
        backend=Backend[told["method"].upper()],
    )
    size = page_size(shape.layout)
    pool = mmap.mmap(-1, size * shape.blocks)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pool))
    ctypes.memset(address, 1, len(pool))
    gpus = Gpus(address)
    opened = gpus.open(memory, shape.layout)
    gpus.pin(0, len(pool))
    order = np.random.default_rng(3)
    blocks = order.permutation(shape.blocks).astype(np.uint64)
    offsets = order.permutation(shape.blocks).astype(np.uint64) * np.uint64(size)
    say(READY)
    for line in sys.stdin:
        over, ended = threading.Event(), list[Result]()

        def done(result: Result, ended: list[Result] = ended, over: threading.Event = over) -> None:
            ended.append(result)
            over.set()

        deadline = time.monotonic_ns() + int(WAIT_S * 1e9)
        start = time.perf_counter()
        if line.strip() == SAVE:
            opened.read(blocks, offsets, deadline, done)
        else:
            there = blocks + np.uint64(shape.blocks)
            opened.write(there, offsets, deadline, done, check=lambda: None)
        if not over.wait(2 * WAIT_S) or not ended[0].ok:
            raise UserError(f"a copy has not ended well: {ended}")
        say(str(time.perf_counter() - start))


def say(word: str) -> None:
    print(word, flush=True)


@contextmanager
def beside(memory: Memory, shape: GpuShape, method: str) -> Iterator[Callable[[str], float]]:
    """Start such a process for this memory; what it takes orders by, and answers the seconds."""
    named = memory.card.export([memory], method).memory
    told = {
        "shape": [shape.blocks, shape.layers, shape.segment],
        "bus": named.bus,
        "uuid": named.uuid.hex(),
        "regions": [[region.handle.hex(), region.offset] for region in named.regions],
        "event": named.event.hex(),
        "method": method,
    }
    process: subprocess.Popen[str] | None = None
    try:
        with signals.held():
            process = subprocess.Popen(
                [sys.executable, "-m", "perf.gpubare"],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        child = process

        def ask(line: str) -> str:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(f"{line}\n")
            child.stdin.flush()
            answer = child.stdout.readline().strip()
            if not answer:
                raise UserError("the process that copies has ended")
            return answer

        ask(json.dumps(told))

        def order(way: str) -> float:
            memory.card.record()
            return float(ask(way))

        yield order
    finally:
        if process is not None:
            process.kill()
            process.communicate()


def bare(memory: Memory, shape: GpuShape, *, bus: Bus, method: str, turns: int) -> dict[str, str]:
    """GB/s of copies by one method, beside the bus in turns."""
    seconds: list[tuple[float, float, float, float]] = []
    with beside(memory, shape, method) as order:
        for _ in range(turns + 1):  # the first is not counted
            out, bus_out = order(SAVE), bus.out()
            back, bus_back = order(LOAD), bus.back()
            seconds.append((out, back, bus_out, bus_back))
    wrong = shape.wrong(memory, range(min(8, shape.blocks)))
    if wrong:
        raise UserError(f"{wrong} pieces are wrong by {method}, {shape}")
    save, load, out, back = (median(column) for column in zip(*seconds[1:], strict=True))
    rates = shape.total / save, shape.total / load, bus.size / out, bus.size / back
    heads = ("save GB/s", "load GB/s", "bus out", "bus in")
    return {
        "segment": sizes.show(shape.segment),
        "blocks x layers x 2": str(shape),
        "method": method,
        **dict(zip(heads, (f"{rate / 1e9:.2f}" for rate in rates), strict=True)),
        "save/out": f"{rates[0] / rates[2]:.2f}",
        "load/in": f"{rates[1] / rates[3]:.2f}",
    }


if __name__ == "__main__":
    command.run("perf.gpubare", main)
