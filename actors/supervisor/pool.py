"""The pool, as children are told of it."""

import dataclasses
from typing import Any

from pegaflow.actors.runtime.contract import Part
from pegaflow.wire.control import Welcome
from pegaflow.wire.jobs import Done

from .plan import Plan


class Pool(Part):
    """Where the pool is and how it is cut."""

    def __init__(self, plan: Plan) -> None:
        self.known: Welcome | None = None  # None until there is one
        self._plan = plan

    def opened(self, done: Done) -> None:
        """There is one now."""
        pool, ledger = done.note.split("\n")
        self.known = dataclasses.replace(
            self.welcome(pool, ledger, *done.values[:2]),
            pool_file=done.values[2:4],
            ledger_file=done.values[4:6],
        )

    def welcome(self, pool: str = "", ledger: str = "", size: int = 0, extent: int = 0) -> Welcome:
        """What a child is told; without a pool, one that uses none."""
        plan = self._plan
        own: dict[str, Any] = {"http_addr": plan.http_addr, "ssd": plan.ssd}
        own["max_pinned"] = int(plan.max_pinned * size)
        return Welcome(pool, ledger, size, extent, plan.run_dir, **{**plan.told, **own})
