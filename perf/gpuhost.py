"""What perf.gpu says of its host, and three questions to the driver that no document answers.

Whether a process that may lock little memory may register much; how long calls take, in one thread
and another, while two thousand copies wait behind an event that has not come; and whether a kernel
can be had at all, without which all that is asked of it is moved by copies.

Each question is asked in a process of its own, which may hang: that is an answer, too.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pegaflow import version
from pegaflow.device import gpufacts
from pegaflow.device.engine import cuda, kernel
from pegaflow.service import doctor, poolsize, sizes
from perf.gpucard import INTERPROCESS, Card, Memory, environment
from perf.gpuparts import Rows
from perf.machine import describe, timed

LITTLE, MUCH = 64 << 10, 64 << 20
QUEUED = 2000
PIECE = 16 << 10
RECORDS = 200  # of the other thread: a stream holds about a thousand orders
OPEN_S = 2.0  # until the event comes; by then all copies are issued, unless that waits for it
ASK_S = 15.0  # of each question, with the imports and the context of its process

REGISTER = f"""
import ctypes, mmap, resource
from pegaflow.device.engine import cuda
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({LITTLE}, {LITTLE}))
runtime = cuda.load()
runtime.setDevice(0)
held = mmap.mmap(-1, {MUCH})
ctypes.memset(address := ctypes.addressof(ctypes.c_char.from_buffer(held)), 1, len(held))
try:
    runtime.hostRegister(address, len(held), 1)
    print("are registered")
except RuntimeError as error:
    print("are not registered:", cuda.first_line(error))
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


def questions(show: Callable[[dict[str, str]], None]) -> Rows:
    """What the driver does; each answer a row.

    Args:
        show: told of each row once it is there.
    """
    asked = {
        "memlock": (REGISTER, _may_lock(), "it is not over"),
        "kernel": ("from perf import gpuhost; print(gpuhost.kernels())", "", "it is not over"),
        "copies behind an event": (
            "from perf import gpuhost; print(gpuhost.queued())",
            "",
            "it is not over: calls of another thread are held up too",
        ),
    }
    rows = []
    for what, (program, before, late) in asked.items():
        rows.append({"what": what, "is": before + ask(program, late)})
        show(rows[-1])
    return rows


def ask(program: str, late: str, seconds: float = ASK_S) -> str:
    """The last line that a program in a process of its own prints.

    Args:
        program: for `python -c`.
        late: the answer if it has not ended in time.
    """
    line = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            line, env=environment(), capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"{late} (after {seconds:.0f} s)"
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["nothing"]
    return f"not known: {said[-1]}" if done.returncode else said[-1]


def _may_lock() -> str:
    root = "yes" if Path("/proc/self").stat().st_uid == 0 else "no"
    return f"with {sizes.show(LITTLE)} to lock (root: {root}), {sizes.show(MUCH)} "


def kernels() -> str:
    """Whether the first device has a kernel for short pieces, and what is lacking if not."""
    runtime = cuda.load()
    runtime.setDevice(0)
    if not cuda.reaches(runtime, 0):
        return "none: the device does not find registered memory under the host's address"
    took, _ = timed(kernel.compiled)
    return f"compiled or found in {took:.1f} s"


def queued() -> str:
    """How long calls take behind an event that has not come."""
    card = Card()
    runtime, gate, other = card.runtime, threading.Event(), card.runtime.streamCreateWithFlags(1)
    event = runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | INTERPROCESS)
    memory, host = Memory(card, PIECE), int(runtime.hostAlloc(PIECE, cuda.PORTABLE))
    ready, records, refused = threading.Event(), list[float](), list[int]()

    def wait(_: object) -> None:
        gate.wait(ASK_S)

    def record() -> None:
        """By ctypes, which gives the interpreter's lock back: cupy keeps it, so that a record that
        is held up would hold up the thread that opens the gate, and all would wait for good."""
        runtime.setDevice(0)
        driver = ctypes.CDLL("libcuda.so.1")
        what = ctypes.c_void_p(card.event), ctypes.c_void_p(card.stream)
        ready.set()
        while not gate.is_set() and len(records) < RECORDS:
            seconds, code = timed(lambda: driver.cuEventRecord(*what))
            records.append(seconds)
            refused.extend([code] if code else [])
            time.sleep(0.0005)

    recorder = threading.Thread(target=record, daemon=True)
    runtime.launchHostFunc(card.stream, wait, 0)
    runtime.eventRecord(event, card.stream)
    runtime.streamWaitEvent(other, event, 0)
    recorder.start()
    ready.wait()
    opener = threading.Timer(OPEN_S, gate.set)
    opener.start()

    def copy() -> None:
        runtime.memcpyAsync(memory.address, host, PIECE, cuda.HOST_TO_DEVICE, other)

    total, calls = timed(lambda: [timed(copy)[0] for _ in range(QUEUED)])
    held = gate.is_set()
    gate.set()
    opener.cancel()
    recorder.join()
    runtime.streamSynchronize(other)
    runtime.streamSynchronize(card.stream)
    memory.free()
    if refused:
        return f"not known: {len(refused)} of {len(records)} records have failed, by {refused[0]}"
    blocked = ", and were held up until it came" if held else ""
    longest, other_longest = 1e6 * max(calls), 1e6 * max(records, default=0.0)
    return (
        f"{QUEUED} copies are issued in {1e3 * total:.1f} ms, the longest call {longest:.0f} us, "
        f"the longest of {len(records)} records of another thread {other_longest:.0f} us{blocked}"
    )
