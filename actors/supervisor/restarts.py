"""How often a child may fail: back-off between restarts, and a breaker when that does not help.

Each failure in a row waits longer than the one before.  FAILURES_MAX failures within PERIOD_NS open
the breaker: the child rests for REST_NS and is then tried again; until a life of it lasts CALM_NS,
each further failure is followed by another rest.

Every kind of child has one budget, and every engine has its own for the sessions that served it: an
engine that breaks one session after the other is refused alone, and the spares of the others are
not delayed.
"""

from collections import Counter, OrderedDict, deque

from pegaflow.actors.runtime.contract import MS, Effect, Note, Part
from pegaflow.wire.control import KindState, LogLevel
from pegaflow.wire.units import Count, Nanoseconds

from .children import ChildRecord, ChildState, who

BACKOFF_NS: tuple[Nanoseconds, ...] = (0, 100 * MS, 500 * MS, 2000 * MS, 5000 * MS)
"""Delay before the nth restart in a row: a crash at start must not become a fork bomb."""

CALM_NS: Nanoseconds = 30_000 * MS
"""A life this long ends a row of failures."""

FAILURES_MAX: Count = 10
"""Failures within PERIOD_NS that open the breaker: with the back-off, 40 s of nothing else."""

PERIOD_NS: Nanoseconds = 120_000 * MS
"""How far back failures count."""

REST_NS: Nanoseconds = 30_000 * MS
"""How long a broken child rests: what an operator repairs is seen within that."""

ENGINES_MAX: Count = 1024
"""Engines whose failures are remembered; the one that failed longest ago is forgotten first."""


class Budget:
    """Failures of one kind of child, or of one engine's sessions."""

    def __init__(self) -> None:
        self.restarts = 0  # failures so far; only grows
        self.next_start_ns = 0  # when the next start may be
        self.broken_until_ns = 0  # end of the newest rest
        self._row = 0  # failures in a row
        self._tripped = False  # it rested, and no life has been long since
        self._failures_ns: deque[int] = deque(maxlen=FAILURES_MAX)  # of the newest failures

    def failed(self, born_ns: int, now: int) -> bool:
        """Count a failure; `next_start_ns` says when the next life may begin.

        Args:
            born_ns: when the life that failed began.

        Returns:
            Whether the breaker is open: the child rests.
        """
        self.restarts += 1
        calm = now - born_ns > CALM_NS
        self._row = 1 if calm else self._row + 1
        self._failures_ns.append(now)
        often = len(self._failures_ns) == FAILURES_MAX and now - self._failures_ns[0] <= PERIOD_NS
        self._tripped = often or (self._tripped and not calm)
        if self._tripped:
            self.next_start_ns = self.broken_until_ns = now + REST_NS
            return True
        self.next_start_ns = now + BACKOFF_NS[min(self._row, len(BACKOFF_NS)) - 1]
        return False

    def state(self, now: int) -> KindState:
        """Whether the next start has to wait, and for what."""
        if now < self.broken_until_ns:
            return KindState.BROKEN
        return KindState.WAITING if now < self.next_start_ns else KindState.OK


class Restarts(Part):
    """How often each kind of child, and the sessions of each engine, may fail."""

    def __init__(self, kinds: tuple[str, ...], counts: Counter[str]) -> None:
        self.kinds = {name: Budget() for name in kinds}  # constant keys
        self._engines: OrderedDict[str, Budget] = OrderedDict()  # the one that failed last is last
        self._counts = counts

    def ended(self, child: ChildRecord, now: int) -> list[Effect]:
        """A child is gone while we are serving.  Unless it was to go, that is a failure."""
        if child.state is ChildState.DRAINING:
            return []
        self._counts[f"{child.address.name}_restarts"] += 1
        if not self._failed(child, now):
            return []
        facts = (("failures", FAILURES_MAX), ("rests_s", REST_NS // (1000 * MS)))
        return [Note("child_broken", (*who(child), *facts), LogLevel.ERROR)]

    def may_start(self, name: str, now: int) -> bool:
        """Whether the back-off of this kind is over."""
        return now >= self.kinds[name].next_start_ns

    def broken(self, now: int) -> list[str]:
        """Kinds that rest."""
        return [name for name, b in self.kinds.items() if b.state(now) is KindState.BROKEN]

    def engine_rest_ns(self, engine: str, now: int) -> int:
        """Nanoseconds for which this engine gets no session; 0 if it may have one."""
        budget = self._engines.get(engine)
        return max(0, budget.broken_until_ns - now) if budget else 0

    def _failed(self, child: ChildRecord, now: int) -> bool:
        """True if that opens a breaker."""
        if not child.engine:
            return self.kinds[child.address.name].failed(child.born_ns, now)
        self.kinds[child.address.name].restarts += 1
        budget = self._engines.setdefault(child.engine, Budget())
        self._engines.move_to_end(child.engine)
        if len(self._engines) > ENGINES_MAX:
            self._engines.popitem(last=False)
        return budget.failed(child.born_ns, now)
