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


def test_of_two_epochs_in_a_row_the_newer_is_used_and_the_other_closed() -> None:
    """Also where the thread of the older one has opened its session in between."""
    made = [Slow(0), Slow(1), Slow(2)]
    opener = Opener(lambda epoch: made[epoch])  # type: ignore[arg-type, return-value]
    opener.connect(0.0)
    opener.reopen(1)
    opener.reopen(2)
    made[1].may.set()
    assert opener._thread is not None
    made[2].may.set()
    opener._thread.join(PATIENCE_S)
    opener.commit([5])
    assert [one.committed for one in made] == [[], [], [5]]
    assert [one.attached for one in made] == [False, False, True]


def test_a_client_of_an_epoch_that_is_over_is_not_left_behind() -> None:
    made = [Slow(0), Slow(1), Slow(2)]
    opener = Opener(lambda epoch: made[epoch])  # type: ignore[arg-type, return-value]
    opener.connect(0.0)
    opener.reopen(1)
    first = opener._thread
    assert first is not None
    opener.reopen(2)
    made[1].may.set()
    first.join(PATIENCE_S)
    assert opener.find([]) is None and not made[1].attached, "nobody is there yet"
    made[2].may.set()
    opener.close()
