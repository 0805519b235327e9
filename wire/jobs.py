"""Device work and its completions, in the same typed form as messages.

An actor asks its shell for device work with a job and gets a completion as its next input.  Both
are declared like messages, so that an actor's inputs can be written to a file and replayed; they
never cross a socket.

A child that says nothing is judged by the supervisor and looked at by its shell:

    supervisor → shell   Look           at every tick, from a third of its patience on
    shell → supervisor   Done           how long it, or we, waited for a core since the first Look
    supervisor → shell   Kill           once it was silent for longer than its patience, without
                                        that waiting
    shell → supervisor   Exited         its proven death

The shell remembers its first Look for each silence (a child and the time since when it is silent),
so it asks the kernel only about a child that is late.  What cannot be seen has not waited.
"""

from .control import Report
from .layout import Layout
from .message import Message, message
from .status import Status
from .values import Address, U64s


@message(200)
class Done(Message):
    """A job is over.  `values`, `note` and `data` mean what the job says they mean."""

    status: Status
    note: str = ""
    values: U64s = ()
    data: bytes = b""


@message(201)
class GrowExtent(Message):
    """Make the file space of this extent really there.  Done: OK, or NO_SPACE with the reason."""

    extent: int


@message(202)
class ReadRecords(Message):
    """Which of these pages have a sealed record now?  Done.values: the sealed ones."""

    pages: U64s


@message(217)
class ScanRecords(Message):
    """Which of these records are not void?  Done.values: page | bytes of payload << 32 for each,
    by page; 0 bytes for a quarantined page."""

    first: int
    count: int


@message(203)
class OpenBounce(Message):
    """Create the bounce file of a mapping: `slots` slots of `page_size`.  Done.note: its path;
    values: its device and inode."""

    slots: int
    page_size: int
    mapping: int = 0


@message(204)
class FillPages(Message):
    """Copy bounce slot i into the page at pool offset i, `length` bytes each."""

    slots: U64s
    offsets: U64s
    length: int
    page_size: int
    mapping: int = 0


@message(205)
class WatchProcess(Message):
    """Done when this process is dead (or never was the one that started then)."""

    pid: int
    started: int


@message(206)
class Spawn(Message):
    """Start a child process.  Done.values: its pid and start time; the exit comes as Exited."""

    address: Address


@message(207)
class Exited(Message):
    """A child is proven dead: its pidfd fired.  `code` is its exit status or 256 + signal."""

    address: Address
    code: int
    how: str = ""  # the same in words


@message(208)
class Kill(Message):
    """SIGKILL a child; its death comes as Exited."""

    address: Address


@message(239)
class Look(Message):
    """What has kept a child from speaking since then?  Done.values, since the first Look of this
    silence: nanoseconds in which a thread of the child's or of ours was ready to run and had no
    core, nanoseconds that the child ran, and when that was: we may hear of it much later.
    Done.note: its state, in a word."""

    address: Address
    since: int


@message(209)
class OpenPool(Message):
    """A pool and its ledger, adopted or new.  Done.note: 'pool path\\nledger path'; values: bytes
    of the pool and of an extent, device and inode of the pool's file and of the ledger's."""


@message(233)
class CheckFiles(Message):
    """Are the run directory, its lock, the sockets, pool and ledger still where others find them?
    What can be made anew is.  Done.note: what cannot, a line each; values: incarnations of those
    whose socket was not there: our own, if it is bound again now, and of children that have to do
    so (or have not bound it yet)."""


@message(210)
class NextIncarnation(Message):
    """Bump the stored incarnation counter.  Done.values: the new number."""


@message(211)
class Stopping(Message):
    """An operator asked us to stop (SIGINT, SIGTERM), or not to wait for a drain (SIGQUIT)."""

    at_once: bool = False


@message(236)
class Relogging(Message):
    """An operator changed how to log (SIGHUP, SIGUSR2); the supervisor itself does so already."""

    level: str
    file: str = ""


@message(237)
class Showing(Message):
    """An operator wants to read the state of every process in the log (SIGUSR1)."""


@message(238)
class SetLog(Message):
    """Log at this level, into this file anew unless it is empty.  Done: OK, or NO_SPACE with the
    reason why the file cannot be had; then the old one is kept."""

    level: str
    file: str = ""


@message(230)
class Announce(Message):
    """Tell the service manager, if there is one (sd_notify): lines of NAME=value."""

    lines: str


@message(231)
class Listen(Message):
    """Answer HTTP at this host:port.  Done: OK with the address (note) and port (values), or BUSY
    with the reason."""

    address: str


@message(232)
class Publish(Message):
    """Answer HTTP from this report from now on."""

    report: Report


@message(219)
class Unreachable(Message):
    """The connection of this client on TCP is gone: what was sent to it was not."""

    address: Address


@message(212)
class DrawProof(Message):
    """Draw PROOF_BYTES random bytes.  Done.note: them, in hex."""


@message(213)
class MapEngine(Message):
    """Reach an engine's memory under the number `mapping`, once `proof` is read at `scratch`.

    Done: OK, or COPY_FAILED with the reason.
    """

    mapping: int
    pid: int
    started: int
    bases: U64s
    layout: Layout
    scratch: int
    proof: bytes


@message(214)
class UnmapEngine(Message):
    """Copies of this mapping stop at their next chunk; its bounce file goes."""

    mapping: int


@message(215)
class ReadBlocks(Message):
    """Copy the engine's block i to pool offset i; COPY_FAILED or EXPIRED if not all of it."""

    mapping: int
    blocks: U64s
    offsets: U64s
    deadline: int


@message(216)
class WriteBlocks(Message):
    """Copy pool offset i into the engine's block i; COPY_FAILED or EXPIRED if not all of it.

    With `checksums` each page is checked first: CORRUPT, and Done.values the offsets that differ.
    """

    mapping: int
    blocks: U64s
    offsets: U64s
    deadline: int
    checksums: U64s = ()


@message(218)
class SumPages(Message):
    """The checksum of `length` bytes at each of these pool offsets.  Done.values: them."""

    offsets: U64s
    length: int
