"""Which stage the service is in, from its start to its end."""

from enum import Enum

from pegaflow.actors.runtime.contract import Part
from pegaflow.wire.control import ProcessState
from pegaflow.wire.values import ALLOCATOR, INDEX

from .children import Children, ChildState


class Stage(Enum):
    """The values are shown to people."""

    STARTING = ProcessState.STARTING
    UP = ProcessState.UP  # the group was complete once
    DRAINING = ProcessState.DRAINING
    KILLING = ProcessState.KILLING


class Lifecycle(Part):
    """The stage, and whether engines can be given sessions."""

    def __init__(self, children: Children) -> None:
        self.stage = Stage.STARTING
        self._children = children

    @property
    def stopping(self) -> bool:
        """Whether the service is on its way to its end: nothing is started any more."""
        return self.stage in (Stage.DRAINING, Stage.KILLING)

    def ready(self) -> bool:
        """Whether the books of the pool are kept: index and allocator are up."""
        states = {child.address.name: child.state for child in self._children}
        return states.get(ALLOCATOR) is states.get(INDEX) is ChildState.UP

    def shown(self) -> ProcessState:
        """The stage for people: recovering while index or allocator is being replaced."""
        recovers = self.stage is Stage.UP and not self.ready()
        return ProcessState.RECOVERING if recovers else self.stage.value
