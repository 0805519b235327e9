"""Which GPUs spares are ready for: see wire/gpu.py, *Warm spares*."""

from collections.abc import Iterable

from pegaflow.actors.runtime.contract import MS, Effect, Note, On, Part, Send, Sender, on
from pegaflow.wire.control import Drain, LogLevel, UsesGpu, Warm, Warmed
from pegaflow.wire.gpu import bus_and_uuid, is_meant
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import SESSION, Address

from .children import ChildRecord, Children, ChildState, who
from .plan import Plan
from .stage import Lifecycle

LINGER_NS: Nanoseconds = 120_000 * MS
"""For so long after its last session a GPU counts as in use: an engine that is started again by
its manager asks within that, also one that loads large weights first."""

WARM_FALLS_MAX: Count = 2
"""So many spares in a row that die while they make a context on a GPU, and no other is told to."""

WARM_NS: Nanoseconds = 120_000 * MS
"""Patience with a spare that makes one context: importing cupy, waking a driver without
nvidia-persistenced and compiling the kernel take seconds each, and tens on a loaded machine."""


class Warmth(Part):
    """Has spares make contexts ahead of need."""

    def __init__(self, children: Children, lifecycle: Lifecycle, plan: Plan) -> None:
        self._children, self._lifecycle, self._spares = children, lifecycle, plan.spares
        self._named = plan.devices  # by --devices
        self._found: dict[str, str] = {}  # name -> device, of what spares have found
        self._lingers: dict[str, int] = {}  # device that was in use -> until when it counts
        self._whys: dict[str, str] = {}  # name -> why the last spare could not be ready for it
        self._at_it: dict[Address, tuple[str, int]] = {}  # spare -> name, since when it is at it
        self._falls: dict[str, int] = {}  # name -> spares in a row that died while they were at it

    def handlers(self) -> Iterable[On]:
        """The words of sessions."""
        return (on(UsesGpu, self._on_uses, SESSION), on(Warmed, self._on_warmed, SESSION))

    def greet(self, child: ChildRecord) -> list[Effect]:
        """What a spare is to have, and has not been told yet."""
        if child.state is not ChildState.SPARE or child.killed:
            return []
        deadly = {name for name, falls in self._falls.items() if falls >= WARM_FALLS_MAX}
        fresh = [name for name in self._wanted() if name not in child.warm and name not in deadly]
        child.warm.update((name, None) for name in fresh)
        return [Send(child.address, Warm(name)) for name in fresh]

    def ended(self, child: ChildRecord, now: int) -> list[Effect]:
        """A session is proven dead."""
        self._lingers.update((gpu, now + LINGER_NS) for gpu in child.uses)
        if child.state is ChildState.DRAINING:
            return []
        at_it = child.warming
        if at_it is None:
            return []
        falls = self._falls[at_it] = self._falls.get(at_it, 0) + 1
        if falls != WARM_FALLS_MAX:
            return []
        facts = (("gpu", at_it), ("died", falls), ("then", "spares without it"))
        return [Note("gpus_not_warm", facts, LogLevel.ERROR)]

    def beat(self, now: int) -> list[Effect]:
        """Let a spare go that has a context where no engine is any more, or never will have one;
        another one comes."""
        self._lingers = {gpu: until for gpu, until in self._lingers.items() if until > now}
        spares = self._children.spares()
        if self._lifecycle.stopping:
            return []
        hung = self._hung(spares, now)
        if hung or len(spares) < self._spares:
            return hung
        stale = next(filter(self._is_stale, spares), None)
        if stale is None:
            return []
        stale.state = ChildState.DRAINING
        return [Send(stale.address, Drain())]

    def _hung(self, spares: list[ChildRecord], now: int) -> list[Effect]:
        """Kill those that have been at one GPU for too long: they die of it, as others do."""
        before, self._at_it = self._at_it, {}
        effects: list[Effect] = []
        for spare in spares:
            gpu = spare.warming
            if gpu is None:
                continue
            name, since = before.get(spare.address, ("", now))
            since = since if name == gpu else now
            self._at_it[spare.address] = gpu, since
            if now - since > WARM_NS:
                facts = (*who(spare), ("gpu", gpu), ("seconds", WARM_NS // (1000 * MS)))
                effects.append(Note("spare_hangs", facts, LogLevel.WARNING))
                effects += self._children.kill(spare)
        return effects

    def _wanted(self) -> list[str]:
        """Names of all devices that a spare is to have a context on, each once."""
        named = {self._found.get(name) for name in self._named}
        used = [gpu for child in self._children for gpu in sorted(child.uses)]
        used = [gpu for gpu in dict.fromkeys([*used, *self._lingers]) if gpu not in named]
        return [*self._named, *used]

    def _is_stale(self, spare: ChildRecord) -> bool:
        wanted = self._wanted()
        devices = {self._found.get(name, name) for name in wanted}
        has = {found for found in spare.warm.values() if found}
        return not has <= devices and spare.warming is None

    def _on_uses(self, sender: Sender, msg: UsesGpu, now: int) -> list[Effect]:
        child = self._children.get(sender.address)
        if child is None:
            return []
        child.uses.add(msg.gpu)
        for name in [name for name in self._falls if self._found.get(name, name) == msg.gpu]:
            del self._falls[name]
        return [effect for spare in self._children.spares() for effect in self.greet(spare)]

    def _on_warmed(self, sender: Sender, msg: Warmed, now: int) -> list[Effect]:
        child = self._children.get(sender.address)
        if child is not None and msg.gpu in child.warm:
            child.warm[msg.gpu] = msg.found
            if msg.found:
                self._learn(msg)
            elif msg.why:
                return self._complain(msg.gpu, msg.why)
        return []

    def _learn(self, msg: Warmed) -> None:
        """There is a context, on a device that may have several names: it is sound by each."""
        bus, uuid = bus_and_uuid(msg.found)
        for name in (msg.gpu, *self._named):
            if name == msg.gpu or is_meant(name, msg.number - 1, bus, uuid):
                self._falls.pop(name, None)
                self._whys.pop(name, None)
                self._found[name] = msg.found

    def _complain(self, gpu: str, why: str) -> list[Effect]:
        """All spares meet the same, one after the other, and all GPUs may: it is said once."""
        said = why in self._whys.values()
        self._whys[gpu] = why
        facts = (("gpu", gpu), ("why", why), ("then", "spares without it"))
        return [] if said else [Note("gpu_not_warm", facts, LogLevel.WARNING)]
