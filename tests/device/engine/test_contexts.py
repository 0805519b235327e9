"""Contexts of a session's devices: made side by side, and given up whole where they fail."""

import ctypes
import threading

import pytest

from pegaflow.core.errors import UserError
from pegaflow.device.engine import cuda as seam
from tests.fakes import cuda, gpus
from tests.fakes.driver import Driver
from tests.fakes.engines import Foreign

from .session import Session


def test_no_device_waits_for_the_context_of_another(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make_context(device: int) -> None:
        if device == 1:
            begun.set()
            assert go_on.wait(20)

    monkeypatch.setattr(seam, "make_context", make_context)
    warming = threading.Thread(target=session.gpus.warm, args=("1",), daemon=True)
    opening = threading.Thread(target=session.open, args=(engine,), daemon=True)
    warming.start()
    assert begun.wait(20)
    opening.start()
    opening.join(5)
    there, waits = gpus.contexts(0), opening.is_alive()
    go_on.set()
    warming.join(20)
    assert there and not waits


@pytest.mark.parametrize("fits", range(5))
def test_a_device_without_room_for_all_streams_keeps_none_and_no_thread(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """Or each engine that comes, and each spare, adds as many again."""
    make = cuda.streamCreateWithPriority

    def full(flags: int, priority: int) -> int:
        if len(cuda.machine().streams) == fits:
            raise gpus.CUDARuntimeError(2, "out of memory")
        return make(flags, priority)

    machine = cuda.machine()
    threads = threading.active_count()
    monkeypatch.setattr(cuda, "streamCreateWithPriority", full)
    with pytest.raises(UserError, match="no context on GPU 0: .*out of memory"):
        session.open(engine)
    assert threading.active_count() == threads
    assert not machine.streams and not machine.events


@pytest.mark.parametrize("mode", [2, 3])
def test_no_context_is_made_ahead_where_there_may_be_but_one(
    session: Session, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """Or the spare has it, and the engine cannot start."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(compute_mode=mode))
    with pytest.raises(UserError, match=f"compute mode {mode}.*nvidia-smi -c DEFAULT"):
        session.gpus.warm("0")
    assert gpus.contexts(0) == []


def test_one_is_made_ahead_where_all_processes_may_have_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    session.gpus.warm("0")
    assert gpus.contexts(0)
