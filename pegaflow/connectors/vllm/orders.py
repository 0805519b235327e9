"""What the scheduler half orders of the workers in a step."""

from dataclasses import dataclass

from pegaflow.connectors.common.tracked import LoadOrder, SaveOrder
from pegaflow.wire.identities import EngineNamespace

from . import compat
from .watch import Look

NO_NAMESPACE = EngineNamespace(b"")


@dataclass
class StepOrders(compat.Metadata):  # type: ignore[misc]
    """What the workers are to do in one step. Plain values: it may cross processes."""

    namespace: EngineNamespace = NO_NAMESPACE  # the scheduler's; a worker of another does not work
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
