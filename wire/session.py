"""Session: an engine and the process that moves its bytes.

Every client of one engine (scheduler, ranks) dials the session that the front desk named.

    client → session   Attach    → Attached | Prove | Refused   a rank's memory and its layout
    client → session   Proven    → Attached | Refused    the bytes of Prove are where they belong
    client → session   Lookup    → Found                 longest prefix hit, held by a lease
    client → session   Load      → Pages                 staged: where the leased pages lie
    client → session   Copied    → Confirmed             staged: was the lease good all the while?
    client → session   Load      → Loaded                process_vm: they are in your blocks
    client → session   Save      → Saved                 exactly one, after any CopyBatch
    session → client   CopyBatch                         staged: copy these blocks to these slots
    session → client   BatchCopied                       process_vm: these blocks are copied
    client → session   Keep                              copied, and the blocks were still the key's
    client → session   Drop                              the engine takes its blocks back
    client → session   Skip                              this rank will not save that order
    client → session   Commit                            the engine stands by those orders
    client → session   Leave     → Left                  nothing of ours is touched any more
    client → session   Borrow    → Lent                  rows of your hazards, to look up by myself
    client → session   Took                              a lease that I found is yours now
    client → session   Looked                            what I have looked up by myself so far
    client → session   Ping      → Pong, Release

Joining.  One client of an engine *opens* its generation at the front desk (OpenSession.opens, in
vLLM the scheduler's); the ranks join it: they are told SessionAt once it is open and wait, or are
refused, until then.  So the order in which they start does not matter, and a rank that outlived its
scheduler can never open a session: of two generations of one engine id the one whose opener lives
is served, and the late ranks of a superseded one are refused by the front desk while their old
session is dead.  The session stops as soon as the opener or any attached rank is proven dead.
Every rank attaches by itself; lookups and saves are answered NOT_ATTACHED until all `world` ranks
have.  Pages have the size of the largest rank's blocks.

Ways for the bytes, chosen per direction at Attach; memory of a GPU has its own, see gpu.py:

Staged.  The client never writes the pool.  On a load its own thread copies from the pool, mapped
read-only, into its blocks and then asks Copied: only a Confirmed(OK) makes it a success, because a
reader that cannot be killed proves its lease after reading.  On a save the session claims the keys,
and for those that are new says CopyBatch with slots of its bounce file; the client copies and says
Keep, or Drop at any time until then.  After Keep the engine may reuse its blocks; the session
copies from the bounce file into granted pages and seals them with the index.

process_vm.  The session reads and writes the engine's memory.  Attach names the addresses of its
regions and of 32 scratch bytes; the answer Prove brings 32 bytes drawn for this attach, the client
writes them there and asks Proven, and the session reads them back: a wrong pid, pid namespace or
missing right is found before a byte is moved, and the rank is served staged instead (or refused,
if it will have nothing else).  Before each bounded chunk the session looks at the pidfd of the
engine's process and at the deadline; a short count is a failure.  On a save the session copies
first and says BatchCopied; the client says Keep if the blocks were the keys' until then, else Drop:
no page is sealed without Keep.  An only rank's blocks it copies before the index has said what is
new of them, so a BatchCopied may name blocks that turn out to be known; nothing is sealed before
that answer.  On a load the session is the writer of the engine's blocks, so the client may call the
blocks failed only when the session has said so or is proven dead: at the deadline the session stops
by itself and says Loaded(EXPIRED); if that does not come within the grace, the client kills the
session and waits until none of its threads can run.  Leave ends the running copies at their next
chunk; Left comes when none runs, and only then may the engine free its regions.  Remote (TCP)
clients and those who cannot see the session's pid are served staged, or refused if they will have
nothing but process_vm.

Which file.  A path is looked up where the client lives, and there another file may have it: another
/dev/shm, or one that came when ours was removed.  So Attached says device and inode of pool and
bounce file, and a client maps these or refuses with the path in its line.

TCP and other pid namespaces.  The pid of a remote or foreign client means nothing here, so its
death is seen by its connection: the session says Pong to each once per beat, and one that cannot be
reached has left.  Such an engine of which no client has come 10 s after Serve is not waited for:
the session stops.  A foreign client (OpenSession.pid_namespace is not ours) is told no pid of its
session either: one of the same number may be somebody else's where it lives.  All clients of an
engine are foreign with it; a foreign one of a local engine is refused at the front desk.

Lookups without a message.  What is in memory a client finds by itself, in the index's table and
ledger, mapped read-only, exactly as the session does (wire/index.py): it writes hazards, and then
compares the records.  Its hazards lie in the session's hazard file, in a section of its own, which
the index has noted with the rest before the session lends it.  So they live as long as the session:
a client that dies takes its session with it, and a session that is proven dead (Gone) has no
hazards any more, and no copies that would need them.

    Borrow   asked when a lookup could have been answered so, and again now and then until it is
             Lent(OK).  One client at a time has the section, of those whose process the session
             watches; everybody else, and whoever cannot map the files, looks up by message, and
             `status` says why
    section  `allowed` (core/pool/hazards.py) is a word of the session's: bytes of the pool that
             the section may keep; 0 while a rank is missing, while hazards are not trusted, or
             when another client has the section.  A lookup that needs more goes by message, and
             so does one whose run may go on in a tier, as the filter beside the table says
    lease    its number is the client's, from Lent.first on, and nobody else knows of it.  Released
             by the client that found it, it ends with one store, and no message
    staged   an engine of one shard whose loads are staged copies from such a lease by itself, with
             no message: its hazards are the client's until the copy is over, and the client
             compares pages and stamps with the ledger afterwards
    Took     before anybody else loads from it: the pages, their stamps and the *rows* of its
             hazards.  The rows are the session's from then on: the client never writes them again
             before it has seen a 0 there.  So the hazards of a lease never have a gap and never an
             owner too many: it ends in the session like any other, when every rank has loaded from
             it or it was released, and no copy of it runs.  Lease, idle rule, pins, Touched: as
             for leases that the session has found.  A Took that is no lease (another namespace,
             pages that are not sealed so) ends at once, and its rows are cleared
    Load     may overtake the Took, since ranks have their own connections: one that names a number
             that was lent waits for it, TOOK_NS at most
    Looked   sent now and then: lookups, keys and hits for the metrics, and what was used under
             hazards that the client has cleared itself, for Touched; before a Save too, if there is
             such a use, as Touched is before a Seal: it must not look younger than what is saved

A lease that the client has not passed on within SHARE_NS is passed on when it next looks at its
sockets.  Before and after each copy the session compares the pages with the ledger, so a hazard
that failed costs a load and never gives other bytes.

Ranks.  A block has one page per shard, which is a rank's part of it, or that of `replicas` ranks in
a row (Attach) that hold the same.  A lease is consumed when every rank has loaded from it (or it is
released, and no copy runs).  The ranks' saves of one scheduler order carry its number; a block is
sealed when every shard of it has a Keep under the same order, so that shards of two computations
never meet.  Replicas save a stripe each, and answer for no other (actors/session/ranks.py).  An
order that a rank skips or does not join within ORDER_NS is given up for all ranks, and so is what a
rank drops of it, but for blocks that were sealed before; who comes later is told DROPPED.

Commit.  An engine may find out after a step that what it computed in it is void (another cache's
load had failed, say), when the ranks have long copied the blocks and said Keep.  So its saves wait
(Save.commits): they are copied at once, but sealed only when a client of the engine, in vLLM the
scheduler's, has named their order in Commit.  It may come before the Save: ranks and scheduler have
their own connections.  Nothing is published by silence: an order that is not committed within
ORDER_NS is given up, and one that turned out void is ended at once by Skip.

Several chains.  Requests that decode fill a block each in the same step: a Save may bring them all,
chain by chain, each under an order of its own.  Copies, Keep and Saved are of the whole; Commit and
Skip name a chain, so who saves one of them in vain costs the others nothing.  A rank whose blocks
of one chain are gone says Skip before it says Keep.  All ranks say the same chains in one Save.  A
session that understands that says so (Attached.chains): another would take them for one order.

Who dies when:
* session before Found: the question expires at the client, a miss.
* session after Found, before Confirmed: its leases end with it; the client reports the blocks as
  failed once its own copy has stopped (it is the only writer of its memory).
* session while it writes the engine's blocks: its pidfd fires at the client, or none of its threads
  can run any more, and only then are the blocks reported failed; a stopped session is killed by the
  watchdog or by the client.
* session between CopyBatch and Saved: nothing was published; the client reports the save when its
  deadline passes or the process is proven dead.  Its blocks are free at once: there is no Keep.
* session after Seal was sent: the index publishes it or not; both are right.
* client at any point: the session's pidfd on it fires; leases are released, claims ended, slots and
  pages of open saves come back.  A half-copied slot has no Keep and so is never sealed.
* client between Prove and Proven: the rank is not attached; its next Attach starts over.
* one rank of several: as the client; the whole session ends, and with it the other ranks' links.
* client stopped: nothing of the session's memory depends on it but its slots and leases; a lease
  nobody used for LEASE_IDLE_NS is released unless a copy of it runs, an order it does not save is
  given up after ORDER_NS.
* client with hazards of its own: its session stops, and the index forgets the file at Gone.
* session while a client has such hazards: the client is told by its pidfd, at the latest when it
  looks up; until it knows, what it finds is of a session that is dead, and no load will take it.
* session stopped: lookups go on; leases that are to be loaded wait for it as Loads do.
* index: lookups go on; the next one evicts nothing before the session has stated all sections.
* Drop crossing Keep: what came first holds; a Drop after Keep is harmless, the bytes were out.
"""

