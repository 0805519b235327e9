"""Peers: what hosts say to each other, so that one reads blocks from another's pool.

Each host has one peer process.  It dials the places that it was told (`--peers`), and listens for
others (`--peer-listen`); both over TCP, with CURVE keys of the hosts.  What one asks, it asks over
the link that it has dialled, and is answered on it; so two hosts that each fetch from the other
have two links.  Blocks move beside these links, by a data stream or by RDMA READ.

    peer → place   Meet                  who is there?  every PING_NS, until somebody says
    peer → peer    Met                   this life of this host
    peer → peer    Follow                say what you have: all of it, then what changes
    peer → peer    Have                  a numbered part of that
    peer → peer    Ping → Pong           every PING_NS: I am here, and this I still read of yours
    peer → peer    Enter → Entered       may I connect a data link?
    peer → peer    Borrow → Lent         keep these blocks where they are: I am going to read them
    peer → peer    GiveBack → Returned   I have read them; were they lent all the time?

    index → peer   Holding               what blocks this host has, for those who follow
    peer → index   Around                what can be fetched now; first, and again with each beat
    peer → index   Elsewhere             what blocks another host has
    index → peer   Fetch → Fetched       (flusher.py) bring these blocks
    peer → index   Find → Held           (index.py) lend these blocks to a peer
    peer → index   Seal → Sealed, Held, LeasesHeld, Release, Corrupt    (index.py)
    peer → allocator  Reserve → Reserved, Return, PagesHeld             (allocator.py)

Who is who.  A peer process has a second name between hosts: REMOTE_PEER, and a number drawn at
random at its start instead of an incarnation, since no two hosts count alike.  A place is where
somebody may be; whoever answers Meet there is dialled once more, by that name.  One life is one
host that has just started: what is known of an earlier life at its place is dropped, and nothing
that it was lent is honoured.  Our own life at a place of our list is passed over, and so is a life
that we have met at another place.

Time.  Clocks of two hosts have nothing to do with each other: a question says how long its asker
will wait (budget_ns), and the deadline in its envelope is 0.

What others have.  Blocks are named by the fingerprints of namespace and key (core/pool/
fingerprints.py), which are the same on every host: eight bytes each.  Before a namespace's first
block comes its Cut, which says how its pages are cut; a namespace holds everything that changes the
meaning of bytes, so equal names mean equal bytes, and a Cut that differs from ours ends in a miss.
The index says Holding to its own peer process, all at first and then what changes; that process
keeps the set and says Have to each follower, numbered from 1 for each Follow: no more than
AHEAD parts beyond the one that the follower has acknowledged (Ping.seen).  A part is either news,
or all that there is from one fingerprint to another; so a new picture takes the place of an old one
piece by piece, with news in between, and nothing is forgotten meanwhile.  A follower that misses a
number, or hears of a newer one by Pong, says Follow again.  A fingerprint is a hint, and costs one
failed fetch if it is old.

Reading.  The index sends Fetch for blocks that somebody waits for, and says which hosts may have
each.  The peer process asks these hosts: Borrow.  The owner's peer process asks its own index with
Find, `near` so that it is not sent on to other hosts, holds the lease, and says Lent: where the
pages are.  The reader reserves pages of its own allocator, reads, compares the checksums of what
has arrived with those of what was sent, and gives back.  Returned(OK) says that the loan stood
until then, so that what was read are the blocks that were asked for; only after it the reader
seals, as the flusher does.  Fewer blocks may be lent than were asked; the rest is a miss, and the
first of it is forgotten of that host.

Whose memory.  The pages that are read are the index's of the owner, under a lease that the owner's
peer process holds; nobody but that process sends from them, so it may end a loan at any time: it
recalls it from the data link, and releases the lease when no byte of those pages is being read any
more.  It does so when the reader gives back, leaves it out of a Ping, is silent for AWAY_NS, or
does not name it in a Ping within LOAN_NS.  The pages that are filled are the reader's, granted by
its allocator; they come back by its word or its proven death.

Trust.  Whoever has no key that was let in is not heard.  Whoever has one is a peer, not a friend:
frames are decoded and limited like any other's, a loan names only pages that were leased for it, a
reader gets no more than LOANS_MAX loans and LOAN_BYTES bytes of pages, what it fetches it compares.
What a peer says that it has is believed as far as that a fetch is tried.  Bytes on the data streams
are in clear.

Who dies when
* owner's peer process before Lent: Borrow expires, a miss.
* owner's peer process while we read: the stream breaks, those pieces fail, a miss; what it had been
  lent comes back to its index by Gone.
* owner's index: it is followed by one to which the leases are restated; meanwhile nothing is lent.
* reader's peer process: the owner hears no Ping, recalls, releases; the pages that it was filling
  come back by Fenced.
* either host, or the network between: silence; the same.
* a lost Have is found by Pong.told; a lost GiveBack by the next Ping; a lost Lent ends LOAN_NS
  after it; a lost Returned is a miss; lost Meet, Met, Follow are said again.
* the index of the reader while a Fetch is open: as flusher.py says it of the flusher.
"""

