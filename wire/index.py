"""Index: who has which block, who may use it, who may publish it.  A session dials it.

    session → index   Find      → Held       longest resident prefix, under a lease
    session → index   Release                the lease of this number is not needed any more
    session → index   Claim     → Claimed    which of these keys are new, and mine to save
    session → index   EndClaim               I save nothing more under this claim
    session → index   Seal      → Sealed     every shard of these blocks is in place: publish
    session → index   LeasesHeld             statement: up to these numbers I hold exactly these
    session → index   Corrupt                these pages are not what was sealed
    index → session   Pinned                 after a LeasesHeld: what the engine keeps from eviction
    session → index   HazardFile → HazardsNoted   my hazards are here: read them before you free
    session → index   Touched                these were used under hazards, which have ended

Grants.  Leases and claims are numbered per holder by the index, from one up.  With each beat a
session states what it holds: what is omitted up to the stated number is dropped, a lease granted
later is sent again (Held, told).  A session that gets a lease it no longer waits for hands it back
with Release.  So a lost grant and a lost release both mend themselves.

A claim owns no memory and may expire by time (CLAIM_NS): a second engine may then save the block.
A Seal under a claim that ended or expired is refused (STALE_CLAIM) block by block.

Who copies a block in less time than a Claim takes does not claim it: the session of an engine with
one rank, whose memory it reads itself, looks into the table, copies what it does not see there, and
seals it under no claim (0).  Then, as after an expired claim, two may have copied one block: the
first Seal publishes it, and of the other's blocks the index says how many are `known`.

Pins.  What is leased cannot be evicted.  One session leases no more than Welcome.max_pinned_bytes,
each block counted once, and all of them together no more than a share of the pool
(core/blocks/pins.py): beyond that a Find ends early, as if the rest of its run were not there, so
that everybody's saves find room.  No lease ends because of that (it is its holder's); the session
ends those that the engine does not load from.  When something of it has changed, a LeasesHeld is
followed by Pinned, and the session, which knows the engine's name, says who it is.

Seal, the one place where bytes become visible: the index checks that sender and claim live, writes
the record bodies, then each state word, then answers.  Until an index has answered, the session
neither uses nor returns the pages.  A block that is already sealed with the same stamp is accepted
again; one that is sealed with another is refused and the session returns its pages.  Several Seals
of one claim may be under way; no block is named by two of them.

A new index scans the ledger; what is whole there is resident, a block that lacks a shard is voided.
Questions wait until it has.  To a new index a session first says all that it holds:

    session → index   HazardFile             my hazards are here
    session → index   Held                   restated: the lease of this number holds these pages
    session → index   Claiming               the claim of this number covers these keys
    session → index   LeasesHeld             that was all; from now on with each beat
    index → session   LeasesLost             these leases name pages that are not resident

and then repeats every Seal that was not answered: if it was carried out, the record has the same
stamp and it is accepted again.  Numbers of leases and claims go on from those that the session
stated; so nothing is leased to one that Members names before it has stated, lest a number mean two
things: a Find gets no block.  Nothing is evicted until every session that Members names has said a
LeasesHeld of which every lease is known (and, if it says so, the hazards too), or is proven dead; a
session that is told LeasesLost fails what it copies under that lease and states it no longer once
no copy runs.

Hazards.  A session finds a resident block by itself, in the table that the index keeps behind the
ledger's records (core/pool/table.py), and keeps it by itself: it writes page and stamp into its
hazard file (core/pool/hazards.py), and then compares the ledger's record.  So a lookup asks nobody,
and hits go on while there is no index, which alone could evict.

    to evict     the words of the victims say that they leave, hence are no hits; one memory barrier
                 on all processors for all of them; every noted hazard file is read; what a hazard
                 names under its stamp gets its word back and is the youngest, the rest is void and
                 free.  A hazard names the first page of a block and keeps all of its pages.
    HazardFile   asked of each index, repeated with each beat until one has noted it.  A session
                 trusts its hazards from the first HazardsNoted(OK) on, of whichever index it knew
                 to live; not OK: the file cannot be mapped or the barrier is refused, the session
                 looks up by Find alone, and `note` says why
    LeasesHeld   says with `hazards` that hazards of the session may stand.  Whoever says so to an
                 index that has not noted its file is not heard out: nothing is evicted before it
                 has been, or says that none stands any more, or is proven dead.  So a HazardFile
                 that was lost costs a beat, and no block
    Touched      sent in batches, after the fact.  It ages the blocks as the end of a lease does;
                 one that is lost makes a block older than it is.  Pages that mean nothing any more
                 are ignored.  What the session has answered by itself it counts itself

A hazard ends by the store of the session that wrote it, or with that session's proven death, never
by time; the index drops the file at Gone, and a later life of that name has another file.  The
session killed after it wrote a hazard: the hazard is honoured until Gone.  The index killed while
blocks leave: their records still say what they were, so the next index seals them again before it
answers anybody.  A session killed while its HazardFile is under way: Gone comes behind it, or
before it, and then it is not heard.

A file has sections, all of which are read: the session's own, and one that it lends to a client of
its engine, which writes hazards by itself (session.py).  Both end with the session.

The flusher (flusher.py) holds leases and seals blocks as a session does; the claim that its Seals
quote is the number of the Fetch that they answer.

Integrity.  With `verify` (Welcome) a session computes a checksum for each page that it seals, the
index keeps it in the ledger and gives it out with Held, and the session compares before the bytes
leave the pool.  A page that differs is Corrupt: its block is no hit from then on, and its pages are
used for nothing as long as the pool lives.

Who dies when: a session's death reaches the index as Gone from the supervisor; frames of the dead
that are still queued are dropped by their incarnation; its claims, leases and hazards end, and
Fenced goes to the allocator after the last ledger write for it.  The index's death ends no session:
lookups that need it miss and saves are refused until there is a new one; lookups under hazards and
loads go on, since nobody else can evict.
"""

