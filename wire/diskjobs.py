"""Device work of the flusher, as jobs.py has that of the others.

A volume is one directory, by its position in the settings; a segment is one file of it, by its
number.  Offsets of the pool and of segments are in bytes.  A job that was not done ends with Done:
NO_SPACE (the disk is full, or would be beyond its floor); READ_ONLY (nothing can be written there);
COPY_FAILED (the device failed, or moved less than it should); CORRUPT (the bytes are not what they
should be); IN_USE (another service has the directory); GONE (it is not there any more, or it is not
the one that it was).  `note` says why, in one line for people.
"""

from .identities import Incarnation, Namespace
from .jobs import Done, Job, PagesDiffer, Result
from .message import message
from .values import Keys, U64s


@message(340)
class VolumeOpened(Result):
    """What is in a directory."""

    free_bytes: int  # in the file system, beyond its floor
    segments: U64s  # numbers, in their order
    segment_bytes: U64s  # beside `segments`; 0: a file of that name is not ours to use
    notes: tuple[str, ...] = ()  # for the log, one fact each


@message(240)
class OpenVolume(Job[VolumeOpened | Done]):
    """Lock the directory and look into it.  Done: it cannot be used now."""

    volume: int


@message(341)
class SegmentLoaded(Result):
    """The blocks of a segment."""

    rows: bytes  # as core/segments/codec.py has them
    file_bytes: int
    scanned: bool = False  # it had no footer
    corrupt: int = 0  # blocks that were left out


@message(241)
class LoadSegment(Job[SegmentLoaded | Done]):
    """The rows of a segment: from its footer; or, where that is missing, from its groups, each
    block compared with its checksum; then the footer is written and the file cut, if it can be.
    CORRUPT: not a segment that we can read; it stays as it is."""

    volume: int
    segment: int


@message(242)
class MakeSegment(Job[Done]):
    """A new segment of so many bytes, really there, unless less than the floor would stay free."""

    volume: int
    segment: int
    size: int


@message(343)
class GroupWritten(Result):
    """Blocks are written, though perhaps not durable yet."""

    checksums: U64s  # of each block


@message(243)
class WriteGroup(Job[GroupWritten | PagesDiffer | Done]):
    """Write blocks of one namespace as group `index` at `offset`, from these pool offsets (`shards`
    per block, block-major), unless pages differ from their `sums`."""

    volume: int
    segment: int
    index: int
    offset: int
    namespace: Namespace
    page_size: int
    payload_bytes: int
    shards: int
    generation: Incarnation
    keys: Keys
    depths: U64s
    pages: U64s
    sums: U64s = ()


@message(344)
class GroupCarried(Result):
    """Blocks are in another segment too, though perhaps not durable there yet."""

    rows: bytes  # as they are there, without blocks that are corrupt


@message(244)
class CarryGroup(Job[GroupCarried | Done]):
    """Copy blocks of another segment of the volume into group `index` at `offset`.  `rows` are
    their rows there.  If all of them are corrupt, nothing is written."""

    volume: int
    source: int
    segment: int
    index: int
    offset: int
    rows: bytes


@message(245)
class SyncSegment(Job[Done]):
    """Make durable what has been written so far."""

    volume: int
    segment: int


@message(346)
class FooterWritten(Result):
    """A segment has its footer."""

    file_bytes: int


@message(246)
class WriteFooter(Job[FooterWritten | Done]):
    """Write the footer with these rows at `offset`, cut the file behind it, make it durable."""

    volume: int
    segment: int
    offset: int
    rows: bytes


@message(347)
class RunRead(Result):
    """Pages are read, whatever was in the file."""

    checksums: U64s  # of each page, for whoever asks to compare


@message(247)
class ReadRun(Job[RunRead | Done]):
    """Read pages, `payload_bytes` each, which lie in a row from `offset` on, into these pool
    offsets.  They come in stretches of so many pages; between two of them lie the rows of a
    group."""

    volume: int
    segment: int
    offset: int
    payload_bytes: int
    stretches: U64s
    pages: U64s


@message(248)
class DropSegment(Job[Done]):
    """Remove the file.  Nobody reads or writes it any more."""

    volume: int
    segment: int


@message(349)
class VolumeWatched(Result):
    """A directory is still the one that was opened."""

    mended: str = ""  # what was not as it should be; empty: all was


@message(249)
class WatchVolume(Job[VolumeWatched | Done]):
    """Look whether the directory is still the one that was opened, with all of its segments.  GONE:
    it is not, and should be opened anew."""

    volume: int
