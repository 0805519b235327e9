"""What the scheduler half orders of the workers in a step, and what they answer.

One thing of a step's orders counts as soon as they are in the worker's process (`Taken`): which
blocks are written by somebody else from now on. vLLM's second model runner zeroes and copies blocks
of a step before it calls a connector, and the first one after it.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from pegaflow.connectors.common.tracked import LoadOrder, SaveOrder
from pegaflow.wire.identities import EngineNamespace

from . import compat
from .watch import Look

NO_NAMESPACE = EngineNamespace(b"")


class Taken:
    """Numbers of one engine's saves whose blocks are written by somebody else.

    Args:
        engine: its name, as its orders have it.
    """

    def __init__(self, engine: bytes) -> None:
        self.engine = engine
        self.orders: set[int] = set()
        _taken.add(self)


_taken: WeakSet[Taken] = WeakSet()


@dataclass
class StepOrders(compat.Metadata):  # type: ignore[misc]
    """What the workers are to do in one step. Plain values: it may cross processes."""

    namespace: EngineNamespace = NO_NAMESPACE  # the scheduler's; a worker of another does not work
    engine: bytes = b""  # whose: its generation, without an epoch
    epoch: int = 0  # counts changes of the weights
    loads: tuple[LoadOrder, ...] = ()
    saves: tuple[SaveOrder, ...] = ()
    late: tuple[SaveOrder, ...] = ()  # saves of what was computed before this step
    preempted: tuple[str, ...] = ()  # requests whose blocks are gone
    held: tuple[str, ...] = ()  # finished requests whose blocks wait for their saves
    let_go: tuple[str, ...] = ()  # held requests that need not be held any more
    dropped: tuple[int, ...] = ()  # saves whose blocks are written by somebody else from now on
    abandoned: tuple[tuple[str, tuple[int, ...]], ...] = ()  # loads to report failed: ids, blocks
    look: Look = Look()  # whether the weights are to be looked at

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.arrive()

    def arrive(self) -> None:
        """They are in this process, which may be the worker's."""
        for taken in _taken:
            if taken.engine == self.engine:
                taken.orders.update(self.dropped)


@dataclass
class SavesDone(compat.WorkerMetadata):  # type: ignore[misc]
    """Workers that ended a save since the last step, per order; the ranks' reports are joined.

    Each has a bit, so that a report that comes twice says what it said.
    """

    saves: dict[int, int] = field(default_factory=dict)
    looked: int = 0  # the newest look that was answered (watch.py)
    epoch: int = 0
    stale: int = 0  # workers that neither load nor save, now or at all
    sound: int = 0  # workers that do; of the others nothing is said here

    def aggregate(self, other: "SavesDone") -> "SavesDone":
        """Both reports in one."""
        orders = self.saves.keys() | other.saves.keys()
        return SavesDone(
            {n: self.saves.get(n, 0) | other.saves.get(n, 0) for n in orders},
            looked=min(self.looked, other.looked),
            epoch=max(self.epoch, other.epoch),
            stale=self.stale | other.stale,
            sound=self.sound | other.sound,
        )