import enum

from .gpu import NO_GPU, GpuMemory
from .identities import NO_LEASE, NO_NAMESPACE, Key, LeaseId, Namespace, PageId, Stamp
from .layout import Layout
from .message import Message, message
from .status import Status
from .units import Bytes, Nanoseconds
from .values import Keys, Numbers, U64s

LEASE_IDLE_NS: Nanoseconds = 120_000_000_000
"""A lease that nobody loads for so long is released: a request waits in a queue for less."""

ORDER_NS: Nanoseconds = 5_000_000_000
"""An order that not every rank saves, or nobody commits, within this time is given up: ranks
compute in step, and the engine knows at the step's end whether it stands."""

TOOK_NS: Nanoseconds = 1_000_000_000
"""A Load waits so long for the Took that it has overtaken: that was sent before, by a thread that
may lack a core."""

SHARE_NS: Nanoseconds = 1_000_000_000
"""A lease that a client has found and neither loaded nor released is known to the session after so
long: there the idle rule holds, and `status` shows it."""

PROOF_BYTES: Bytes = 32
"""Bytes of Prove: nobody holds them by chance."""


class Way(enum.IntEnum):
    """How a rank's bytes move."""

    STAGED = 0
    PROCESS_VM = 1
    AUTO = 2  # in Attach: whichever is faster of those that work
    CUDA_IPC = 3  # of GPU memory, and never wished: who names such memory gets it or STAGED


