"""The supervisor: spawns, watches, restarts.

A pure actor like the others: processes are started and killed by jobs, their deaths come as Exited
(their pidfd fired) and signals as Stopping.  Its parts, each of which uses those above it:

    Children     a record for each life that is not proven dead
    Lifecycle    starting, up, draining, killing
    Restarts     how often a child may fail: back-off, then rest
    Opens        engines that wait for a session
    Files        the pool, and the names by which others find the service
    Reporting    the state of the group, for whoever asks
    Operator     what signals ask
    Watchdog     who is silent, and whether that is its own doing
    Manager      what a service manager is told
    Shutdown     who ends when
    Staffing     who is missing, and is started
    Attach       where an engine finds its session
    Membership   who hears of whom, and of which death

Time comes from Ticks, which has each of them do what is due.
"""

from pegaflow.actors.roster import SPECS
from pegaflow.actors.runtime.contract import Actor
from pegaflow.wire.values import Address

from .attach import Attach
from .children import Children
from .files import Files
from .manager import Manager
from .membership import Membership
from .opens import Opens
from .operator import Operator
from .plan import Plan
from .reporting import Reporting
from .restarts import Restarts
from .shutdown import Shutdown
from .staffing import Staffing
from .stage import Lifecycle
from .ticks import Ticks
from .watchdog import Watchdog


class Supervisor(Actor):
    """Owns incarnations, roster and spares."""

    def __init__(self, address: Address, plan: Plan) -> None:
        super().__init__(address)
        counts = self.counts
        self.children = children = Children()
        self.lifecycle = lifecycle = Lifecycle(children)
        self.restarts = restarts = Restarts(tuple(SPECS), counts)
        self.opens = opens = Opens()
        files = Files(plan, children, lifecycle, counts)
        self.reporting = reporting = Reporting(
            address,
            plan,
            children,
            lifecycle=lifecycle,
            restarts=restarts,
            opens=opens,
            files=files,
            counts=counts,
        )
        operator = Operator(children, lifecycle, files=files, reporting=reporting, counts=counts)
        watchdog = Watchdog(children, lifecycle, counts)
        manager = Manager(plan, children, restarts, lifecycle)
        shutdown = Shutdown(
            children, lifecycle, opens=opens, manager=manager, flush_ns=plan.flush_ns
        )
        staffing = Staffing(
            plan,
            children,
            lifecycle=lifecycle,
            restarts=restarts,
            opens=opens,
            files=files,
            shutdown=shutdown,
        )
        self.attach = attach = Attach(
            children,
            lifecycle,
            restarts=restarts,
            opens=opens,
            staffing=staffing,
            pid_namespace=plan.pid_namespace,
        )
        staffing.listener = attach
        membership = Membership(
            children,
            lifecycle,
            files=files,
            restarts=restarts,
            totals=reporting.totals,
            operator=operator,
            shutdown=shutdown,
            attach=attach,
        )
        ticks = Ticks(watchdog, shutdown, attach, files, staffing, manager)
        self.compose(
            *(children, lifecycle, restarts, opens, files, reporting, operator, watchdog, manager),
            *(ticks, shutdown, staffing, attach, membership),
        )
