"""Device work of the flusher, as jobs.py has that of the others.

A volume is one directory, by its position in the settings; a segment is one file of it, by its
number.  Offsets of the pool and of segments are in bytes.  Every Done has a status: OK; NO_SPACE
(the disk is full, or would be beyond its floor); READ_ONLY (nothing can be written there);
COPY_FAILED (the device failed, or moved less than it should); CORRUPT (the bytes are not what they
should be); IN_USE (another service has the directory); GONE (it is not there any more, or it is not
the one that it was).  `note` says why, in one line for people.
"""

from .message import Message, message
from .values import Keys, U64s


@message(240)
class OpenVolume(Message):
    """Lock the directory and look into it.  Done.values: the bytes that are free in the file system
    beyond its floor; then number and bytes of each segment, in order of numbers; 0 bytes: a file of
    that name is not ours to use.  Done.note: lines for the log, one fact each.  Any other status
    than OK, with the reason: it cannot be used now."""

    volume: int


@message(241)
class LoadSegment(Message):
    """The rows of a segment: from its footer; or, where that is missing, from its groups, each
    block compared with its checksum; then the footer is written and the file cut, if it can be.

    Done.data: the rows (core/segments/codec.py); values: bytes of the file, 1 if it was scanned,
    blocks that were corrupt.  CORRUPT with a note: not a segment that we can read; it stays as it
    is.
    """

    volume: int
    segment: int


@message(242)
class MakeSegment(Message):
    """A new segment of so many bytes, really there, unless less than the floor would stay free."""

    volume: int
    segment: int
    size: int


@message(243)
class WriteGroup(Message):
    """Write blocks of one namespace as group `index` at `offset`, from these pool offsets (`shards`
    per block, block-major).  Done.values: the checksum of each block; after CORRUPT, the pool
    offsets of pages that differ from their `sums`, and nothing is written."""

    volume: int
    segment: int
    index: int
    offset: int
    namespace: bytes
    page_size: int
    payload: int
    shards: int
    generation: int
    keys: Keys
    depths: U64s
    pages: U64s
    sums: U64s = ()


@message(244)
class CarryGroup(Message):
    """Copy blocks of another segment of the volume into group `index` at `offset`.  `rows` are
    their rows there.  Done.data: the rows as they are here; blocks that are corrupt are left out;
    without any other block, nothing is written."""

    volume: int
    source: int
    segment: int
    index: int
    offset: int
    rows: bytes


@message(245)
class SyncSegment(Message):
    """Make durable what has been written so far."""

    volume: int
    segment: int


@message(246)
class SealSegment(Message):
    """Write the footer with these rows at `offset`, cut the file behind it, make it durable.
    Done.values: bytes of the file."""

    volume: int
    segment: int
    offset: int
    rows: bytes


@message(247)
class ReadRun(Message):
    """Read pages of `payload` bytes, which lie behind each other from `offset` on, into these pool
    offsets.  They come in stretches of so many pages; between two of them lie the rows of a group.
    Done.values: the checksum of every page, for whoever asks to compare."""

    volume: int
    segment: int
    offset: int
    payload: int
    stretches: U64s
    pages: U64s


@message(248)
class DropSegment(Message):
    """Remove the file.  Nobody reads or writes it any more."""

    volume: int
    segment: int


@message(249)
class WatchVolume(Message):
    """Look whether the directory is still the one that was opened, with all of its segments.
    Done.note: what was mended, if anything.  GONE: it is not, and should be opened anew."""

    volume: int
