"""The child table: the whole system on one screen.

    supervisor ─┬─ allocator    who may fill which page            one
                ├─ index        which block is where               one; dials the allocator
                ├─ flusher      blocks to the SSD and back         one, or none; dials allocator
                │                                                  and index
                ├─ session      moves one engine's blocks          one per engine, and spares;
                │                                                  dials allocator and index
                └─ gateway      answers HTTP                       one, or none

Children start in this order; sessions stop first, then the flusher, the core, and the gateway.
`core` children keep the books of the pool: while one is missing no engine is given a session, and
its successor adopts the pool and what the living hold of it.  Those that fill pages or have leases
are `holders`: what they have comes back by their proven death.  The gateway uses no pool.
"""

from dataclasses import dataclass

from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One row of the table."""

    name: str
    core: bool  # it keeps the books of the pool
    pool: bool  # it uses the pool
    hears_of: tuple[str, ...]  # neighbours whose endpoints it is told
    holds: bool = False  # pages and leases may be its own


ROSTER = (
    ChildSpec(ALLOCATOR, core=True, pool=True, hears_of=()),
    ChildSpec(INDEX, core=True, pool=True, hears_of=(ALLOCATOR,)),
    ChildSpec(FLUSHER, core=False, pool=True, hears_of=(ALLOCATOR, INDEX), holds=True),
    ChildSpec(SESSION, core=False, pool=True, hears_of=(ALLOCATOR, INDEX), holds=True),
    ChildSpec(GATEWAY, core=False, pool=False, hears_of=()),
)

SPECS = {spec.name: spec for spec in ROSTER}

HOLDERS = tuple(spec.name for spec in ROSTER if spec.holds)
