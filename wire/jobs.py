"""Device work and its completions, in the same typed form as messages.

An actor asks its shell for device work with a job and gets a completion as its next input.  Both
are declared like messages, so that an actor's inputs can be written to a file and replayed; they
never cross a socket.

A job's class says with which results it may end: Job[Spawned | Done] ends with what was spawned, or
with a Done that says why nothing was.  A result is named for what has happened, and its fields for
what it says; a job that has nothing to say beyond that it is done, or why it is not, ends with Done
alone.  Only a job without Done among its results cannot fail: what goes wrong with it ends the
process.  The host compares each result with the class of its job, and so does mypy with what a
continuation takes.

A child that says nothing is judged by the supervisor and looked at by its shell:

    supervisor → shell   Look           at every tick, from a third of its patience on
    shell → supervisor   Looked         how long it, or we, waited for a core since the first Look
    supervisor → shell   Kill           once it was silent for longer than its patience, without
                                        that waiting
    shell → supervisor   Exited         its proven death

The shell remembers its first Look for each silence (a child and the time since when it is silent),
so it asks the kernel only about a child that is late.  What cannot be seen has not waited.
"""

import enum
from types import UnionType
from typing import ClassVar, Generic, TypeVar, get_args

from .control import Report
from .identities import Incarnation, PageId
from .layout import Layout
from .message import Message, message
from .status import Status
from .values import Address, Numbers, U64s


class Result(Message):
    """How a job has ended."""

    __slots__ = ()

    @property
    def ok(self) -> bool:
        """Whether it did what it was meant to do."""
        return True


_R_co = TypeVar("_R_co", bound=Result, covariant=True)


class Job(Message, Generic[_R_co]):
    """Device work that ends with one of these results."""

    __slots__ = ()
    RESULTS: ClassVar[tuple[type[Result], ...]] = ()
    """The classes of these results."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in cls.__dict__.get("__orig_bases__", ()):
            (said,) = get_args(base)
            cls.RESULTS = get_args(said) if isinstance(said, UnionType) else (said,)


@message(200)
class Done(Result):
    """A job is over, or was not done; `note` says why not, in one line for people."""

    status: Status
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what it was meant to do."""
        return self.status is Status.OK


@message(300)
class PagesDiffer(Result):
    """These pages of the pool do not hold what was sealed, so nothing was moved."""

    offsets: U64s  # in the pool

    @property
    def ok(self) -> bool:
        """Never."""
        return False


@message(201)
class GrowExtent(Job[Done]):
    """Make the file space of this extent really there.  NO_SPACE: the host has no memory for it.
    OK with a note: it is, and not on the node that it was meant for."""

    extent: int


@message(302)
class RecordsRead(Result):
    """Which of the pages have a sealed record."""

    sealed: Numbers[PageId]  # pages


@message(202)
class ReadRecords(Job[RecordsRead]):
    """Which of these pages have a sealed record now?"""

    pages: Numbers[PageId]


@message(317)
class RecordsScanned(Result):
    """The pages whose records are not void, in their order."""

    pages: Numbers[PageId]
    payload_bytes: U64s  # beside `pages`; 0: a quarantined page


@message(217)
class ScanRecords(Job[RecordsScanned | Done]):
    """Which of these records are not void?"""

    first: PageId
    count: int


@message(321)
class PagesEntered(Result):
    """How far our page tables go now."""

    length: int  # from `offset` on; less than asked for if the next page is not in memory


@message(221)
class EnterPages(Job[PagesEntered | Done]):
    """Enter pages of the pool into our page tables, from this byte on, up to the first that is not
    in memory.  COPY_FAILED: the kernel does not do that."""

    offset: int
    length: int


@message(303)
class BounceOpened(Result):
    """The bounce file is there."""

    path: str
    file: U64s  # its device and inode


@message(203)
class OpenBounce(Job[BounceOpened | Done]):
    """Create the bounce file of a mapping: `slots` slots of `page_size`.  NO_SPACE: shared memory
    is full."""

    slots: int
    page_size: int
    mapping: int = 0


@message(204)
class FillPages(Job[Done]):
    """Copy bounce slot i into the page at pool offset i, `payload_bytes` each."""

    slots: U64s
    offsets: U64s
    payload_bytes: int
    page_size: int
    mapping: int = 0


@message(205)
class WatchProcess(Job[Done]):
    """Done, with OK, when this process is dead (or never was the one that started then)."""

    pid: int
    started_ticks: int


@message(306)
class Spawned(Result):
    """A child runs."""

    pid: int
    started_ticks: int  # start time of the process in clock ticks since boot


@message(206)
class Spawn(Job[Spawned | Done]):
    """Start a child process; its exit comes as Exited.  NO_SPACE: it cannot be started."""

    address: Address


@message(207)
class Exited(Message):
    """A child is proven dead: its pidfd fired.  `code` is its exit status or 256 + signal."""

    address: Address
    code: int
    how: str = ""  # the same in words


@message(208)
class Kill(Job[Done]):
    """SIGKILL a child; its death comes as Exited."""

    address: Address


