"""Either side of a link is killed or stopped while bytes are on their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pegaflow.device.link import Link, tcpstream
from pegaflow.device.link.tcp import TcpOwner, TcpReader
from pegaflow.wire.status import Status
from tests.device.link.rig import Ends, Word, soon

from .linkside import HOST, LEASE, PIECE, PIECES, POOL, READER, TOKEN, content

MANY = 6  # reads of the whole pool: more than are over before somebody is killed


@contextmanager
def side(*given: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One side, and the first line that it says."""
    command = [sys.executable, "-m", "tests.procs.linkside", *given]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def from_another() -> Iterator[tuple[subprocess.Popen[str], Link, bytearray]]:
    """An owner in a process of its own, and a link to it."""
    pool = bytearray(POOL)
    with side("owner") as (process, offer):
        reader = TcpReader(memoryview(pool))
        yield process, reader.connect(bytes.fromhex(offer), TOKEN), pool
        reader.close()


def underway(link: Link, pool: bytearray) -> list[Ends]:
    """Reads that have begun to arrive."""
    ends = [Ends() for _ in range(MANY)]
    for end in ends:
        link.read(LEASE, PIECES, end, soon())
    while not pool[0] | pool[PIECE - 1]:
        os.sched_yield()
    return ends


def right(pool: bytearray, end: Ends) -> None:
    """Every piece that has arrived is whole."""
    whole = content()
    for piece, outcome in zip(PIECES, end.outcomes(), strict=True):
        at = piece.local
        if outcome.status is Status.OK:
            assert pool[at : at + PIECE] == whole[at : at + PIECE]


def test_the_owner_is_killed() -> None:
    with from_another() as (process, link, pool):
        ends = underway(link, pool)
        process.kill()
        assert Status.PEER_GONE in ends[-1].statuses() <= {Status.OK, Status.PEER_GONE}
        assert link.streams == 0
        right(pool, ends[0])


def test_the_owner_is_stopped_and_comes_back() -> None:
    """Nothing but time is lost: the streams are as patient as their deadline."""
    with from_another() as (process, link, pool):
        ends = underway(link, pool)
        process.send_signal(signal.SIGSTOP)
        late = Ends()
        link.read(LEASE, PIECES, late, soon(0.2))
        assert late.statuses() == {Status.EXPIRED}
        process.send_signal(signal.SIGCONT)
        assert {status for end in ends for status in end.statuses()} == {Status.OK}
        right(pool, ends[0])


def test_the_owner_is_stopped_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpstream, "STALL_S", 0.2)
    with from_another() as (process, link, pool):
        ends = underway(link, pool)
        process.send_signal(signal.SIGSTOP)
        assert Status.PEER_GONE in ends[-1].statuses() <= {Status.OK, Status.PEER_GONE}
        assert link.streams == 0
        pool[:] = bytes(POOL)
        process.send_signal(signal.SIGCONT)
        link.close()
        assert pool == bytes(POOL)


@contextmanager
def to_another() -> Iterator[tuple[TcpOwner, subprocess.Popen[str]]]:
    """An owner, and its reader in a process of its own, in the middle of a read."""
    owner = TcpOwner(memoryview(content()), (HOST, 0))
    owner.lend(LEASE, READER, [(0, POOL)])
    with side("reader", owner.admit(READER, TOKEN, b"").hex()) as (process, said):
        assert said == "reading"
        begun = time.monotonic()
        while owner.counts["bytes_sent"] < POOL:
            assert time.monotonic() < begun + 20
            os.sched_yield()
        yield owner, process
        owner.close()


def test_the_reader_is_killed() -> None:
    with to_another() as (owner, process):
        process.kill()
        back = Word()
        owner.recall(LEASE, back)
        back.wait()


def test_the_reader_is_stopped() -> None:
    """What it was being sent comes back within a second, and others are served meanwhile."""
    with to_another() as (owner, process):
        process.send_signal(signal.SIGSTOP)
        other, pool = TcpReader(memoryview(bytearray(POOL))), Ends()
        link = other.connect(owner.admit(READER, b"n" * 32, b""), b"n" * 32)
        link.read(LEASE, PIECES, pool, soon())
        assert pool.statuses() == {Status.OK}
        back, begun = Word(), time.monotonic()
        owner.recall(LEASE, back)
        back.wait()
        assert time.monotonic() < begun + 10
        other.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("link")]
