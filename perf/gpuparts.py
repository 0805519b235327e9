"""What perf.gpu shows of one service: bytes of each layout, rounds without a leak, deaths, ranks.

Each part is a function of a card and a service, and returns the rows of its table; what must not be
raises.  tests/gpu asks the same of a real device, tests/procs of one that is not there.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from pegaflow.client import Done, inspect
from pegaflow.core.errors import UserError
from pegaflow.device.engine import cuda
from pegaflow.service import sizes
from pegaflow.service.settings import Settings
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION
from perf import gpulayouts
from perf.attach import spares
from perf.gpucard import (
    METHODS,
    WAIT_S,
    Card,
    Engine,
    GpuShape,
    Memory,
    content,
    new_keys,
    open_files,
    registered,
    session_of,
    settled,
    wait_for,
)
from perf.gpuengine import SERVED, child

Rows = list[dict[str, str]]
"""Of a table: columns by their heads."""

SMALL = GpuShape(8, 2, 16384)
LARGE = GpuShape(64, 32, 65536)
LEAK_BYTES = 64 << 20  # of the device, which a driver may keep for a session that goes on
LEAK_FILES = 8


def served(card: Card, endpoint: str, name: str, shape: GpuShape, *, stays: bool = False) -> Engine:
    """An engine with memory of this shape, attached."""
    memory = Memory(card, 2 * shape.total)
    engine = Engine(endpoint, name, shape.layout, card=card, regions=[memory], stays=stays)
    engine.attach()
    return engine


@contextmanager
def failing(rows: Rows, **about: str) -> Iterator[None]:
    """What fails in it is a row that says so, and what comes after goes on.

    Args:
        rows: get it.
        about: what else is in the row.
    """
    try:
        yield
    except (UserError, RuntimeError, OSError) as error:
        rows.append({**about, "failed": cuda.first_line(error)})


def layouts(card: Card, endpoint: str, show: Callable[[dict[str, str]], None]) -> Rows:
    """Each byte of each layout comes back, by each method."""
    rows: Rows = []
    engine, turn = served(card, endpoint, "perf-layouts", SMALL, stays=True), 0
    for case in gpulayouts.cases():
        loaded, failed = dict[str, int](), Rows()
        for method in METHODS:
            turn += 1
            with failing(failed, layout=case.name, methods=method):
                loaded[method] = gpulayouts.verify(card, engine, case, method, turn)
        if loaded:
            rows.append(
                {
                    "layout": case.name,
                    "methods": ", ".join(loaded),
                    "loaded and compared": sizes.show(sum(loaded.values())),
                    "wrong": "0",
                }
            )
            show(rows[-1])
        for row in failed:
            rows.append(row)
            show(row)
    engine.close()
    return rows


def rounds(card: Card, endpoint: str, *, count: int) -> Rows:
    """An engine attaches new memory and gives it up, again and again, in one session.

    Raises:
        UserError: something of it is left.
    """
    engine = served(card, endpoint, "perf-rounds", SMALL, stays=True)
    calm(endpoint)
    session = session_of(endpoint, "perf-rounds")
    took: list[float] = []
    before: Left | None = None
    for turn in range(count):
        took.append(engine.renew(SMALL.layout, [Memory(card, 2 * SMALL.total)]))
        if turn == min(10, count // 10):  # all that is made once is made by then
            before = Left.of(card, session_of(endpoint, "perf-rounds").pid)
    after = Left.of(card, session_of(endpoint, "perf-rounds").pid)
    same = session_of(endpoint, "perf-rounds").pid == session.pid
    engine.close()
    assert before is not None
    rows = [
        {
            "rounds": str(count),
            "ms a round": f"{median(took):.2f}",
            "one session": "yes" if same else "no",
            "device memory lost": sizes.show(max(0, before.free_bytes - after.free_bytes)),
            "descriptors": f"{before.files} {after.files}",
            "memory of the session": f"{sizes.show(before.resident)} {sizes.show(after.resident)}",
        }
    ]
    leaks = before.free_bytes - after.free_bytes > LEAK_BYTES
    if leaks or after.files - before.files > LEAK_FILES:
        raise UserError(f"something is left of {count} rounds: {rows[0]}")
    return rows


@dataclass(frozen=True)
class Left:
    """What would grow by a leak."""

    free_bytes: int  # of the device
    files: int  # descriptors of the session
    resident: int  # bytes of the session

    @classmethod
    def of(cls, card: Card, session: int) -> Left:
        with open(f"/proc/{session}/statm") as file:
            pages = int(file.read().split()[1])
        return cls(card.free_bytes(), open_files(session), pages * os.sysconf("SC_PAGE_SIZE"))


def engine_killed(endpoint: str, *, shape: GpuShape, times: int) -> Rows:
    """An engine is killed while blocks of it move; every page of it comes back.

    Raises:
        UserError: the books do not add up.
    """
    seconds: list[float] = []
    for turn in range(times):
        name, options = f"perf-killed-{turn}", [*map(str, _numbers(shape))]
        with child(endpoint, name, "--way", "busy", "--shape", *options) as engine:
            engine.said(SERVED)
            session = session_of(endpoint, name).pid
            fd = os.pidfd_open(session)
            try:
                engine.said("saved")  # and a load has begun
                start = time.perf_counter()
                engine.kill()
                seconds.append(_over(fd) - start)
            finally:
                os.close(fd)
        settled(endpoint)
    return [
        {
            "killed in a copy": "engine",
            "times": str(times),
            "its session ended after ms": f"{1e3 * median(seconds):.0f}",
            "most": f"{1e3 * max(seconds):.0f}",
            "books add up": "yes",
        }
    ]


def session_killed(card: Card, endpoint: str, *, shape: GpuShape, times: int) -> Rows:
    """A session is killed while it loads and saves; the engine hears of both, gets another session
    and finds what was saved before, byte by byte.

    Raises:
        UserError: it does not.
    """
    seconds: list[float] = []
    failed = 0
    for turn in range(times):
        took, lost = _session_killed(card, endpoint, shape, turn)
        seconds.append(took)
        failed += lost
    settled(endpoint)
    return [
        {
            "killed in a copy": "session",
            "times": str(times),
            "its session ended after ms": f"{1e3 * median(seconds):.0f}",
            "most": f"{1e3 * max(seconds):.0f}",
            "books add up": "yes",
            "operations that failed": f"{failed} of {2 * times}",
        }
    ]


def _session_killed(card: Card, endpoint: str, shape: GpuShape, turn: int) -> tuple[float, int]:
    """Seconds from the signal to the proof of death, and how many operations were lost by it."""
    name, memory = f"perf-survivor-{turn}", Memory(card, 2 * shape.total)
    memory.write(content(memory.size, 3 + turn))
    engine = Engine(endpoint, name, shape.layout, card=card, regions=[memory])
    engine.attach()
    keys, more = (new_keys(shape.blocks, (1 << 20) + 2 * turn + n) for n in (0, 1))
    blocks, others = range(shape.blocks), range(shape.blocks, 2 * shape.blocks)
    engine.save(keys, blocks)
    lease = engine.client.lookup(keys, timeout=WAIT_S).lease
    if lease is None:
        raise UserError("what was saved is not found")
    card.record()
    engine.client.start_load(lease, others, timeout=WAIT_S)
    engine.client.start_save(more, blocks, timeout=WAIT_S)
    ended = engine.client.poll(0.0)
    seconds = session_end(endpoint, name)
    ended += _ended(engine, 2 - len(ended))
    engine.attach()
    engine.load(keys, others)
    planes = memory.read().reshape(shape.layers * 2, 2, -1)
    if (planes[:, 0] != planes[:, 1]).any():
        raise UserError("wrong bytes were loaded after a session's death")
    engine.close()
    return seconds, sum(done.status is not Status.OK for done in ended)


def ranks(card: Card, endpoint: str) -> Rows:
    """Two tensor parallel ranks on one device: who has a context on it, and what that costs."""
    calm(endpoint)
    before, generation = card.free_bytes(), secrets.token_hex(16)
    ours = ["--way", "hold", "--generation", generation, "--ranks"]
    with (
        child(endpoint, "perf-ranks", *ours, "0", "2") as one,
        child(endpoint, "perf-ranks", *ours, "1", "2") as other,
    ):
        one.said(SERVED)
        other.said(SERVED)
        calm(endpoint)
        report = inspect(endpoint, WAIT_S)
        assert report is not None
        sessions = [row.pid for row in report.processes if row.address.name == SESSION]
        own = [
            row for row in report.processes if row.engine == "perf-ranks" and row.pid in sessions
        ]
        taken = before - card.free_bytes()
    wait_for("both engines are gone", lambda: not _served(endpoint, "perf-ranks"))
    return [
        {
            "ranks": "2",
            "engine processes": "2",
            "sessions of the engine": str(len(own)),
            "spares beside": str(len(sessions) - len(own)),
            "device memory of all, with 2 x KV": sizes.show(max(0, taken)),
            "KV of a rank": sizes.show(2 * SMALL.total),
        }
    ]


def calm(endpoint: str) -> None:
    """Wait until no spare is missing, or makes a context."""
    spares(endpoint, Settings.spares)
    registered(endpoint)


def session_end(endpoint: str, engine: str) -> float:
    """Seconds from SIGKILL of an engine's session until its pidfd fires."""
    fd = os.pidfd_open(session_of(endpoint, engine).pid)
    try:
        start = time.perf_counter()
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return _over(fd) - start
    finally:
        os.close(fd)


def _over(fd: int) -> float:
    """When the process of a pidfd was dead, as of perf_counter."""
    if not select.select([fd], [], [], WAIT_S)[0]:
        raise UserError(f"a session lives {WAIT_S:.0f} s after it should be dead")
    return time.perf_counter()


def _ended(engine: Engine, count: int) -> list[Done]:
    ended: list[Done] = []

    def all_() -> bool:
        ended.extend(engine.client.poll(0.05))
        return len(ended) >= count

    wait_for("what a dead session had under way ends", all_)
    return ended


def _served(endpoint: str, engine: str) -> bool:
    report = inspect(endpoint, 1.0)
    return report is None or any(row.engine == engine for row in report.processes)


def _numbers(shape: GpuShape) -> tuple[int, int, int]:
    return shape.blocks, shape.layers, shape.segment