class ThreadState(enum.IntEnum):
    """What a thread does, by the kernel's word; a kernel may know more of them than we do."""

    UNKNOWN = 0
    RUNNING = 1  # or ready to run
    SLEEPING = 2
    BLOCKED_IN_KERNEL = 3
    STOPPED = 4
    TRACED = 5
    DEAD = 6

    @property
    def label(self) -> str:
        """It in words."""
        return self.name.lower().replace("_", " ")


@message(339)
class Looked(Result):
    """What a silent child has done since the first Look of this silence."""

    waited_ns: int  # a thread of the child's or of ours was ready to run and had no core
    ran_ns: int
    at_ns: int  # when that was: we may hear of it much later
    state: ThreadState  # of the child's main thread now


@message(239)
class Look(Job[Looked]):
    """What has kept a child from speaking since then?"""

    address: Address
    since_ns: int


@message(309)
class PoolOpened(Result):
    """Where the pool is, and how it is cut."""

    pool_path: str
    ledger_path: str
    pool_bytes: int
    extent_bytes: int
    pool_file: U64s  # its device and inode
    ledger_file: U64s
    page_bytes: int = 0  # of the memory pages that the pool is made of


@message(209)
class OpenPool(Job[PoolOpened | Done]):
    """A pool and its ledger, adopted or new."""


@message(333)
class FilesChecked(Result):
    """What of our files is not there."""

    faults: tuple[str, ...]  # what cannot be made anew, a line for people each
    unbound: Numbers[Incarnation]
    """Incarnations of those whose socket was not there: our own, if it is bound again now, and of
    children that have to do so (or have not bound it yet)."""


@message(233)
class CheckFiles(Job[FilesChecked]):
    """Are the run directory, its lock, the sockets, pool and ledger still where others find them?
    What can be made anew is."""


@message(310)
class IncarnationDrawn(Result):
    """The new number, which nobody has had before."""

    incarnation: Incarnation


@message(210)
class NextIncarnation(Job[IncarnationDrawn]):
    """Bump the stored incarnation counter."""


@message(211)
class Stopping(Message):
    """An operator asked us to stop (SIGINT, SIGTERM), or not to wait for a drain (SIGQUIT)."""

    at_once: bool = False


@message(236)
class Relogging(Message):
    """An operator changed how to log (SIGHUP, SIGUSR2); the supervisor itself does so already."""

    level: str  # a LogLevel
    file: str = ""


@message(237)
class Showing(Message):
    """An operator wants to read the state of every process in the log (SIGUSR1)."""


@message(238)
class SetLog(Job[Done]):
    """Log at this level, into this file anew unless it is empty.  NO_SPACE: the file cannot be had;
    then the old one is kept."""

    level: str  # a LogLevel
    file: str = ""


@message(230)
class Announce(Job[Done]):
    """Tell the service manager, if there is one (sd_notify): lines of NAME=value."""

    lines: str


@message(331)
class Listening(Result):
    """HTTP is answered."""

    address: str  # host:port
    port: int


@message(231)
class Listen(Job[Listening | Done]):
    """Answer HTTP at this host:port.  BUSY: it cannot be had."""

    address: str


@message(232)
class Publish(Job[Done]):
    """Answer HTTP from this report from now on."""

    report: Report


@message(219)
class Unreachable(Message):
    """The connection of this client on TCP is gone: what was sent to it was not."""

    address: Address


@message(312)
class ProofDrawn(Result):
    """PROOF_BYTES random bytes."""

    proof: bytes


@message(212)
class DrawProof(Job[ProofDrawn]):
    """Draw PROOF_BYTES random bytes."""


@message(213)
class MapEngine(Job[Done]):
    """Reach an engine's memory under the number `mapping`, once `proof` is read at `scratch`.
    COPY_FAILED: it cannot be reached, or the proof is another one."""

    mapping: int
    pid: int
    started_ticks: int
    bases: U64s
    layout: Layout
    scratch: int
    proof: bytes


@message(214)
class UnmapEngine(Job[Done]):
    """Copies of this mapping stop at their next chunk; its bounce file goes.  Of GPU memory it is
    done once none runs and all of it is closed."""

    mapping: int


@message(215)
class ReadBlocks(Job[Done]):
    """Copy the engine's block i to pool offset i; COPY_FAILED or EXPIRED if not all of it."""

    mapping: int
    blocks: U64s
    offsets: U64s
    deadline: int


@message(216)
class WriteBlocks(Job[Done | PagesDiffer]):
    """Copy pool offset i into the engine's block i; COPY_FAILED or EXPIRED if not all of it.  With
    `checksums`, of the first `summed_bytes` of each page, it is checked first."""

    mapping: int
    blocks: U64s
    offsets: U64s
    deadline: int
    checksums: U64s = ()
    summed_bytes: int = 0


@message(318)
class PagesSummed(Result):
    """Checksums of pages; never 0, which means that there is none."""

    checksums: U64s  # beside the offsets that were asked for


@message(218)
class SumPages(Job[PagesSummed | Done]):
    """The checksum of `payload_bytes` at each of these pool offsets."""

    offsets: U64s
    payload_bytes: int
