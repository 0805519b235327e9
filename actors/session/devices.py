"""The GPUs that this process has a context on, or is to have: see wire/gpu.py, *Warm spares*.

A spare is told which, and makes one context after the other; a session says which its engine is
served on.  Once there is a context, the pool is registered with the driver (registration.py).
"""

from collections import deque
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Do, Effect, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import UsesGpu, Warm, Warmed
from pegaflow.wire.gpu import GpuMemory, spelled
from pegaflow.wire.gpujobs import GpuWarmed, WarmGpu
from pegaflow.wire.jobs import Done
from pegaflow.wire.values import SUPERVISOR

from .registration import Registration


class Devices(Part):
    """Has contexts made ahead of need, and says which GPUs are in use."""

    def __init__(self, member: Member, registration: Registration) -> None:
        self._member, self._registration = member, registration
        self._used: set[str] = set()  # by our engine
        self._serving = False  # there is one
        self._elsewhere = False  # and its memory is on no device of ours
        self._told: deque[str] = deque()  # GPUs to be ready for; the first is being made so

    def handlers(self) -> Iterable[On]:
        """The supervisor's word."""
        return (on(Warm, self._on_warm, SUPERVISOR),)

    def used(self, memory: GpuMemory) -> list[Effect]:
        """A rank is served there."""
        gpu = spelled(memory.bus, memory.uuid)
        said = gpu in self._used
        self._used.add(gpu)
        self._elsewhere = False
        supervisor = self._member.supervisor
        registered = self._registration.begin(serving=True)
        return registered + ([] if said else [Send(supervisor, UsesGpu(gpu))])

    def elsewhere(self) -> None:
        """A rank is served that no GPU copies for."""
        if not self._used:
            self._elsewhere = True
            self._registration.rest()

    def serve(self) -> list[Effect]:
        """There is an engine: of other GPUs than its own no context is begun any more."""
        self._serving = True
        self._registration.serve()
        dropped = [self._told.pop() for _ in range(len(self._told) - 1)]
        return [Send(self._member.supervisor, Warmed(gpu)) for gpu in reversed(dropped)]

    def _on_warm(self, sender: Sender, msg: Warm, now: int) -> list[Effect]:
        self._told.append(msg.gpu)
        return self._warm() if len(self._told) == 1 else []

    def _warm(self) -> list[Effect]:
        def warmed(result: GpuWarmed | Done, now: int) -> list[Effect]:
            gpu = self._told.popleft()
            return [*self._say(gpu, result), *(self._warm() if self._told else [])]

        return [Do(WarmGpu(self._told[0]), warmed)]

    def _say(self, gpu: str, result: GpuWarmed | Done) -> list[Effect]:
        supervisor = self._member.supervisor
        if isinstance(result, GpuWarmed):
            registered = [] if self._elsewhere else self._registration.begin(serving=self._serving)
            return [*registered, Send(supervisor, Warmed(gpu, result.gpu, number=result.number))]
        return [Send(supervisor, Warmed(gpu, why=result.note))]