from .identities import ClaimId, LeaseId, Namespace, PageId, Stamp
from .message import Message, message
from .status import Status
from .units import Nanoseconds
from .values import Keys, Numbers, U64s

CLAIM_NS: Nanoseconds = 30_000_000_000
"""Life of a claim: several times the slowest save we have seen."""


@message(60)
class Find(Message):
    """The longest run of leading keys that is resident."""

    namespace: Namespace
    keys: Keys
    near: bool = False  # do not have other hosts asked: one of them is asking


@message(61)
class Held(Message):
    """Lease `number` holds these blocks: `shards` pages each, block-major.  0 blocks: no lease.

    So says whoever knows: the index to the holder, as its answer to a Find, or again when that may
    be lost; the holder to a new index, which has not granted it, by number, shards and pages alone.
    """

    number: LeaseId
    shards: int
    pages: Numbers[PageId]
    checksums: U64s = ()  # with `verify`: one per page, 0 where it was never computed
    disk: U64s = ()  # places in the run of the blocks that were read from SSD for this lookup
    peers: U64s = ()  # and of those that came from other hosts


@message(62)
class Release(Message):
    """Give back a lease; unknown numbers are ignored."""

    number: LeaseId


@message(63)
class Claim(Message):
    """I would save these; which are new?"""

    namespace: Namespace
    keys: Keys


@message(64)
class Claimed(Message):
    """Positions of the keys that are new and claimed; none: nothing to save, no claim (0)."""

    number: ClaimId
    positions: U64s


@message(65)
class EndClaim(Message):
    """What is still claimed under this number is free for others."""

    number: ClaimId


@message(66)
class Seal(Message):
    """Publish: key i has pages[i*shards : (i+1)*shards], granted under these stamps.

    `parents[i]` is the key before keys[i] in its chain, all zero bytes for a first block.
    """

    claim: ClaimId
    namespace: Namespace
    page_size: int
    payload_bytes: int
    shards: int
    keys: Keys
    parents: Keys
    pages: Numbers[PageId]
    stamps: Numbers[Stamp]
    checksums: U64s = ()  # with `verify`: one per page
    depths: U64s = ()  # position of each block in its chain, or from a session in one order


@message(67)
class Sealed(Message):
    """Positions of the keys that are published now; the pages of the others go back."""

    status: Status
    positions: U64s
    known: int = 0  # of the others so many are here under other pages


@message(68)
class LeasesHeld(Message):
    """Up to these numbers I hold exactly these leases and claims."""

    lease_upto: LeaseId
    leases: Numbers[LeaseId]
    claim_upto: ClaimId
    claims: Numbers[ClaimId]
    hazards: bool = False  # of mine may stand


@message(69)
class Claiming(Message):
    """To a new index: under this claim I save these keys."""

    number: ClaimId
    namespace: Namespace
    keys: Keys


@message(70)
class LeasesLost(Message):
    """You state leases of these numbers, and I cannot honour them."""

    numbers: Numbers[LeaseId]


@message(71)
class Corrupt(Message):
    """The bytes of these pages are not those that were sealed."""

    pages: Numbers[PageId]


@message(72)
class Pinned(Message):
    """Your leases keep so many bytes from eviction."""

    bytes: int
    most: int  # they may
    cut: int  # blocks so far that were there and were not leased, since that was too much


@message(73)
class HazardFile(Message):
    """My hazards are in this file, which says how many there may be."""

    path: str
    file: U64s  # its device and inode


@message(74)
class HazardsNoted(Message):
    """OK: they are read before anything is freed, as long as you live.  Else: why not."""

    status: Status
    note: str = ""


@message(75)
class Touched(Message):
    """Blocks with these first pages were used under hazards, and are not any more."""

    pages: Numbers[PageId]  # the latest use first, each in chain order
