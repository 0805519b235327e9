"""The service's files: the pool, and the names by which others find the service.

Every tick it is looked whether they are still there; what cannot be mended is a fault, said once
and reported for as long as it is there.
"""

import dataclasses
from collections import Counter

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part, Send
from pegaflow.wire.control import BindAgain, Welcome
from pegaflow.wire.jobs import CheckFiles, Done

from .children import Children
from .plan import Plan
from .stage import Lifecycle


class Files(Part):
    """What is known of them."""

    def __init__(
        self, plan: Plan, children: Children, lifecycle: Lifecycle, counts: Counter[str]
    ) -> None:
        self.pool: Welcome | None = None  # None until there is one
        self.faults: tuple[str, ...] = ()  # as of the last look
        self._plan = plan
        self._children = children
        self._lifecycle = lifecycle
        self._counts = counts

    def opened(self, done: Done) -> None:
        """There is a pool now."""
        pool, ledger = done.note.split("\n")
        self.pool = dataclasses.replace(
            self.welcome(pool, ledger, *done.values[:2]),
            pool_file=done.values[2:4],
            ledger_file=done.values[4:6],
        )

    def welcome(self, pool: str = "", ledger: str = "", size: int = 0, extent: int = 0) -> Welcome:
        """What a child is told; without a pool, one that uses none."""
        plan = self._plan
        rest = (plan.run_dir, plan.http_addr, plan.copy_threads, plan.verify, plan.ssd)
        return Welcome(pool, ledger, size, extent, *rest, max_pinned=int(plan.max_pinned * size))

    def beat(self, now: int) -> list[Effect]:
        """Look at them."""
        return [] if self._lifecycle.stopping else [Do(CheckFiles(), self._checked)]

    def _checked(self, done: Done, now: int) -> list[Effect]:
        """What a look has found."""
        faults = tuple(done.note.splitlines())
        effects: list[Effect] = []
        for fault in faults:
            if fault not in self.faults:
                self._counts["files_lost"] += 1
                effects.append(Note("files_lost", (("why", fault),), "error"))
        if self.faults and not faults:
            effects.append(Note("files_back"))
        self.faults = faults
        lost = set(done.values)
        deaf = [c for c in self._children.heard_of() if c.address.incarnation in lost]
        return effects + [Send(child.address, BindAgain()) for child in deaf]