@message(30)
class Attach(Message):
    """A rank's memory.  `region_bytes[i]` is the size of region i of the layout."""

    pid: int
    started_ticks: int  # start time in clock ticks since boot: with the pid it names one process
    rank: int
    world: int
    layout: Layout
    region_bytes: U64s
    way: Way = Way.STAGED  # what the client wishes
    bases: U64s = ()  # process_vm: address of each region
    scratch: int = 0  # process_vm: address of PROOF_BYTES that the client keeps for Prove
    replicas: int = 1  # so many consecutive ranks, this one among them, hold the same bytes
    gpu: GpuMemory = NO_GPU  # cuda_ipc: where the regions are


@message(31)
class Attached(Message):
    """The rank is served.  Sizes in bytes; the bounce file has `slots` slots of `page_size`.

    `namespace` is empty as long as other ranks are missing; without staged saves there is no
    bounce file (an empty path).
    """

    pool_path: str
    pool_bytes: int
    bounce_path: str
    slots: int
    page_size: int
    namespace: Namespace
    loads: Way = Way.STAGED
    saves: Way = Way.STAGED
    note: str = ""  # why it is not the way that was wished
    pool_file: U64s = ()  # device and inode of the file at `pool_path`
    bounce_file: U64s = ()  # and at `bounce_path`
    chains: bool = False  # a Save may bring several


