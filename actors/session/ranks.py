"""The ranks of one engine: which client holds which rank's memory, and how its bytes move.

    Attach ── sound ──→ DrawProof → Prove → Proven → MapEngine ──→ OpenBounce → Attached
                 ├── on a GPU ──→ MapGpu ──────────────────────────────┤  (only for staged saves)
                 └── staged only ──────────────────────────────────────┘

A rank is *there* once it is attached; the engine is *complete* once all `world` ranks are, and only
then has a namespace: a hash of what the engine says of itself and of every shard's layout.

Replicas.  Ranks may hold the same bytes: of a model with latent attention all tensor parallel ranks
do.  Each says so when it attaches, `replicas` consecutive ranks alike, and they have one *shard*:
one page per block, whichever of them saved it.  Every one of them loads from that page into its own
memory.  They share the work of saving by stripes: of what is new in an order each saves every
`replicas`-th block, from another one on in each order.  So where a replica is late, drops its part
or is gone, the others' blocks are hits all the same: what is found ends at the first block that is
missing.  The namespace is that of the shards, so an engine whose ranks are all replicas shares with
an engine of one rank.  Ranks that call themselves replicas and cut pages of other lengths or dtypes
are refused; of those that name them differently (their weights were not changed alike) every name
counts, and no other engine has that namespace.

Pages of a block are of one size, that of the rank whose block is the largest: pipeline stages may
have unequal numbers of layers, and a draft model lies in one of them.  What a smaller block leaves
of its page is whatever lay there: it is copied to no engine, and a checksum covers it as well, for
the readers of a page do not know whose it is.

`running` counts the device jobs that touch a rank's memory or slots.  Whoever takes a rank over, or
leaves, waits until it is zero.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

from pegaflow.actors.runtime.contract import Sender
from pegaflow.wire import layout as layouts
from pegaflow.wire.control import Serve
from pegaflow.wire.identities import Namespace
from pegaflow.wire.layout import Layout
from pegaflow.wire.session import Attach, Way
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import Address

BOUNCE_BYTES: Bytes = 64 << 20
"""Size of a rank's bounce file: four batches of 256 KiB pages; more would leave the CPU cache."""

SLOTS_MAX: Count = 1024
"""Slots of a bounce file: of small pages, more would never be under way at once."""

WORLD_MAX: Count = 1024
"""Ranks of one engine: far above the tensor and pipeline parallelism of any deployment."""


@dataclass(slots=True, eq=False)
class Rank:
    """One attached rank, or one that is about to be."""

    number: int
    client: Address
    mapping: int  # names this attach at the device; never reused
    asked: Attach
    there: bool = False  # attached
    loads: Way = Way.STAGED
    saves: Way = Way.STAGED
    note: str = ""  # why it is not served the way it wished
    proof: bytes = b""  # drawn for its Attach, until it says Proven
    slots: int = 0  # of the bounce file
    free_slots: list[int] = field(default_factory=list)
    running: int = 0  # device jobs that touch its memory or slots
    used: int = 0  # pages that its open saves fill or have filled
    gone: bool = False  # taken over, or its client has left
    leaving: Sender | None = None  # the Leave to answer once `running` is zero

    @property
    def layout(self) -> Layout:
        """Where its blocks are."""
        return self.asked.layout

    @property
    def on_gpu(self) -> bool:
        """Whether its memory is one that the device opens with MapGpu."""
        return wants_cuda_ipc(self)

    @property
    def page_size(self) -> int:
        """Bytes of a page that holds one of its blocks."""
        return layouts.page_size(self.layout)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one of its blocks."""
        return layouts.page_bytes(self.layout)

    @property
    def replicas(self) -> range:
        """The ranks that hold what this one holds, itself among them."""
        return _replicas(self.asked)


def new_rank(client: Address, msg: Attach, mapping: int) -> Rank:
    """A rank whose Attach was found sound.

    Args:
        mapping: number under which the device will know its memory; never reused.
    """
    return Rank(msg.rank, client, mapping, msg)


def wants_process_vm(rank: Rank) -> bool:
    """Whether the client named what process_vm needs, and did not ask for staged copies."""
    asked = rank.asked
    named = asked.scratch > 0 and len(asked.bases) == len(asked.region_bytes)
    return named and asked.way is not Way.STAGED


def wants_cuda_ipc(rank: Rank) -> bool:
    """Whether the client has its memory on a GPU, and did not ask for staged copies."""
    return bool(rank.asked.gpu.regions) and rank.asked.way is not Way.STAGED


def choose_ways(rank: Rank) -> None:
    """The client's memory is reachable, and it did not ask for staged copies: AUTO means the faster
    way, which is ours in both directions (docs/perf.md)."""
    rank.loads = rank.saves = Way.CUDA_IPC if rank.on_gpu else Way.PROCESS_VM


def bounce_slots(page_size: int) -> int:
    """Slots of a bounce file."""
    return max(1, min(SLOTS_MAX, BOUNCE_BYTES // page_size))


def fault(msg: Attach, others: dict[int, Rank]) -> str:
    """Why a rank does not fit those that are there.

    Args:
        msg: what its client has said.
        others: by rank number; one of the same number is to be replaced, and not looked at.

    Returns:
        One line; '' if it fits.
    """
    if not (1 <= msg.world <= WORLD_MAX and msg.rank < msg.world):
        return f"rank {msg.rank} of {msg.world} ranks does not exist"
    if not 1 <= msg.replicas <= msg.world or _replicas(msg).stop > msg.world:
        return f"rank {msg.rank} of {msg.world} ranks has no {msg.replicas} replicas"
    for other in others.values():
        if other.number == msg.rank:
            continue
        if other.asked.world != msg.world:
            said = f"rank {other.number} says that there are {other.asked.world} ranks"
            return f"{said}, rank {msg.rank} says {msg.world}"
        if msg.rank not in other.replicas and other.number not in _replicas(msg):
            continue
        if other.asked.replicas != msg.replicas or not layouts.alike(other.layout, msg.layout):
            return (
                f"ranks {other.number} and {msg.rank} hold the same bytes, one of them says, and"
                " do not describe them alike"
            )
    return ""


def _replicas(msg: Attach) -> range:
    first = msg.rank - msg.rank % msg.replicas
    return range(first, first + msg.replicas)


def shards(ranks: dict[int, Rank]) -> tuple[int, ...]:
    """The shard of each rank of a complete engine.

    Args:
        ranks: by rank number, all of them there.
    """
    firsts = sorted({rank.replicas.start for rank in ranks.values()})
    places = {first: place for place, first in enumerate(firsts)}
    return tuple(places[ranks[number].replicas.start] for number in sorted(ranks))


def complete(ranks: dict[int, Rank]) -> bool:
    """Whether every rank of the engine is there."""
    there = [rank for rank in ranks.values() if rank.there]
    return bool(there) and len(there) == there[0].asked.world


def namespace(serve: Serve, ranks: dict[int, Rank]) -> Namespace:
    """16 bytes for all that gives the pages of a complete engine their meaning.

    Args:
        ranks: by rank number, all of them there.
    """
    said: dict[int, dict[bytes, None]] = {}  # by first rank of a shard, what its replicas say
    for _, rank in sorted(ranks.items()):
        said.setdefault(rank.replicas.start, {})[layouts.fingerprint(rank.layout)] = None
    digest = blake2b(digest_size=16)
    for part in (serve.namespace, serve.probe, *(b"".join(prints) for prints in said.values())):
        digest.update(blake2b(part, digest_size=32).digest())
    return Namespace(digest.digest())
