"""A pool as NICs see it: registered chunk by chunk, with the keys where other hosts can read them.

Memory is registered once, for both directions: our own READs write into it, and other hosts read
from it.  A chunk is touched first, which other threads do not notice, and is then registered with
each NIC, which they do: the interpreter stands still meanwhile, for 25 ms.  Space that is not
there yet must not be registered: it would become real, and be pinned, out of turn.  So whoever
grows the pool says how far it has come.  What is pinned cannot be taken back from under a NIC:
after the file is truncated, or a hole punched into it, NICs go on reading what was there.

The table has a word for each chunk and NIC: 0, or the key and KNOWN.  Words of eight bytes are read
whole, so a reader may look at any time; where it finds 0 it looks again before it gives a piece up.
Both hosts are taken to have the same order of bytes.
"""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.wire.units import Bytes, Constant

from .verbs_lib import Library, devices
from .verbs_nic import Nic, Region, VerbsError
from .verbs_plan import CHUNK_BYTES, KNOWN, Keys

MADV_POPULATE_WRITE: Constant = 23  # linux/mman.h; kernels before 5.14 have none

EXTENT_BYTES: Bytes = 32 << 20
"""Of a pool that is not spread over NUMA nodes; says nothing then."""

_ENOMEM, _EAGAIN = 12, 11
_libc = ctypes.CDLL(None, use_errno=True)


class RegisteredPool:
    """The pool of this host, open NICs, and what of the pool they have registered.

    Args:
        view: all of the pool, writable; it is mapped for as long as this is open.
        nics: one at least; owned from now on.
        chunk: bytes that are registered at once.
        spread: bytes of an extent, and the NUMA nodes of extents in turn; () if they are not
        spread.

    Raises:
        VerbsError: not even the table could be registered.
    """

    def __init__(
        self,
        view: memoryview,
        nics: Sequence[Nic],
        *,
        chunk: int = CHUNK_BYTES,
        spread: tuple[int, tuple[int, ...]] = (EXTENT_BYTES, ()),
    ) -> None:
        self.view = view
        self.nics = list(nics)
        self.chunk = chunk
        self.extent, self.nodes = spread
        self.registered = 0  # bytes from the beginning of the pool
        chunks = -(-len(view) // chunk)
        address = address_of(view)
        self._words = [[0] * chunks for _ in self.nics]  # KNOWN and the lkey, by NIC and chunk
        self.keys = [
            Keys(address, len(view), chunk=chunk, words=words) for words in self._words
        ]  # of each NIC
        self._table = mmap.mmap(-1, max(chunks * len(self.nics) * 8, mmap.PAGESIZE))
        self._closed = False
        with memoryview(self._table) as whole:
            self.table = address_of(whole)
            size = len(self._table)
        self.table_keys = [nic.register(self.table, size).rkey for nic in self.nics]

    def register(self, end: int) -> Iterator[int]:
        """Register the pool as far as it is there; what already is stays.

        Args:
            end: so many bytes from its beginning on are there.

        Yields:
            How many bytes are registered, after each chunk.

        Raises:
            UserError: a limit was met, and what to do; what is registered by then is used.
        """
        total = len(self.view)
        while not self._closed and self.registered < min(end, total):
            size = min(self.chunk, total - self.registered)
            if self.registered + size > end:
                return  # a part of the last chunk is not there yet
            self._chunk(self.registered // self.chunk, size)
            self.registered += size
            yield self.registered

    def _chunk(self, number: int, size: int) -> None:
        address = self.keys[0].address + number * self.chunk
        touch(address, size)
        regions: list[Region] = []
        try:
            for one in self.nics:
                regions.append(one.register(address, size))
        except VerbsError as err:
            for one, region in zip(self.nics, regions, strict=False):
                one.release(region)
            raise UserError(self._limit(err)) from None
        for nic, region in enumerate(regions):
            self._words[nic][number] = KNOWN | region.lkey
        with memoryview(self._table).cast("Q") as table:
            for nic, region in enumerate(regions):
                table[number * len(self.nics) + nic] = KNOWN | region.rkey

    def _limit(self, err: VerbsError) -> str:
        so_far = f"{self.registered >> 20} of {len(self.view) >> 20} MiB"
        if err.code in (_ENOMEM, _EAGAIN):
            return (
                f"RDMA: no more than {so_far} of the pool could be registered: the limit of locked "
                f"memory is {_memlock()}, and each NIC takes the whole pool of it "
                "(ulimit -l unlimited; LimitMEMLOCK=infinity; docker --ulimit memlock=-1)"
            )
        return f"RDMA: after {so_far} of the pool: {err}"

    def close(self) -> None:
        """No NIC touches the pool any more when it returns; links and owners are closed before."""
        self._closed = True
        for nic in self.nics:
            nic.close()
        self._table.close()


def open_nics(names: Sequence[str]) -> list[Nic]:
    """The devices with these names.

    Raises:
        UserError: one of them cannot be opened, or there is no pyverbs.
    """
    lib = Library()
    nics: list[Nic] = []
    try:
        for name in names:
            nics.append(Nic(lib, name))
    except VerbsError as err:
        for nic in nics:
            nic.close()
        there = ", ".join(devices()) or "none"
        raise UserError(f"RDMA: {err}; devices of this host: {there}") from None
    return nics


def address_of(view: memoryview | mmap.mmap) -> int:
    """Where writable memory is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def touch(address: int, length: int) -> None:
    """Have memory mapped that is there, so that to register it is quick; other threads go on."""
    where = ctypes.c_void_p(address), ctypes.c_size_t(length)
    _libc.madvise(*where, MADV_POPULATE_WRITE)  # where that fails, registering takes longer


def _memlock() -> str:
    for line in Path("/proc/self/limits").read_text().splitlines():
        if line.startswith("Max locked memory"):
            soft = line.split()[3]
            return soft if soft == "unlimited" else f"{int(soft) >> 10} KiB"
    return "unknown"
