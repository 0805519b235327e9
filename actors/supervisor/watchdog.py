"""The watchdog: who of the supervisor's children is silent, and whether that is its own doing.

A child that beats every BEAT_NS and has not done so for SILENT_NS is stuck: stopped, in an endless
loop, deadlocked, blocked in the kernel.  It is killed.  Or it is starved: ready to run, while other
processes have all cores.  Killing a starved child would make all worse, for its successor needs
seconds of the same cores to start.  So a silence is measured in time that the child could have
used:

    silence  =  time since its last sign of life  -  time that it, or we, waited for a core

Whoever is stopped, sleeps or runs waits for no core, and the sum is plain time: such a child is
killed as soon as ever.  A starved child is waited for, with one line in 10 s that says why and
what to do, however long that lasts: each moment that it does get counts, so a child that is stuck
*and* starved is killed once it had its patience of the core.  No other bound is needed: engines
wait for nobody beyond their deadlines, and the kernel gives each waiting thread its turn at last.

Our own threads count as its do, for what it has said may lie with one of them.  A supervisor that
wakes late as a whole was stopped too: then all silences begin anew.

Of a child that drains beats count for nothing: it has to go.  Of one that has work to do in a drain
(roster.py) they count as ever.

One that has said Bye has nothing more to say: it ends, and a kill would end it no sooner.  Where it
has had a GPU's context the driver gives back page after page of the pool before it is dead, so it
has as long for that as an adoption would wait for it (`patience`, core/limits.py).  After that it
is killed like any other, for it may be stuck on the way to its end.

The same measure serves all clocks: of a child that starts (START_NS to its Hello), of a spare
that was given an engine (SERVE_NS to its Serving), of one that has said Bye (to its death) and of
every other (SILENT_NS to its next Beat).
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.roster import SPECS
from pegaflow.actors.runtime.contract import MS, Do, Effect, Note, On, Part, Sender, on
from pegaflow.core.limits import patience
from pegaflow.wire.control import SILENT_NS, Beat, Bye, LogLevel
from pegaflow.wire.jobs import Look, Looked
from pegaflow.wire.units import Count, Nanoseconds

from .children import ChildRecord, Children, ChildState, who
from .pool import Pool
from .stage import Lifecycle, Stage
from .ticks import TICK_NS

LATE_NS: Nanoseconds = 1000 * MS
"""Waking so much later than planned means that we were stopped ourselves."""

START_NS: Nanoseconds = 20_000 * MS
"""Patience with a child that has not said Hello: imports on a loaded machine take seconds."""

SERVE_NS: Nanoseconds = 1000 * MS
"""Patience with a spare that is given an engine: it is idle and answers in microseconds."""

LOOKS: Count = 3
"""A silent child is first looked at after this part of its patience: when a second beat is due."""

WHY = "it is ready to run and gets no core, or we get none to hear it"

REMEDY = (
    "give the service cores of its own, or let those that spin weigh less (nice) or sleep (for vLLM"
    " VLLM_USE_SPINLOOP_EXT=1)"
)
"""What to do about starvation."""


class Watchdog(Part):
    """Hears signs of life, and looks at whoever gives none."""

    def __init__(
        self, children: Children, lifecycle: Lifecycle, pool: Pool, counts: Counter[str]
    ) -> None:
        self._children = children
        self._lifecycle = lifecycle
        self._pool = pool
        self._counts = counts
        self._due_ns = 0  # when we mean to look again

    def handlers(self) -> Iterable[On]:
        """Signs of life, and the last one."""
        return (on(Beat, self._on_beat, *SPECS), on(Bye, self._on_bye, *SPECS))

    def start(self, now: int) -> list[Effect]:
        """The first look is due with the first tick."""
        self._due_ns = now + TICK_NS
        return []

    def beat(self, now: int) -> list[Effect]:
        """Ask about each child that is late; what follows comes with the answer."""
        if now - self._due_ns > LATE_NS:
            self._counts["woke_late"] += 1
            self._forgive(now)
        self._due_ns = now + TICK_NS
        effects: list[Effect] = []
        for child in self._children:
            since_ns, patience_ns = self._clock(child)
            if now - since_ns <= patience_ns // LOOKS:
                child.starved = False
            elif not child.killed:
                effects.append(self._ask(child, since_ns))
        return effects

    def _forgive(self, now: int) -> None:
        """All silences begin anew."""
        for child in self._children:
            child.heard_ns = now
            if child.assignment is not None:
                child.assignment.since_ns = now

    def _on_beat(self, sender: Sender, msg: Beat, now: int) -> list[Effect]:
        child = self._children.get(sender.address)
        if child is not None:
            child.beat = msg
            works = SPECS[child.address.name].works_in_drain
            works = works and self._lifecycle.stage is Stage.DRAINING
            if not child.said_bye and (child.state is not ChildState.DRAINING or works):
                child.heard_ns = now  # the others said Bye, or were told to: now they have to go
        return []

    def _on_bye(self, sender: Sender, msg: Bye, now: int) -> list[Effect]:
        child = self._children.get(sender.address)
        if child is not None and not child.said_bye:
            child.said_bye, child.heard_ns, child.state = True, now, ChildState.DRAINING
        return []

    def _ask(self, child: ChildRecord, since_ns: int) -> Effect:
        def looked(seen: Looked, now: int) -> list[Effect]:
            begun_ns, patience_ns = self._clock(child)
            silent_ns = seen.at_ns - since_ns
            if child.killed or begun_ns != since_ns or silent_ns <= patience_ns:
                return []
            times = (("silent_ms", silent_ns // MS), ("waited_ms", seen.waited_ns // MS))
            if silent_ns - seen.waited_ns <= patience_ns:
                self._counts["starved"] += not child.starved
                child.starved = True
                then = (("why", WHY), ("then", "waiting"), ("remedy", REMEDY))
                facts = (*who(child), *times, *then)
                return [Note("child_starved", facts, LogLevel.WARNING, repeats="starved")]
            self._counts["silent_killed"] += 1
            did = (("ran_ms", seen.ran_ns // MS), ("state", seen.state.label))
            facts = (*who(child), *times, *did)
            return [Note("child_silent", facts, LogLevel.WARNING), *self._children.kill(child)]

        return Do(Look(child.address, since_ns), looked)

    def _clock(self, child: ChildRecord) -> tuple[int, int]:
        """Since when a child owes us a word, or its death, and our patience."""
        if child.state is ChildState.ASSIGNED and child.assignment is not None:
            return child.assignment.since_ns, SERVE_NS
        if child.gives_back and self._pool.known is not None:
            return child.heard_ns, int(patience(self._pool.known.pool_bytes) * 1000) * MS
        return child.heard_ns, START_NS if child.state is ChildState.STARTING else SILENT_NS
