"""Which RDMA READs a fetch is made of, and which NIC of one host reads from which of the other.

A pool is registered chunk by chunk, so a key is good for one chunk and no READ crosses the end of
one, at either host.  No READ is longer than what both ports carry in one message; whatever lies
within one chunk at both ends and is short enough, which is nearly every page, is one READ.

All of this is arithmetic: nothing here knows a device.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pegaflow.wire.units import Bytes, Constant

CHUNK_BYTES: Bytes = 256 << 20
"""Registered at once: 25 ms for memory that has been touched, and for so long nothing else of the
process runs; a pool of 1 TiB has 4,096 of them."""

CHUNK_LEAST_BYTES: Bytes = 1 << 20
"""Another host's chunks are not taken shorter: a piece would become too many READs."""

PORT_LEAST_BYTES: Bytes = 1 << 20
"""A port that carries less in one message is not used, for the same reason."""

KNOWN: Constant = 1 << 32  # beside a key of 32 bits: there is one, though it be 0

_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 within IPv6

TIMER_NS: Constant = 4096  # unit of a queue pair's timer (InfiniBand specification, 9.7.6.1.3)


class Run(NamedTuple):
    """One RDMA READ."""

    here: int  # address in this process
    lkey: int
    bytes: int
    there: int  # address in the owner's process
    rkey: int


class Keys:
    """What of a pool is registered with one NIC, and under which key.

    Args:
        address: of the pool in the process that has registered it.
        length: bytes of the pool.
        words: for each chunk KNOWN and its key, or 0; others may write into it meanwhile.
    """

    def __init__(self, address: int, length: int, *, chunk: int, words: Sequence[int]) -> None:
        self.address = address
        self.length = length
        self.chunk = chunk  # bytes
        self.words = words

    def covers(self, offset: int, length: int) -> bool:
        """Whether all of it is registered."""
        if offset < 0 or length < 1 or offset + length > self.length:
            return False
        return all(self.words[offset // self.chunk : (offset + length - 1) // self.chunk + 1])


def runs(where: tuple[int, int], length: int, ends: tuple[Keys, Keys], largest: int) -> list[Run]:
    """The READs that bring one piece here.

    Args:
        where: its offset in our pool, and in the owner's.
        ends: our keys, and the owner's; both cover the piece.
        largest: bytes of one READ.
    """
    local, remote = where
    here, there = ends
    found = []
    while length:
        at, from_ = local % here.chunk, remote % there.chunk
        size = min(length, largest, here.chunk - at, there.chunk - from_)
        lkey, rkey = here.words[local // here.chunk], there.words[remote // there.chunk]
        found.append(
            Run(
                here=here.address + local,
                lkey=lkey & (KNOWN - 1),
                bytes=size,
                there=there.address + remote,
                rkey=rkey & (KNOWN - 1),
            )
        )
        local, remote, length = local + size, remote + size, length - size
    return found


class Port(NamedTuple):
    """Where a NIC is."""

    node: int  # NUMA; -1: unknown
    gid: bytes  # its address

    @property
    def network(self) -> bytes:
        """What its neighbours' addresses begin with: 24 bits of IPv4, 64 of IPv6."""
        return self.gid[:15] if self.gid.startswith(_MAPPED) else self.gid[:8]


def pairs(readers: Sequence[Port], owners: Sequence[Port], used: Sequence[int]) -> list[int]:
    """For each NIC of a reader the owner's NIC that serves it.

    One of the same network if there is one, for the NICs of a host may be on networks of their
    own, between which nothing is routed.  Where both hosts have as many NICs, the first serves the
    first, and so on, as the switches of a fabric with rails have it.  Otherwise each gets the one
    that serves the fewest, and among those one beside a node of the same number.  A reader has as
    many queue pairs as it has NICs: more would add nothing, for its own NICs are then the narrow
    place.

    Args:
        used: how many queue pairs each of the owner's has already.

    Returns:
        Positions in `owners`.
    """
    counts = list(used)
    found = []
    for place, port in enumerate(readers):
        near = [n for n, owner in enumerate(owners) if owner.network == port.network]
        near = near or list(range(len(owners)))
        best = min(near, key=lambda n: (counts[n], owners[n].node != port.node, n))
        if len(readers) == len(owners) and place in near:
            best = place
        counts[best] += 1
        found.append(best)
    return found


def crossings(near: tuple[int, int], memory: tuple[int, int]) -> int:
    """How often bytes cross between NUMA nodes: at neither host, at one, or at both.

    Args:
        near: the nodes of the reader's NIC and of the owner's; -1 is unknown, and crosses nothing.
        memory: those of the page here and of the page there.
    """
    return sum(a != b and a >= 0 and b >= 0 for a, b in zip(near, memory, strict=True))


def node_of(offset: int, extent: int, nodes: Sequence[int]) -> int:
    """The node of a place in a pool whose extents are spread over nodes in turn; -1 if they are
    not."""
    return nodes[offset // extent % len(nodes)] if nodes else -1


def patience_ns(timeout: int, retries: int) -> int:
    """How long a queue pair waits for a peer that does not answer, at least.

    Args:
        timeout: its attribute, an exponent.
        retries: its attribute retry_cnt.
    """
    return TIMER_NS * (1 << timeout) * (retries + 1)
