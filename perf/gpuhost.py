"""What perf.gpu says of its host, and two questions to the driver that no document answers.

Whether a process that may lock little memory may register much; and how long calls take, in this
thread and another, while two thousand copies wait behind an event that has not come.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

from pegaflow import version
from pegaflow.core.errors import UserError
from pegaflow.device import gpufacts
from pegaflow.device.engine import cuda
from pegaflow.service import doctor, poolsize, sizes
from perf.gpucard import INTERPROCESS, Card, Memory, environment
from perf.gpuparts import Rows
from perf.machine import describe, timed

LITTLE, MUCH = 64 << 10, 64 << 20
QUEUED = 2000
PIECE = 16 << 10
WAIT_S = 20.0

REGISTER = f"""
import ctypes, mmap, resource
from pegaflow.device.engine import cuda
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({LITTLE}, {LITTLE}))
runtime = cuda.load()
runtime.setDevice(0)
held = mmap.mmap(-1, {MUCH})
ctypes.memset(address := ctypes.addressof(ctypes.c_char.from_buffer(held)), 1, len(held))
runtime.hostRegister(address, len(held), 1)
"""


def facts() -> Rows:
    """The host, and what the doctor says of it; needs no GPU."""
    memory = poolsize.look()
    rows = [
        ("machine", describe()),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        (
            "memory",
            f"{sizes.show(memory.total_bytes)}, /dev/shm {sizes.show(memory.shm_free_bytes)}",
        ),
        ("pegaflow", version.installed()),
    ]
    lines = doctor.gpu(gpufacts.read(), poolsize_of(memory), wanted=True)
    rows += [(line.about, f"{line.verdict}: {line.found}") for line in lines]
    return [{"what": what, "is": is_} for what, is_ in rows]


def poolsize_of(memory: poolsize.Memory) -> int:
    """What the doctor takes for the pool."""
    return doctor.pool_of(None, memory)


def questions() -> Rows:
    """What the driver does; each answer a row."""
    asked = {"copies behind an event": lambda: queued(Card()), "memlock": memlock}
    rows = []
    for what, ask in asked.items():
        try:
            rows.append({"what": what, "is": ask()})
        except (RuntimeError, UserError, AttributeError) as error:
            rows.append({"what": what, "is": f"not known: {cuda.first_line(error)}"})
    return rows


def memlock() -> str:
    """Whether registering heeds what a process may lock."""
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], env=environment(), capture_output=True, text=True
    )
    said = (done.stderr.strip().splitlines() or [""])[-1]
    may = f"with {sizes.show(LITTLE)} to lock (root: {_is_root()}), {sizes.show(MUCH)} "
    return may + ("are registered" if not done.returncode else f"are not registered: {said}")


def _is_root() -> str:
    return "yes" if Path("/proc/self").stat().st_uid == 0 else "no"


def queued(card: Card) -> str:
    """How long calls take behind an event that has not come."""
    runtime, gate, other = card.runtime, threading.Event(), card.runtime.streamCreateWithFlags(1)
    event = runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | INTERPROCESS)
    memory, host = Memory(card, PIECE), int(runtime.hostAlloc(PIECE, cuda.PORTABLE))
    calls: list[float] = []
    records: list[float] = []

    def wait(_: object) -> None:
        gate.wait(WAIT_S)

    def record() -> None:
        runtime.setDevice(0)
        while not gate.is_set():
            records.append(timed(lambda: runtime.eventRecord(card.event, card.stream))[0])
            time.sleep(0.0005)

    runtime.launchHostFunc(card.stream, wait, 0)
    runtime.eventRecord(event, card.stream)
    runtime.streamWaitEvent(other, event, 0)
    recorder = threading.Thread(target=record, daemon=True)
    opener = threading.Timer(WAIT_S / 4, gate.set)
    opener.start()
    recorder.start()
    start = time.perf_counter()
    for _ in range(QUEUED):
        calls.append(
            timed(
                lambda: runtime.memcpyAsync(memory.address, host, PIECE, cuda.HOST_TO_DEVICE, other)
            )[0]
        )
    held = gate.is_set()
    total = time.perf_counter() - start
    gate.set()
    opener.cancel()
    recorder.join()
    runtime.streamSynchronize(other)
    runtime.streamSynchronize(card.stream)
    memory.free()
    blocked = ", and were held up until it came" if held else ""
    longest, other_longest = 1e6 * max(calls), 1e6 * max(records, default=0.0)
    return (
        f"{QUEUED} copies are issued in {1e3 * total:.1f} ms, the longest call {longest:.0f} us, "
        f"the longest record of another thread {other_longest:.0f} us{blocked}"
    )
