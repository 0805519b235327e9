"""The pool, as children are told of it."""

import dataclasses
from typing import Any

from pegaflow.actors.runtime.contract import Part
from pegaflow.wire.control import Welcome
from pegaflow.wire.jobs import PoolOpened

from .plan import Plan


class Pool(Part):
    """Where the pool is and how it is cut."""

    def __init__(self, plan: Plan) -> None:
        self.known: Welcome | None = None  # None until there is one
        self._page_bytes = 0  # of the memory pages that it is made of
        self._plan = plan

    def opened(self, pool: PoolOpened) -> None:
        """There is one now."""
        self._page_bytes = pool.page_bytes
        self.known = dataclasses.replace(
            self.welcome(pool.pool_path, pool.ledger_path, pool.pool_bytes, pool.extent_bytes),
            pool_file=pool.pool_file,
            ledger_file=pool.ledger_file,
        )

    def gauges(self) -> dict[str, int]:
        """What it is made of."""
        return {"pool_page_bytes": self._page_bytes}

    def welcome(self, pool: str = "", ledger: str = "", size: int = 0, extent: int = 0) -> Welcome:
        """What a child is told; without a pool, one that uses none.

        Args:
            pool: path of its file.
            ledger: path of the ledger's.
            size: bytes.
            extent: bytes.
        """
        plan = self._plan
        told: dict[str, Any] = {
            name: int(value * size) if isinstance(value, float) else value  # a share of the pool
            for name, value in plan.told.items()
        }
        return Welcome(
            pool_path=pool,
            ledger_path=ledger,
            pool_bytes=size,
            extent_bytes=extent,
            run_dir=plan.run_dir,
            http_addr=plan.http_addr,
            ssd=plan.ssd,
            gpus=plan.devices,
            **told,
        )
