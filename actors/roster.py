"""The child table: the whole system on one screen.

    supervisor ─┬─ allocator    who may fill which page            one
                ├─ index        which block is where               one; dials the allocator
                ├─ flusher      blocks to the SSD and back         one, or none; dials allocator
                │                                                  and index
                ├─ peer         blocks of other hosts, and      one, or none; dials allocator
                │               ours for them                   and index
                ├─ session      moves one engine's blocks          one per engine, and spares;
                │                                                  dials allocator and index
                └─ gateway      answers HTTP                       one, or none

Children start in this order; sessions stop first, then the flusher, the core, and the gateway.
`core` children keep the books of the pool: while one is missing no engine is given a session, and
its successor adopts the pool and what the living hold of it.  Those that fill pages or have leases
are `holders`: what they have comes back by their proven death.  The gateway uses no pool.

What the supervisor and those who watch it have to know of a kind of child stands in its row here;
how its process begins, in `KINDS` (runtime/process.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, PEER, SESSION

if TYPE_CHECKING:
    from .supervisor.plan import Plan


def _always(plan: Plan) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One row of the table."""

    name: str
    _: KW_ONLY
    core: bool = False  # it keeps the books of the pool
    pool: bool = True  # it uses the pool
    hears_of: tuple[str, ...] = ()  # neighbours whose endpoints it is told
    holds: bool = False  # pages and leases may be its own
    wanted: Callable[[Plan], bool] = _always  # whether such a service has one
    works_in_drain: bool = False  # then its beats are signs of life; others just have to go
    missed: bool = True  # while it fails again and again, the service is not ready


ROSTER = (
    ChildSpec(ALLOCATOR, core=True),
    ChildSpec(INDEX, core=True, hears_of=(ALLOCATOR,)),
    ChildSpec(
        FLUSHER,
        hears_of=(ALLOCATOR, INDEX),
        holds=True,
        wanted=lambda plan: plan.ssd,
        works_in_drain=True,
        missed=False,
    ),
    ChildSpec(
        PEER,
        hears_of=(ALLOCATOR, INDEX),
        holds=True,
        wanted=lambda plan: plan.linked,
        missed=False,
    ),
    ChildSpec(SESSION, hears_of=(ALLOCATOR, INDEX), holds=True),
    ChildSpec(GATEWAY, pool=False, wanted=lambda plan: bool(plan.http_addr)),
)

SPECS = {spec.name: spec for spec in ROSTER}

HOLDERS = tuple(spec.name for spec in ROSTER if spec.holds)
