"""What the service says of itself: the Report, with counters summed over lives.

A process that is replaced takes none of its counters back: what the dead have counted is kept, and
with what the living have counted it is the sum.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from pegaflow.actors.runtime.contract import Effect, On, Part, Reply, Sender, on
from pegaflow.core.series import SEPARATOR, VALUE_MAX
from pegaflow.wire import control
from pegaflow.wire.control import Inspect, KindRow, KindState, ProcessRow, Remark, Report, listed
from pegaflow.wire.units import Count
from pegaflow.wire.values import CLIENT, GATEWAY, Address

from .children import ChildRecord, Children
from .names import Names
from .opens import Opens
from .plan import Plan
from .pool import Pool
from .restarts import Restarts
from .stage import Lifecycle

NAMES_MAX: Count = 2048
"""Counters of one kind of child: ours have some hundred, with the buckets of their histograms."""


class Totals:
    """Counters of each kind of child, summed over all lives."""

    def __init__(self) -> None:
        self._dead: defaultdict[str, Counter[str]] = defaultdict(Counter)  # kind -> counter -> sum

    def bury(self, child: ChildRecord) -> None:
        """A life is over: its last counters stay in the sums."""
        _add(self._dead[child.address.name], child)

    def sums(self, name: str, living: Iterable[ChildRecord]) -> tuple[control.Counter, ...]:
        """The counters of one kind of child, over all its lives.

        Args:
            living: the children of that kind that are not dead.
        """
        total = self._dead[name].copy()
        for child in living:
            _add(total, child)
        return listed(total)


def _add(total: Counter[str], child: ChildRecord) -> None:
    for counter in child.beat.counters:
        if counter.name in total or len(total) < NAMES_MAX:
            total[counter.name] = min(total[counter.name] + counter.value, VALUE_MAX)


class Reporting(Part):
    """Answers whoever asks for the state of the group."""

    def __init__(
        self,
        address: Address,
        plan: Plan,
        children: Children,
        *,
        lifecycle: Lifecycle,
        restarts: Restarts,
        opens: Opens,
        pool: Pool,
        names: Names,
        counts: Counter[str],
    ) -> None:
        self.measured: Callable[[], dict[str, int]] = dict  # gauges of our process, by the shell
        self.totals = Totals()
        self._address = address
        self._plan = plan
        self._children = children
        self._lifecycle = lifecycle
        self._restarts = restarts
        self._opens = opens
        self._pool = pool
        self._names = names
        self._counts = counts
        self._started_ns = 0

    def handlers(self) -> Iterable[On]:
        """The question."""
        return (on(Inspect, self._on_inspect, CLIENT, GATEWAY),)

    def start(self, now: int) -> list[Effect]:
        """Since when the service is there."""
        self._started_ns = now
        return []

    def own_gauges(self) -> dict[str, int]:
        """How the supervisor itself is now."""
        return {**self._opens.gauges(), **self._pool.gauges(), **self.measured()}

    def _on_inspect(self, sender: Sender, msg: Inspect, now: int) -> list[Effect]:
        pool = self._pool.known or self._pool.welcome()
        said = ((c.address, text) for c in self._children for text in c.beat.remarks)
        report = Report(
            pool_path=pool.pool_path,
            ledger_path=pool.ledger_path,
            pool_bytes=pool.pool_bytes,
            extent_bytes=pool.extent_bytes,
            started_ns=self._started_ns,
            version=self._plan.version,
            processes=(self._own_row(), *map(self._row, self._children)),
            http_addr=self._plan.http_addr,
            at=now,
            kinds=self._kinds(now),
            faults=self._names.faults,
            remarks=tuple(Remark(address, text) for address, text in said),
        )
        return [Reply(sender, report)]

    def _own_row(self) -> ProcessRow:
        plain = {name: n for name, n in self._counts.items() if SEPARATOR not in name}
        numbers = listed({**plain, **self.own_gauges()})
        return ProcessRow(
            self._address, self._plan.pid, self._lifecycle.shown(), 0, engine="", counters=numbers
        )

    def _row(self, child: ChildRecord) -> ProcessRow:
        numbers = tuple(c for c in child.beat.counters if SEPARATOR not in c.name)
        numbers += child.beat.gauges
        numbers += listed({"engine_seat": child.seat}) if child.seat else ()
        restarts = self._restarts.kinds[child.address.name].restarts
        return ProcessRow(
            child.address, child.pid, child.shown(), restarts, engine=child.engine, counters=numbers
        )

    def _kinds(self, now: int) -> tuple[KindRow, ...]:
        kinds = [KindRow(self._address.name, KindState.OK, 0, 0, counters=listed(self._counts))]
        for name, budget in self._restarts.kinds.items():
            sums = self.totals.sums(name, self._children.named(name))
            at, restarts = budget.next_start_ns, budget.restarts
            kinds.append(KindRow(name, budget.state(now), at, restarts, counters=sums))
        return tuple(kinds)
