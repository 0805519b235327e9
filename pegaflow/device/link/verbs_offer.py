"""What two hosts tell each other before their NICs talk: an *ask*, and the *offer* that answers it.

An ask has an end for each queue pair of the reader, an offer one for each of the owner's, and says
which of the reader's it serves.  An *end* is what the other side has to know of a queue pair:
the address (GID) of its port, its number, the first packet's sequence number, and the limits that
both keep to: the smaller of two counts.

Keys are not in an offer: a pool of 1 TiB has some thousand of them for each NIC, and gains some as
it grows.  They are in a table in the owner's memory, which is registered too and is read by RDMA
like blocks are (verbs_pool.py); the offer says where it is.

Either is hostile until it is decoded.  Whoever lies in it gets a queue pair that does not work, or
has bytes of his own read, which are then not those that the block's checksum was made of.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pegaflow.wire.units import Bytes, Constant, Count

from . import LinkError
from .verbs_plan import CHUNK_LEAST_BYTES, PORT_LEAST_BYTES

ENDS_MAX: Count = 16
"""Queue pairs of a link: as many as a host has NICs."""

NODES_MAX: Count = 64
"""NUMA nodes that a pool is spread over."""

TABLE_BYTES_MAX: Bytes = 16 << 20
"""Of another host's keys: 16 NICs with 32 TiB in chunks of 256 MiB."""

VERSION: Constant = 1

_ASK = struct.Struct("!BBI")  # version, ends, number of the ask
_END = struct.Struct("!16sIIHBBbQ")  # see End
_OFFER = struct.Struct("!BBBBIQQQQ")  # version, ends, NICs, nodes; see Offer
_SERVED = struct.Struct("!BBQI")  # see Served

_BITS_24 = 1 << 24
_MTUS = range(1, 6)  # enum ibv_mtu: 256 to 4096 bytes
_BYTES_PER_KEY = 8


class End(NamedTuple):
    """A queue pair, as the other side has to know it."""

    gid: bytes  # 16
    number: int
    first: int  # sequence number of its first packet
    lid: int  # of its port; 0 unless it is InfiniBand
    mtu: int  # enum ibv_mtu
    reads: int  # how many READs it can have on their way, or serve, at a time
    node: int  # NUMA, beside its NIC; -1: unknown
    largest: int  # bytes of one message of its port


class Served(NamedTuple):
    """One of the owner's ends, and whose it is."""

    reader: int  # the place of the reader's in its ask
    nic: int  # which column of the table has its keys
    table: int  # address of the table in the owner's process
    key: int  # of the table
    end: End


@dataclass(frozen=True, slots=True)
class Offer:
    """An owner's pool, and its ends for one reader."""

    ask: int  # the number of the ask that it answers
    address: int  # of the pool in the owner's process
    length: int  # bytes of the pool
    chunk: int  # bytes that one key is good for
    nics: int  # columns of the table
    extent: int  # bytes; see `nodes`
    nodes: tuple[int, ...]  # of the extents in turn; () if they are not spread
    served: tuple[Served, ...]

    @property
    def table_bytes(self) -> int:
        """Length of the table of keys: a word for each chunk and NIC."""
        return -(-self.length // self.chunk) * self.nics * _BYTES_PER_KEY


def pack_ask(number: int, ends: Sequence[End]) -> bytes:
    """What a reader says."""
    return _ASK.pack(VERSION, len(ends), number) + b"".join(_END.pack(*end) for end in ends)


def unpack_ask(data: bytes) -> tuple[int, list[End]]:
    """What a reader has said: the number of its ask, and its ends.

    Raises:
        ValueError: it makes no sense.
    """
    try:
        version, count, number = _ASK.unpack_from(data)
        if version != VERSION or not 0 < count <= ENDS_MAX:
            raise ValueError(f"an ask of version {version} with {count} queue pairs")
        if len(data) != _ASK.size + count * _END.size:
            raise ValueError(f"an ask of {len(data)} bytes with {count} queue pairs")
        return number, [_end(data, _ASK.size + at * _END.size) for at in range(count)]
    except struct.error as err:
        raise ValueError(f"an ask of {len(data)} bytes: {err}") from None


def pack_offer(offer: Offer) -> bytes:
    """What an owner says."""
    counts = len(offer.served), offer.nics, len(offer.nodes)
    sizes = offer.ask, offer.address, offer.length, offer.chunk, offer.extent
    parts = [_OFFER.pack(VERSION, *counts, *sizes), struct.pack(f"!{counts[2]}b", *offer.nodes)]
    for one in offer.served:
        parts += [_SERVED.pack(*one[:4]), _END.pack(*one.end)]
    return b"".join(parts)


def unpack_offer(data: bytes) -> Offer:
    """What an owner has said.

    Raises:
        LinkError: it makes no sense.
    """
    try:
        return _unpack_offer(data)
    except (struct.error, ValueError) as err:
        raise LinkError(f"an offer that makes no sense: {err}") from None


def _unpack_offer(data: bytes) -> Offer:
    version, count, nics, spread, *sizes = _OFFER.unpack_from(data)
    if version != VERSION or not 0 < count <= ENDS_MAX or not 0 < nics <= ENDS_MAX:
        raise ValueError(f"version {version}, {count} queue pairs, {nics} NICs")
    ask, address, length, chunk, extent = sizes
    if spread > NODES_MAX or not length or not extent or chunk < CHUNK_LEAST_BYTES:
        raise ValueError(f"{length} bytes in chunks of {chunk} and extents of {extent}")
    each = _SERVED.size + _END.size
    at = _OFFER.size + spread
    if len(data) != at + count * each:
        raise ValueError(f"{len(data)} bytes for {count} queue pairs")
    served = []
    for start in range(at, len(data), each):
        reader, nic, table, key = _SERVED.unpack_from(data, start)
        if nic >= nics:
            raise ValueError(f"NIC {nic} of {nics}")
        end = _end(data, start + _SERVED.size)
        served.append(Served(reader=reader, nic=nic, table=table, key=key, end=end))
    if len({one.reader for one in served}) < len(served):
        raise ValueError("two queue pairs for one of ours")
    offer = Offer(
        ask=ask,
        address=address,
        length=length,
        chunk=chunk,
        nics=nics,
        extent=extent,
        nodes=struct.unpack_from(f"!{spread}b", data, _OFFER.size),
        served=tuple(served),
    )
    if offer.table_bytes > TABLE_BYTES_MAX or address + length >= 1 << 64:
        raise ValueError(f"{length} bytes in chunks of {chunk}")
    return offer


def _end(data: bytes, at: int) -> End:
    end = End(*_END.unpack_from(data, at))
    if not 0 < end.number < _BITS_24 or end.first >= _BITS_24:
        raise ValueError(f"queue pair {end.number:#x} from packet {end.first:#x} on")
    if end.mtu not in _MTUS or not end.reads or end.largest < PORT_LEAST_BYTES:
        raise ValueError(f"MTU {end.mtu}, {end.reads} reads, {end.largest} bytes a message")
    return end