@message(32)
class Lookup(Message):
    """How many of these leading blocks can be had?"""

    keys: Keys


@message(33)
class Found(Message):
    """So many leading blocks are held by this lease (0 blocks: no lease)."""

    status: Status
    lease: LeaseId
    blocks: int
    disk: U64s = ()  # places in the run of the blocks that were read from SSD for this lookup
    peers: U64s = ()  # and of those that came from other hosts


@message(34)
class Load(Message):
    """A rank takes `count` blocks of a lease, from block `first` on."""

    lease: LeaseId
    rank: int
    first: int
    count: int
    blocks: U64s = ()  # process_vm: the engine's blocks to write


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

    save: int  # the client's number for it, quoted in CopyBatch, Keep and Drop
    rank: int
    keys: Keys
    parent: Key
    order: int = 0  # the same at every rank of an engine with several; 0: there is but one
    blocks: U64s = ()  # process_vm: the engine's block of each key
    commits: bool = False  # sealed only when Commit has named its order, which then is not 0
    starts: U64s = ()  # places of the keys at which further chains begin, ascending
    parents: Keys = ()  # of each of those the key before it; zeros: none
    orders: U64s = ()  # and its order; with these, none is 0


@message(39)
class CopyBatch(Message):
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
    """The end of a save: so many blocks newly published, so many known (or left to a replica)."""

    status: Status
    saved: int
    known: int
    lost: U64s = ()  # of several chains: places of the keys that are neither


@message(43)
class Release(Message):
    """The lease is not needed any more.  Unknown numbers are ignored."""

    lease: LeaseId


@message(44)
class Leave(Message):
    """This client goes, on purpose; Left says that nothing of its memory is touched any more."""


@message(45)
class Ping(Message):
    """Are you there?"""


@message(46)
class Pong(Message):
    """I am."""


@message(47)
class Prove(Message):
    """Write these PROOF_BYTES to your scratch address, then say Proven."""

    proof: bytes


@message(48)
class Proven(Message):
    """They are there."""


@message(49)
class Loaded(Message):
    """The end of a load by process_vm; nothing writes these blocks any more."""

    status: Status


@message(50)
class BatchCopied(Message):
    """The blocks at these positions of the save's keys are copied: Keep or Drop?"""

    save: int
    batch: int
    positions: U64s


@message(51)
class Skip(Message):
    """This order will not be saved, by this rank or by any: nobody should wait for it."""

    order: int


@message(52)
class Left(Message):
    """The client's memory is not touched any more, and nothing of it is held."""


@message(53)
class Commit(Message):
    """The steps that computed these orders stand: their blocks may be sealed."""

    orders: U64s


@message(54)
class Borrow(Message):
    """Lend me a section of your hazards."""

    note: str = ""  # why the last one was of no use to me


@message(55)
class Lent(Message):
    """OK: it is yours until you leave.  Else why not; ask again later."""

    status: Status
    note: str = ""
    ledger_path: str = ""
    ledger_file: U64s = ()  # its device and inode
    pool_bytes: int = 0
    extent_bytes: int = 0
    hazard_path: str = ""
    hazard_file: U64s = ()  # its device and inode
    section: int = 0  # of the hazard file
    namespace: Namespace = NO_NAMESPACE
    world: int = 0  # shards: pages of a block
    block_bytes: int = 0  # of the pool, that a block takes
    page_size: int = 0
    verify: bool = False  # what is loaded has to be compared, so the session does that
    first: LeaseId = NO_LEASE  # number of the first lease


@message(56)
class Took(Message):
    """This lease is yours: blocks of `world` pages each, block-major, a row per block."""

    lease: LeaseId
    namespace: Namespace
    pages: Numbers[PageId]
    stamps: Numbers[Stamp]  # beside `pages`
    rows: U64s


@message(57)
class Looked(Message):
    """Since the last one: so many lookups, asking for so many blocks, finding so many."""

    lookups: int
    asked: int
    hit: int
    pages: Numbers[PageId] = ()  # of blocks used, and not any more: as those of Touched
