"""Faults that wait for a message: which process, which message, what happens to it then.

Every message that an actor may get is met by every fault somewhere among the seeds: a run takes its
share of all cells in turn.  `table` shows how often each was met; a cell that was never met means
that a path of the protocol was never tried, and fails the run of all seeds.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pegaflow.wire.values import ALLOCATOR, CLIENT, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR

FAULTS = ("dies before", "dies after", "stops", "hangs")
"""It never hears the message; it hears it and dies; it hears it up to 2.3 s later; it hears it so
late that it is killed instead, or once it goes on if nobody kills it."""

MESSAGES: dict[str, tuple[str, ...]] = {
    SUPERVISOR: ("Hello", "Beat", "Bye", "OpenSession", "Serving", "Inspect"),
    ALLOCATOR: (
        *("Welcome", "Members", "Gone", "Drain", "Reserve", "Return", "PagesHeld"),
        *("Freed", "Fenced"),
    ),
    INDEX: (
        *("Welcome", "Members", "Neighbour", "Gone", "Drain", "Find", "Release", "Claim"),
        "EndClaim",
        *("Seal", "LeasesHeld", "Held", "Claiming", "Pressure", "Fence", "Corrupt"),
        *("Tier", "Manifest", "Forget", "Flushed", "Fetched", "WriteAll"),
        *("HazardFile", "Touched"),
    ),
    SESSION: (
        *("Welcome", "Neighbour", "Gone", "Drain", "Serve", "Attach", "Proven", "Leave", "Lookup"),
        *("Load", "Copied", "Save", "Keep", "Drop", "Skip", "Release"),
        *("Held", "Claimed", "Sealed", "Reserved", "HazardsNoted", "Borrow", "Took", "Looked"),
    ),
    FLUSHER: (
        *("Welcome", "Neighbour", "Gone", "Drain", "Flush", "Fetch", "Reserved", "Sealed", "Noted"),
        "Written",
    ),
    GATEWAY: ("Welcome", "Gone", "Report", "Drain"),
    CLIENT: (
        *("SessionAt", "Refused", "Attached", "Prove", "Found", "Pages", "Loaded", "Confirmed"),
        *("CopyBatch", "BatchCopied", "Saved", "Left", "Lent"),
    ),
}
"""What each kind of process is told or answered.  Not here: LeasesLost, which needs a lost
statement and a full link at once (tests/actors/roles/test_recovery_in_actors.py), Ping, Pong and
Unreachable, which are for clients on TCP (tests/actors/session/test_remote.py), Commit
(tests/actors/session/test_commit.py), and Pinned (tests/actors/index/test_pins.py)."""

OF_GPU: dict[str, tuple[str, ...]] = {SUPERVISOR: ("UsesGpu", "Warmed"), SESSION: ("Warm",)}
"""What only runs with engines on GPUs have, and only make an attach sooner: each of these cells is
met by a run of its own, and none is dealt to the others."""


@dataclass(frozen=True, slots=True, order=True)
class Trap:
    """One cell of the table."""

    actor: str
    message: str
    fault: str


CELLS = tuple(
    Trap(actor, message, fault)
    for actor, messages in MESSAGES.items()
    for message in messages
    for fault in FAULTS
    # A drained process is about to go: its supervisor waits for its death, not for its voice.
    if not (message == "Drain" and fault in ("stops", "hangs"))
)
"""Those that are dealt."""

ALONE = tuple(
    Trap(actor, message, fault)
    for actor, messages in OF_GPU.items()
    for message in messages
    for fault in FAULTS
)
"""And those that are not."""

RARE = frozenset(
    "Bye Drain Return Gone Release Held Claiming Fence Corrupt Load Copied Skip Pages Loaded"
    " Confirmed Left EndClaim Pressure Serving Forget WriteAll Written Tier Manifest Noted"
    " HazardFile HazardsNoted Touched UsesGpu Warm Warmed".split()
)
"""Messages that a run may see only a few times: their traps spring at the first."""

OF_SSD = frozenset("Tier Manifest Forget Flushed Fetched WriteAll".split())
"""What an index hears of a flusher only."""

PER_RUN = 8
"""Traps of one run."""


def traps_of(seed: int) -> list[Trap]:
    """The share of one run: each time the cells have all been dealt they are shuffled anew."""
    dealt: list[Trap] = []
    for n in range(seed * PER_RUN, (seed + 1) * PER_RUN):
        deal, at = divmod(n, len(CELLS))
        dealt.append(random.Random(deal).sample(CELLS, len(CELLS))[at])
    return dealt


def is_of_ssd(trap: Trap) -> bool:
    """Whether only a host with SSDs has what it waits for."""
    return trap.actor == FLUSHER or trap.message in OF_SSD


def is_of_gpu(trap: Trap) -> bool:
    """Whether only engines on GPUs have what it waits for."""
    return trap in ALONE


def table(met: Counter[Trap]) -> str:
    """How often each cell was met."""
    lines = [f"{'actor':12}{'message':12}" + "".join(f"{fault:>12}" for fault in FAULTS)]
    for actor, messages in MESSAGES.items():
        for message in (*messages, *OF_GPU.get(actor, ())):
            cells = [Trap(actor, message, fault) for fault in FAULTS]
            shown = (str(met[cell]) if cell in (*CELLS, *ALONE) else "-" for cell in cells)
            lines.append(f"{actor:12}{message:12}" + "".join(f"{text:>12}" for text in shown))
    return "\n".join(lines)


def missed(met: Counter[Trap]) -> Iterable[Trap]:
    """Cells that were never met."""
    return [cell for cell in (*CELLS, *ALONE) if not met[cell]]
