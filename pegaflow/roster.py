"""The child table: the whole system on one screen.

    supervisor ─┬─ allocator    who may fill which page            one
                ├─ index        which block is where               one; dials the allocator
                └─ session      moves one engine's blocks          one per engine, and spares;
                                                                   dials allocator and index

Children start in this order and stop in the reverse.  `core` children hold the books of the pool:
until a pool can be adopted, the death of one restarts all children on a new pool.
"""

from dataclasses import dataclass

from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One row of the table."""

    name: str
    core: bool  # its death restarts the group
    hears_of: tuple[str, ...]  # neighbours whose endpoints it is told


ROSTER = (
    ChildSpec(ALLOCATOR, core=True, hears_of=()),
    ChildSpec(INDEX, core=True, hears_of=(ALLOCATOR,)),
    ChildSpec(SESSION, core=False, hears_of=(ALLOCATOR, INDEX)),
)

SPECS = {spec.name: spec for spec in ROSTER}
