"""An engine's memory from another process: here a child whose memory both know."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from pegaflow.core.errors import UserError
from pegaflow.device.engine import process_vm
from pegaflow.device.engine.process_vm import ForeignMemory
from pegaflow.device.procs import start_ticks
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from tests.actors.steps import steps

PROOF = bytes(range(32))
BLOCKS, RUN = 32, 48 * 1024
LAYOUT = Layout(
    BLOCKS,
    (
        LayerLayout(0, 0, 2 * RUN, RUN),
        LayerLayout(0, RUN, 2 * RUN, RUN // 2, segments=2, segment_stride=RUN // 2),
    ),
    "uint8",
)
BYTES = BLOCKS * 2 * RUN
PROGRAM = f"""
import ctypes, sys
memory = (ctypes.c_char * {BYTES})()
for at in range(0, {BYTES}, 4): memory[at] = at // 4 % 251
proof = (ctypes.c_char * 32)(*range(32))
print(ctypes.addressof(memory), ctypes.addressof(proof), flush=True)
for line in sys.stdin:
    print(sum(memory.raw), flush=True)
"""
NEVER = 1 << 62


@dataclass
class Engine:
    process: "subprocess.Popen[str]"
    base: int
    scratch: int

    def memory(self, **other: object) -> ForeignMemory:
        pid = self.process.pid
        known = {
            "pid": pid,
            "started_ticks": start_ticks(pid),
            "proof": PROOF,
            "scratch": self.scratch,
        }
        known.update(other)
        return ForeignMemory(bases=(self.base,), layout=LAYOUT, **known)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        base, scratch = map(int, process.stdout.readline().split())
        yield Engine(process, base, scratch)
        process.kill()


class Pool:
    """Pages in a mapping of ours."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.offsets = np.arange(0, BYTES, 2 * RUN, dtype=np.uint64)


def test_blocks_come_and_go_whole(engine: Engine) -> None:
    memory, pool = engine.memory(), Pool()
    blocks = np.arange(BLOCKS, dtype=np.uint64)[::-1].copy()
    assert memory.payload_bytes == 2 * RUN
    assert memory.read(pool.address, blocks, pool.offsets, NEVER) == (Status.OK, "")
    at = np.arange(BYTES)
    expected = np.where(at % 4 == 0, at // 4 % 251, 0).astype(np.uint8).reshape(BLOCKS, -1)
    assert np.array_equal(pool.bytes.reshape(BLOCKS, -1), expected[::-1])
    pool.bytes[:] = 1
    assert memory.write(pool.address, blocks, pool.offsets, NEVER) == (Status.OK, "")
    process = engine.process
    assert process.stdin is not None and process.stdout is not None
    print(file=process.stdin, flush=True)
    assert int(process.stdout.readline()) == BYTES


@pytest.mark.parametrize(("chunk", "pieces"), [(3 * RUN, 1024), (1 << 30, 5), (1, 1024)])
def test_no_call_is_larger_than_it_may_be(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk: int, pieces: int
) -> None:
    memory, pool = engine.memory(), Pool()
    libc, calls = process_vm._libc, []

    def read(*given: int) -> int:
        got = int(libc.process_vm_readv(*given))
        calls.append((got, given[2], given[4]))
        return got

    spy = SimpleNamespace(process_vm_readv=read, process_vm_writev=libc.process_vm_writev)
    monkeypatch.setattr(process_vm, "_libc", spy)
    monkeypatch.setattr(process_vm, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(process_vm, "IOV_MAX", pieces)
    blocks = np.random.default_rng(1).permutation(BLOCKS).astype(np.uint64)
    assert memory.read(pool.address, blocks, pool.offsets, NEVER) == (Status.OK, "")
    bytes_, ours, theirs = zip(*calls, strict=True)
    assert sum(bytes_) == BYTES and max(bytes_) <= max(chunk, RUN)
    assert max(ours) == 1, "pages that lie side by side are one piece of a call"
    assert max(theirs) <= pieces
    at = np.arange(BYTES)
    expected = np.where(at % 4 == 0, at // 4 % 251, 0).astype(np.uint8).reshape(BLOCKS, -1)
    assert np.array_equal(pool.bytes.reshape(BLOCKS, -1), expected[blocks])


def test_two_threads_may_copy_at_once(engine: Engine) -> None:
    memory, pool = engine.memory(), Pool()
    blocks = np.arange(BLOCKS, dtype=np.uint64)

    def read(_: int) -> Status:
        return memory.read(pool.address, blocks, pool.offsets, NEVER)[0]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(read, range(64))) == {Status.OK}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"proof": bytes(32)}, "is not the engine's"),
        ({"scratch": 8}, "cannot read"),
        ({"started_ticks": 1}, "not to be seen"),
        (
            {"pid": os.getpid(), "started_ticks": start_ticks(os.getpid()), "scratch": 8},
            "cannot read",
        ),
    ],
)
def test_who_is_not_the_engine_is_not_touched(
    engine: Engine, other: dict[str, object], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        engine.memory(**other)


def test_a_deadline_a_death_and_an_end_stop_a_copy(engine: Engine) -> None:
    memory, pool = engine.memory(), Pool()
    blocks = np.arange(BLOCKS, dtype=np.uint64)
    past = time.monotonic_ns() - 1
    assert memory.read(pool.address, blocks, pool.offsets, past)[0] is Status.EXPIRED
    engine.process.send_signal(signal.SIGKILL)
    engine.process.wait()
    assert memory.write(pool.address, blocks, pool.offsets, NEVER)[0] is Status.COPY_FAILED
    memory.closed = True
    assert memory.read(pool.address, blocks, pool.offsets, NEVER)[0] is Status.COPY_FAILED


def test_a_hole_is_a_failure(engine: Engine) -> None:
    pool = Pool()
    memory = engine.memory()
    hole = mmap.mmap(-1, mmap.PAGESIZE)
    nowhere = ctypes.addressof(ctypes.c_char.from_buffer(hole)) + (1 << 45)
    status, why = memory.read(nowhere, np.zeros(1, np.uint64), pool.offsets[:1], NEVER)
    assert status is Status.COPY_FAILED and why


def test_a_copy_takes_no_step_for_a_piece(engine: Engine) -> None:
    """What is copied in one call is made for it without a step of Python for each piece."""
    memory, pool = engine.memory(), Pool()

    def copy(count: int) -> None:
        blocks = np.arange(2 * count, step=2, dtype=np.uint64)
        assert memory.write(pool.address, blocks, pool.offsets[:count], NEVER)[0] is Status.OK

    took = [steps(partial(copy, count)) for count in (2, 2, BLOCKS // 2)]
    assert took[2] == took[1], took
