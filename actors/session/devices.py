"""The GPUs that this process has a context on, or is to have: see wire/gpu.py, *Warm spares*.

A spare is told which; a session says which its engine is served on.  Once there is a context, the
pool is registered with the driver (registration.py).
"""

from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Do, Effect, Note, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import LogLevel, UsesGpu, Warm, Warmed
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
        self._complaints: set[str] = set()  # what has been said of GPUs that cannot be had

    def handlers(self) -> Iterable[On]:
        """The supervisor's word."""
        return (on(Warm, self._on_warm, SUPERVISOR),)

    def used(self, memory: GpuMemory) -> list[Effect]:
        """A rank is served there."""
        gpu = spelled(memory.bus, memory.uuid)
        said = gpu in self._used
        self._used.add(gpu)
        supervisor = self._member.supervisor
        registered = self._registration.begin(serving=True)
        return registered + ([] if said else [Send(supervisor, UsesGpu(gpu))])

    def _on_warm(self, sender: Sender, msg: Warm, now: int) -> list[Effect]:
        def warmed(result: GpuWarmed | Done, now: int) -> list[Effect]:
            if isinstance(result, GpuWarmed):
                registered = self._registration.begin(serving=bool(self._used))
                return [*registered, Send(sender.address, Warmed(msg.gpu, result.gpu))]
            effects: list[Effect] = [Send(sender.address, Warmed(msg.gpu))]
            if result.note not in self._complaints:
                self._complaints.add(result.note)
                facts = (("gpu", msg.gpu), ("why", result.note), ("then", "a spare without it"))
                effects.append(Note("gpu_not_warm", facts, LogLevel.WARNING))
            return effects

        return [Do(WarmGpu(msg.gpu), warmed)]