from .identities import NO_LEASE, LeaseId, Namespace
from .message import Message, message, record
from .status import Status
from .units import Bytes, Constant, Count, Nanoseconds
from .values import Keys, Numbers, U64s

PING_NS: Nanoseconds = 500_000_000
"""How often a peer says that it is there: six chances within AWAY_NS."""

AWAY_NS: Nanoseconds = 3_000_000_000
"""Silence after which a host's blocks are not fetched and its loans end: as for a process."""

PART_BLOCKS: Count = 8192
"""Fingerprints of one Have or Holding: 64 KiB, which both sides take in less than a millisecond."""

AHEAD: Count = 16
"""Parts on their way to one follower: 1 MiB, so a slow one queues no more."""

LOAN_NS: Nanoseconds = 3_000_000_000
"""From Lent to the first Ping that names the loan: as long as a silence."""

LOANS_MAX: Count = 256
"""Loans of one reader at a time: far more than it reads at once."""

LOAN_BYTES: Bytes = 1 << 30
"""Bytes of pages lent to one reader at a time: what a fast network takes in some hundredths of a
second, and a slow one within its patience."""

ALL: tuple[Constant, Constant] = 0, (1 << 64) - 1
"""From the first fingerprint to the last,"""

NONE: tuple[Constant, Constant] = 1, 0
"""and none of them: news."""

HOSTS_MAX: Count = 64
"""Hosts of one list: as many as a mask of them has bits."""


@record
class Cut:
    """How the blocks of a namespace are cut."""

    namespace: Namespace
    payload_bytes: int  # of a page
    shards: int  # pages of a block


@message(120)
class Meet(Message):
    """Who is there?"""

    place: int  # of the asker's list, said back


@message(121)
class Met(Message):
    """I am, and this is my host."""

    place: int
    name: str  # for people


@message(122)
class Follow(Message):
    """Say what you have, from the beginning."""

    number: int  # of this wish, said back with each part


@message(123)
class Have(Message):
    """Part `part` of the answer to Follow `number`: 1, 2, ...

    Of fingerprints from `first` to `last` there are those that are added and no others; first >
    last: nothing is said of any others.
    """

    number: int
    part: int
    first: int
    last: int
    cuts: tuple[Cut, ...]
    added: U64s  # fingerprints
    removed: U64s  # after `added`
    blocks: int = 0  # that I have in all


@message(124)
class Ping(Message):
    """I am here; parts up to `seen` of my Follow have come; I still read these."""

    number: int  # of the Follow
    seen: int
    lent_upto: LeaseId  # loans up to this number are known to me
    loans: Numbers[LeaseId]


@message(125)
class Pong(Message):
    """So am I; the newest part that I have told you is this."""

    number: int
    told: int


@message(126)
class Enter(Message):
    """May I connect a data link?"""

    ask: bytes  # what the transport has to know of us (device/link)


@message(127)
class Entered(Message):
    """You may, by this offer of the transport and with this token, which is told to nobody else."""

    status: Status
    offer: bytes = b""
    token: bytes = b""


@message(128)
class Borrow(Message):
    """Keep these blocks for me, as far as they are a run."""

    namespace: Namespace
    keys: Keys
    budget_ns: int  # how long I wait for the answer


@message(129)
class Lent(Message):
    """Loan `number`: the first `blocks` of them, `shards` pages each, block-major; 0: none."""

    status: Status
    number: LeaseId = NO_LEASE
    blocks: int = 0
    payload_bytes: int = 0  # of a page
    shards: int = 0
    offsets: U64s = ()  # of the pages in the owner's pool, in bytes
    sums: U64s = ()  # what they were sealed with, one per page, 0 where that is not known


@message(130)
class GiveBack(Message):
    """This loan is read, or not needed."""

    loan: LeaseId


@message(134)
class Returned(Message):
    """OK: it stood until now."""

    status: Status


@message(131)
class Holding(Message):
    """Blocks of this host; a new index, and a new peer process, begin with `first`."""

    number: int  # 1, 2, ... of this index
    first: bool  # nothing that was said before is true any more
    whole: bool  # all that there is has been said
    cuts: tuple[Cut, ...]
    added: U64s  # fingerprints
    removed: U64s  # after `added`


@message(132)
class Around(Message):
    """So many blocks may one engine await of other hosts; 0: none can be fetched.  `anew`: say all
    that this host has again."""

    prefetch: int
    hosts: int  # slots that hosts may have
    anew: bool = False


@message(133)
class Elsewhere(Message):
    """Blocks of the host in a slot; from `first` to `last` as in Have."""

    slot: int
    first: int
    last: int
    cuts: tuple[Cut, ...]
    added: U64s  # fingerprints
    removed: U64s  # after `added`
    blocks: int = 0  # of the host, in all
