"""What an index holds of a block that nobody leases is no object of Python's."""

import gc
from dataclasses import replace

from pegaflow.wire.control import BEAT_NS, Welcome
from pegaflow.wire.identities import Key
from pegaflow.wire.index import EndClaim, Held, Release, Sealed
from pegaflow.wire.status import Status
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import (
    EXTENT,
    PAGE,
    SESSION_4,
    WELCOME,
    Rig,
    said,
)

from .test_index import claim, find, index_in, press, seal_of

BLOCKS, PIECE = 1024, 128
LARGE: Welcome = replace(WELCOME, pool_bytes=BLOCKS * PAGE, extent_bytes=EXTENT)

OBJECTS_MOST = BLOCKS // 8
"""What is there for each message, and for each chain that grows; one for each block is too many."""


def index() -> Rig:
    """An index with room for all of the blocks."""
    return index_in(IndexMemory(new_ledger(LARGE)), welcome=LARGE)[0]


def save(rig: Rig, first: int) -> tuple[Key, ...]:
    """Save a chain into pages from this one on."""
    keys = tuple(Key(n.to_bytes(32, "big")) for n in range(first + 1, first + PIECE + 1))
    msg = seal_of(claim(rig, keys).number, keys, first)
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    rig.tell(SESSION_4, EndClaim(msg.claim))
    return keys


def objects(rig: Rig) -> int:
    """That the collector knows, without what the black box keeps of the messages."""
    rig.host.inputs.clear()
    gc.collect()
    return len(gc.get_objects())


def test_blocks_that_are_saved_and_found_are_no_objects() -> None:
    rig = index()
    save(rig, 0)
    assert len(press(rig, PIECE)) == PIECE
    rig.wait(BEAT_NS)
    before = objects(rig)
    chains = [save(rig, first) for first in range(0, BLOCKS, PIECE)]
    rig.wait(BEAT_NS)
    held: list[Held] = [find(rig, chain) for chain in chains]
    assert sum(len(lease.pages) for lease in held) == BLOCKS
    for lease in held:
        rig.tell(SESSION_4, Release(lease.number))
    del held, chains
    assert objects(rig) - before < OBJECTS_MOST
