"""Session: an engine and the process that moves its bytes.

Every client of one engine (scheduler, workers) dials the session that the front desk named.

    client → session   Attach    → Attached | Refused     a rank's memory and its layout
    client → session   Lookup    → Found                  longest prefix hit, held by a lease
    client → session   Load      → Pages                  staged: where the leased pages lie
    client → session   Copied    → Confirmed              staged: was the lease good all the while?
    client → session   Save      → Saved                  exactly one, after any number of Take
    session → client   Take                               staged: copy these blocks to these slots
    client → session   Keep                               they are copied, and were still the key's
    client → session   Drop                               the engine takes its blocks back
    client → session   Release, Leave
    client → session   Ping      → Pong

Staged copies.  The client never writes the pool.  On a load its own thread copies from the pool,
mapped read-only, into its blocks and then asks Copied: only a Confirmed(OK) makes it a success,
because a reader that cannot be killed proves its lease after reading.  On a save the session claims
the keys, and for those that are new says Take with slots of its bounce file; the client copies and
says Keep, or Drop at any time until then.  After Keep the engine may reuse its blocks; the session
copies from the bounce file into granted pages and seals them with the index.

Who dies when:
* session before Found: the question expires at the client, a miss.
* session after Found, before Confirmed: its leases end with it; the client reports the blocks as
  failed once its own copy has stopped (it is the only writer of its memory).
* session between Take and Saved: the save is lost, nothing was published; the client reports it
  when its deadline passes or the process is proven dead.  The engine's blocks are free at once,
  since only the client's own thread reads them.
* session after Seal was sent: the index publishes it or not; both are right.
* client at any point: the session's pidfd on it fires; leases are released, claims ended, slots and
  pages of open saves come back.  A half-copied slot has no Keep and so is never sealed.
* client stopped: nothing of the session's memory depends on it but its slots and leases; a lease
  nobody used for LEASE_IDLE_NS is released unless a copy of it runs.
* Drop crossing Keep: the session has the word that came first; a Drop after Keep is too late and
  harmless, for Keep was said only when the bytes were already out.
"""

from .layout import Layout
from .message import Message, message
from .status import Status
from .values import Keys, U64s

LEASE_IDLE_NS = 120_000_000_000
"""A lease that nobody loads for so long is released: a request waits in a queue for less."""


@message(30)
class Attach(Message):
    """A rank's memory.  `region_bytes[i]` is the size of region i of the layout."""

    pid: int
    started: int  # start time in clock ticks since boot: with the pid it names one process
    rank: int
    world: int
    layout: Layout
    region_bytes: U64s


@message(31)
class Attached(Message):
    """The rank is served.  Sizes in bytes; the bounce file has `slots` slots of `page_size`."""

    pool_path: str
    pool_bytes: int
    bounce_path: str
    slots: int
    page_size: int
    namespace: bytes


@message(32)
class Lookup(Message):
    """How many of these leading blocks can be had?"""

    keys: Keys


@message(33)
class Found(Message):
    """So many leading blocks are held by this lease (0 blocks: no lease)."""

    status: Status
    lease: int
    blocks: int


@message(34)
class Load(Message):
    """A rank takes `count` blocks of a lease, from block `first` on."""

    lease: int
    rank: int
    first: int
    count: int


@message(35)
class Pages(Message):
    """Copy from these pool offsets, then ask Copied about `copy`."""

    status: Status
    copy: int
    offsets: U64s


@message(36)
class Copied(Message):
    """The copy is over; was the lease good all the while?  `ok` False: it was given up."""

    copy: int
    ok: bool


@message(37)
class Confirmed(Message):
    """OK: the bytes are the key's."""

    status: Status


@message(38)
class Save(Message):
    """These blocks of a rank are full.  `parent` is the key before the first (empty: none)."""

    save: int  # the client's number for it, quoted in Take, Keep and Drop
    rank: int
    keys: Keys
    parent: bytes


@message(39)
class Take(Message):
    """Copy the blocks at these positions of the save's keys into these bounce slots."""

    save: int
    batch: int
    positions: U64s
    slots: U64s


@message(40)
class Keep(Message):
    """The batch is copied, and the blocks were the keys' until the copy ended."""

    save: int
    batch: int


@message(41)
class Drop(Message):
    """The engine takes its blocks back: whatever has no Keep yet is not saved."""

    save: int


@message(42)
class Saved(Message):
    """The end of a save: so many blocks newly published, so many already known."""

    status: Status
    saved: int
    known: int


@message(43)
class Release(Message):
    """The lease is not needed any more.  Unknown numbers are ignored."""

    lease: int


@message(44)
class Leave(Message):
    """This client goes, on purpose."""


@message(45)
class Ping(Message):
    """Are you there?"""


@message(46)
class Pong(Message):
    """I am."""
