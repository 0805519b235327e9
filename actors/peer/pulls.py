"""What is fetched: a wish of the index, cut into pulls; and what a host's answer is worth.  See
wire/peer.py."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pegaflow.actors.roles.pages import NO_PAGES, Grant
from pegaflow.actors.runtime.contract import Sender
from pegaflow.core.pool.ledger import MAX_SHARDS, PAYLOAD_BYTES_MAX
from pegaflow.wire.flusher import FETCH_NS, Fetch
from pegaflow.wire.identities import NO_LEASE, LeaseId
from pegaflow.wire.peer import HOSTS_MAX, Cut, Lent

from .places import RemoteHost


@dataclass(slots=True, eq=False)
class Wish:
    """A question of the index."""

    sender: Sender
    msg: Fetch
    left: int  # positions without an end
    failed: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Source:
    """A host, and what it is asked for."""

    turns: OrderedDict[int, deque["Pull"]] = field(default_factory=OrderedDict)  # by engine
    running: int = 0  # pulls
    linked: bool = False
    linking: bool = False  # an offer is asked for, or a link is made
    again_ns: int = 0  # no link is tried before
    heard_upto: LeaseId = NO_LEASE  # newest loan that we know of
    gone: bool = False  # it is not there any more: nothing of it is waited for
    loans: set[LeaseId] = field(default_factory=set)  # those that we have not given back


@dataclass(slots=True, eq=False)
class Pull:
    """Blocks that one host is asked for together."""

    fetch: Wish
    host: RemoteHost
    positions: list[int]
    cut: Cut
    source: Source
    loan: LeaseId = NO_LEASE  # while it is ours
    grant: Grant = NO_PAGES  # to read into, block-major
    lent: Lent | None = None

    def until(self, now: int) -> int:
        """How long it is worth anything; of a question without a deadline as long as of any."""
        return self.fetch.sender.deadline or now + FETCH_NS


def is_cut(cut: Cut) -> bool:
    """Whether blocks can be cut so: what is said of them is of another process."""
    return 0 < cut.payload_bytes <= PAYLOAD_BYTES_MAX and 0 < cut.shards <= MAX_SHARDS


def makes_sense(lent: Lent, cut: Cut, asked: int) -> bool:
    """Whether a host's answer to a Borrow can be read: what it says is of another process."""
    if not lent.blocks:
        return True
    pages = lent.blocks * lent.shards
    return (
        lent.number != NO_LEASE
        and lent.blocks <= asked
        and (lent.payload_bytes, lent.shards) == (cut.payload_bytes, cut.shards)
        and len(lent.offsets) == pages
        and len(lent.sums) in (0, pages)
    )


def whole(sums: tuple[int, ...], lent: Lent) -> list[int]:
    """Which blocks have come whole, and as they were sealed.

    Args:
        sums: checksum of each page as it lies here; 0: it was not read.
    """
    if len(sums) != lent.blocks * lent.shards:
        return []
    told = tuple(lent.sums) or (0,) * len(sums)
    fine = [here != 0 and said in (0, here) for here, said in zip(sums, told, strict=True)]
    return [at for at in range(lent.blocks) if all(fine[at * lent.shards : (at + 1) * lent.shards])]


def stretches(masks: Iterable[int], slots: frozenset[int]) -> Iterator[tuple[int, list[int]]]:
    """Who is asked for what: each block of one of the hosts that may have it, in stretches as long
    as can be, and those of several hosts that have the same in equal parts.

    Args:
        masks: of each block: the slots of the hosts that may have it.
        slots: those that can be asked.

    Yields:
        A slot, and places of blocks.
    """
    able = sum(1 << slot for slot in slots)
    runs: list[tuple[int, list[int]]] = []
    for at, mask in enumerate(masks):
        mask &= able
        if not mask:
            continue
        both = runs[-1][0] & mask if runs and runs[-1][1][-1] == at - 1 else 0
        if both:
            runs[-1][1].append(at)
            runs[-1] = both, runs[-1][1]
        else:
            runs.append((mask, [at]))
    for mask, places in runs:
        owners = [slot for slot in range(HOSTS_MAX) if mask >> slot & 1]
        part = -(-len(places) // len(owners))
        for n, slot in enumerate(owners):
            some = places[n * part : (n + 1) * part]
            if some:
                yield slot, some
