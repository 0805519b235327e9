"""What an engine stands by while the session of another epoch is being opened."""

import threading
from collections.abc import Sequence
from typing import Any

from pegaflow.connectors.vllm.opener import Opener

PATIENCE_S = 2.0


class Slow:
    """A client that is attached when a test lets it."""

    refusal = ""

    def __init__(self, epoch: int) -> None:
        self.may = threading.Event()
        self.attached = not epoch
        self.committed: list[int] = []
        self.told = threading.Event()

    def connect(self, timeout: float) -> bool:
        self.attached = self.attached or self.may.wait(PATIENCE_S)
        return self.attached

    def commit(self, orders: Sequence[int]) -> None:
        self.committed += orders
        self.told.set()

    def close(self) -> None:
        self.attached = False


def test_what_was_kept_is_said_when_the_session_is_there_though_the_engine_is_idle() -> None:
    made: list[Any] = [Slow(0), Slow(1)]
    opener = Opener(made.__getitem__)
    opener.connect(0.0)
    opener.commit([1])
    opener.reopen(1)
    opener.commit([2, 3])
    made[1].may.set()
    assert made[1].told.wait(PATIENCE_S), "nobody asks the engine for anything more"
    opener.commit([4])
    assert (made[0].committed, made[1].committed) == ([1], [2, 3, 4])
    opener.close()
