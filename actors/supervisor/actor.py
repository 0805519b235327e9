"""The supervisor: spawns, watches, restarts.

A pure actor like the others: processes are started and killed by jobs, their deaths come as Exited
(their pidfd fired) and signals as Stopping.  Its parts, each of which is made of those above it:

    Children     a record for each life that is not proven dead
    Lifecycle    starting, up, draining, killing
    Restarts     how often a child may fail: back-off, then rest
    Opens        engines that wait for a session
    Pool         what children are told of it
    Names        by which others find the service
    Reporting    the state of the group, for whoever asks
    Operator     what signals ask
    Watchdog     who is silent, and whether that is its own doing
    Manager      what a service manager is told
    Shutdown     who ends when
    Staffing     who is missing, and is started
    Attach       where an engine finds its session
    Warmth       which GPUs spares are ready for
    Membership   who hears of whom, and of which death

Staffing tells a later part something: Attach, its listener, hears that a spawn is over.  Time comes
from Ticks, which has each of them do what is due.
"""

from pegaflow.actors.roster import SPECS
from pegaflow.actors.runtime.contract import Actor
from pegaflow.wire.values import Address

from .attach import Attach
from .children import Children
from .manager import Manager
from .membership import Membership
from .names import Names
from .opens import Opens
from .operator import Operator
from .plan import Plan
from .pool import Pool
from .reporting import Reporting
from .restarts import Restarts
from .shutdown import Shutdown
from .staffing import Staffing
from .stage import Lifecycle
from .ticks import Ticks
from .warmth import Warmth
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
        pool = Pool(plan)
        names = Names(address, children, lifecycle, run_dir=plan.run_dir, counts=counts)
        self.reporting = reporting = Reporting(
            address,
            plan,
            children,
            lifecycle=lifecycle,
            restarts=restarts,
            opens=opens,
            pool=pool,
            names=names,
            counts=counts,
        )
        operator = Operator(children, lifecycle, pool=pool, reporting=reporting, counts=counts)
        watchdog = Watchdog(children, lifecycle, pool, counts)
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
            pool=pool,
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
        warmth = Warmth(children, lifecycle, plan)
        membership = Membership(
            children,
            lifecycle,
            pool=pool,
            restarts=restarts,
            totals=reporting.totals,
            operator=operator,
            shutdown=shutdown,
            attach=attach,
            warmth=warmth,
        )
        ticks = Ticks((watchdog, shutdown, attach, names, staffing, warmth, manager))
        self.compose(
            *(
                children,
                lifecycle,
                restarts,
                opens,
                pool,
                names,
                reporting,
                operator,
                watchdog,
                manager,
            ),
            *(manager, ticks, shutdown, staffing, attach, warmth, membership),
        )
