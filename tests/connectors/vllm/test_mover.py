"""The mover's thread while there is nothing to do."""

import queue
import threading
from typing import Any

import numpy as np
import pytest

from pegaflow.client import Done
from pegaflow.connectors.vllm.mover import ALONE_S, IDLE_S, Mover
from pegaflow.connectors.vllm.settings import engine
from pegaflow.wire.layout import LayerLayout, Layout

from . import fakes

LAYOUT = Layout(4, (LayerLayout(0, 0, 4096, 4096),), "uint8")


class Quiet:
    """A client to which nothing happens but what a test does."""

    refusal = advice = ""
    ways = ("staged", "staged", "")

    def __init__(self, *_: object, **__: object) -> None:
        self.attached = False
        self.polls: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.ended = threading.Semaphore(0)
        made.put(self)

    def poll(self, timeout: float) -> list[Done]:
        self.polls.put(timeout)
        self.ended.acquire()
        return []

    def wake(self) -> None:
        self.ended.release()

    def register(self, *_: object, **__: object) -> None: ...

    def unregister(self, timeout: float) -> bool:
        return True

    def close(self) -> None: ...


made: queue.SimpleQueue[Quiet] = queue.SimpleQueue()


def test_an_idle_mover_sleeps() -> None:
    made_engine, _ = engine(fakes.config(), fakes.kv_cache_config())
    client_type: Any = Quiet
    mover = Mover(made_engine, LAYOUT, [np.zeros(4 * 4096, np.uint8)], client_type)
    mover.start()
    client = made.get(timeout=30)
    assert client.polls.get(timeout=30) == pytest.approx(ALONE_S)
    client.attached = True
    client.wake()
    assert client.polls.get(timeout=30) == IDLE_S >= 60
    assert client.polls.empty(), "it waits for a wake"
    assert mover.stop(30)
