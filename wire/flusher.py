"""Flusher: the SSD tier below the pool.  It dials the index and the allocator, as a session does.

    flusher → index   Tier                   what the tier is and can take; once its leases are
                                             stated, and again whenever that changes
    flusher → index   Manifest  → Noted      these blocks are in the log; one at a time
    flusher → index   Forget                 these are not in it any more
    index → flusher   Flush                  write these blocks, under the lease of this number
    flusher → index   Flushed                the end of that lease; these blocks are in the log
    index → flusher   Fetch     → Fetched    read these blocks; answered when the last one has ended
    flusher → index   Seal      → Sealed     (index.py) some of them are in place: publish
    flusher → index   Held, LeasesHeld       (index.py) the leases that it holds
    flusher → index   Corrupt                (index.py) a page is not what was sealed
    flusher → index   WriteAll  → Written    we drain: send what is not in the log yet
    flusher → allocator  Reserve → Reserved, Return, PagesHeld    (allocator.py) pages to read into

Who knows what.  The flusher owns the log, and alone knows where in it a block is.  The index knows
*that* a block is in it (Manifest, Flushed, Forget), so it decides by itself what a lookup may
deliver and which blocks are in memory only.  Its knowledge may be old by a message in either
direction: a Fetch of what is gone ends in a miss, a Flush of what is there is not written again.

Writing.  A Flush names blocks of one namespace under a lease that the index has granted to the
flusher, so their pages stay what they are until Flushed ends it.  Flushed names the keys that are
in the log, synced; the others are in memory only, as before.  At most Tier.depth Flushes and
Tier.window_bytes are open at a time: that is the queue, and what it holds cannot be
evicted.  A block that is about to be evicted and is not in the log yet goes to the head of the
queue if there is room, and is evicted after it has been written; without room it is evicted at
once, and counted.  While a session loads the flusher writes for a part of the time only
(Flush.share_percent): a small one, or a larger one while blocks are evicted that are not in the
log yet.

Reading.  A Find whose run of keys is partly in the log only waits at the index.  The blocks of the
run that are in memory are held meanwhile; of the others those that nobody has asked for yet are
named in a Fetch, whose number the Seals quote as their claim.  The flusher reserves pages, reads
into them, compares checksums, and Seals as a session does; so pages that it fills are granted to
*it*, and come back by its word or its proven death.  When the last block has been sealed or has
failed, or when the deadline of the Find is near, the index answers with the longest run that is
in memory.  A block that comes later is simply there.  Of one engine at most Tier.prefetch blocks
are awaited at a time: the run ends before those beyond; and the flusher serves engines in turn.

Who dies when
* flusher before Flushed: Gone ends its leases; the blocks are as if they had never been sent.
* flusher between the write and Flushed: the next flusher finds the blocks in the log and names them
  in its Manifest.
* flusher during a Fetch: everybody who waits is answered with what is in memory; its pages come
  back with Fenced (allocator.py).  A read in the kernel ends before the process is dead.
* flusher stopped: Finds are answered at their deadlines; the watchdog kills it.
* index with Flushes open: the flusher restates their leases (Held, LeasesHeld) to the next index,
  says Tier and its whole Manifest, and Flushed of what it has written meanwhile.
* index with Fetches open: nobody waits for them any more.  Their Seals are refused by the next
  index (STALE_CLAIM), and the pages returned.
* allocator: reads go on with the pages that are reserved; those that wait for some fail.
* session that waits in a Find: its Gone ends the wait; what is being read is read to its end.
* the disk: reads fail, a miss; writes fail, and Tier says writable = False until one succeeds.
* lost messages: a lost Flush is sent again and a lost Flushed ends with the next LeasesHeld; a lost
  Fetch, Fetched or Seal expires (FETCH_NS); a lost Forget is made good by the Fetch that finds
  nothing.  A Flush that was had already, by its number, is ignored.

What is in the log under a key never changes: keys say everything about the bytes (values.py).  The
log is described in core/segments/codec.py; which blocks it keeps when it is full in
core/segments/catalog.py.
"""

from fractions import Fraction

from .identities import ClaimId, Incarnation, LeaseId, Namespace, PageId
from .message import Message, message
from .status import Status
from .units import Count, Nanoseconds
from .values import Keys, Numbers, U64s

FETCH_NS: Nanoseconds = 5_000_000_000
"""Patience of the index with a Fetch.  Finds wait less long: what comes later is there then."""

MANIFEST_KEYS: Count = 4096
"""Keys of one Manifest: the index takes a few milliseconds for it, and answers others between."""


@message(100)
class Tier(Message):
    """What the SSD tier is now.  `writable` False: no Flush, please; a Fetch may succeed."""

    writable: bool
    depth: int  # Flushes open at a time
    window_bytes: int  # bytes of blocks in them
    batch_blocks: int  # blocks of one Flush
    batch_bytes: int  # bytes of pages of one Flush; a single larger block may exceed it
    block_bytes: int  # bytes of pages of the largest block that can be written
    prefetch: int  # blocks that one engine may await at a time
    reused_only: bool = False  # write only what was asked for or saved again


@message(101)
class Manifest(Message):
    """These blocks are in the log: `shards` pages of `payload_bytes` each.  `last`: that was all,
    from now on every other block is not."""

    namespace: Namespace
    payload_bytes: int
    shards: int
    keys: Keys
    last: bool = False


@message(102)
class Noted(Message):
    """The next Manifest, please."""


@message(103)
class Forget(Message):
    """These blocks are not in the log any more."""

    namespace: Namespace
    keys: Keys


@message(104)
class Flush(Message):
    """Lease `number`: write these blocks.  `pages`, `sums`: `shards` per block, block-major."""

    number: LeaseId
    namespace: Namespace
    page_size: int
    payload_bytes: int
    shards: int
    keys: Keys
    pages: Numbers[PageId]
    depths: U64s
    sums: U64s = ()  # what the pages were sealed with; 0 or nothing: unknown
    share_percent: int = 100  # percent of the time in which to write

    @property
    def share(self) -> Fraction:
        """Of the time: the part in which to write.

        There are no fractions on the wire (message.py), so the message says it in percent; whoever
        writes goes by this.
        """
        return Fraction(max(1, self.share_percent), 100)


@message(105)
class Flushed(Message):
    """The end of lease `number`: these keys are in the log."""

    number: LeaseId
    namespace: Namespace
    payload_bytes: int
    shards: int
    keys: Keys


@message(106)
class Fetch(Message):
    """Read these blocks.  `parents[i]` is the key before keys[i] in its chain (zeros: none)."""

    number: ClaimId
    namespace: Namespace
    keys: Keys
    parents: Keys
    engine: Incarnation  # whose they are: those of one are read in order, those of several in turn
    hosts: U64s = ()  # to a peer process: which hosts may have each, a bit for each slot (peer.py)


@message(107)
class Fetched(Message):
    """All have ended; these positions are not to be had.  What was not found is not in the log."""

    status: Status
    positions: U64s
    absent: U64s = ()  # those of them that are not in the log


@message(108)
class WriteAll(Message):
    """Send every block that is not in the log yet."""


@message(109)
class Written(Message):
    """There is none left, or the time was over: so many are not in the log."""

    left: int
