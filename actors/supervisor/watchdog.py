"""The watchdog: who of the supervisor's children is silent, and whether that is its own doing.

A child that beats every BEAT_NS and has not done so for SILENT_NS is stuck: stopped, in an endless
loop, deadlocked, blocked in the kernel.  It is killed.  Or it is starved: ready to run, while other
processes have all cores.  Killing that one would make all worse, for its successor needs seconds of
the same cores to start.  So a silence is measured in time that the child could have used:

    silence  =  time since its last sign of life  -  time that it, or we, waited for a core

Whoever is stopped, sleeps or runs waits for no core, and the sum is plain time: such a child is
killed as soon as ever.  A starved child is waited for, with one line in 10 s that says why and
what to do, however long that lasts: each moment that it does get counts, so a child that is stuck
*and* starved is killed once it had its patience of the core.  No other bound is needed: engines
wait for nobody beyond their deadlines, and the kernel gives each waiting thread its turn at last.

Our own threads count as its do, for what it has said may lie with one of them.  (A supervisor that
wakes late as a whole lets all silences begin anew: actor.py.)

The same measure serves all three clocks: of a child that starts (START_NS to its Hello), of a spare
that was given an engine (SERVE_NS to its Serving) and of every other (SILENT_NS to its next Beat).
"""

from collections import Counter
from collections.abc import Callable

from pegaflow.actors.runtime.contract import MS, Do, Effect, Note
from pegaflow.wire.control import SILENT_NS
from pegaflow.wire.jobs import Done, Look
from pegaflow.wire.values import Address

from .children import Kid, who

START_NS = 20_000 * MS
"""Patience with a child that has not said Hello: imports on a loaded machine take seconds."""

SERVE_NS = 1000 * MS
"""Patience with a spare that is given an engine: it is idle and answers in microseconds."""

LOOKS = 3
"""A silent child is first looked at after this part of its patience: when a second beat is due."""

WHY = "it is ready to run and gets no core, or we get none to hear it"

REMEDY = (
    "give the service cores of its own, or let those that spin weigh less (nice) or sleep (for vLLM"
    " VLLM_USE_SPINLOOP_EXT=1)"
)
"""What to do about starvation."""


class Watchdog:
    """See the module.  `kids` and `counts` are the supervisor's own, `kill` ends a child."""

    def __init__(
        self,
        kids: dict[Address, Kid],
        counts: Counter[str],
        kill: Callable[[Kid], list[Effect]],
    ) -> None:
        self._kids = kids
        self._counts = counts
        self._kill = kill

    def forgive(self, now: int) -> None:
        """All silences begin anew."""
        for kid in self._kids.values():
            kid.heard = kid.owes = now

    def look(self, now: int) -> list[Effect]:
        """Ask about each child that is late; what follows comes with the answer."""
        effects: list[Effect] = []
        for kid in self._kids.values():
            since, patience = _clock(kid)
            if now - since <= patience // LOOKS:
                kid.starved = False
            elif not kid.killed:
                effects.append(self._ask(kid, since))
        return effects

    def _ask(self, kid: Kid, since: int) -> Effect:
        def looked(done: Done, now: int) -> list[Effect]:
            begun, patience = _clock(kid)
            waited, ran, looked_at = done.values
            silent = looked_at - since
            if kid.killed or begun != since or silent <= patience:
                return []
            times = (("silent_ms", silent // MS), ("waited_ms", waited // MS))
            if silent - waited <= patience:
                self._counts["starved"] += not kid.starved
                kid.starved = True
                facts = (*who(kid), *times, ("why", WHY), ("then", "waiting"), ("remedy", REMEDY))
                return [Note("child_starved", facts, "warning", repeats="starved")]
            self._counts["silent_killed"] += 1
            facts = (*who(kid), *times, ("ran_ms", ran // MS), ("state", done.note))
            return [Note("child_silent", facts, "warning"), *self._kill(kid)]

        return Do(Look(kid.address, since), looked)


def _clock(kid: Kid) -> tuple[int, int]:
    """Since when a child owes us a word, and our patience."""
    if kid.state == "assigned":
        return kid.owes, SERVE_NS
    return kid.heard, START_NS if kid.state == "starting" else SILENT_NS
