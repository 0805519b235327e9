"""Bytes between the pools of two hosts: what every transport has, and what may be relied upon.

An *owner* has blocks in its pool, a *reader* fetches them into pages of its own.  Nobody writes
into another host's pool, and no byte passes through anything but the two pools and the kernel (or
the NIC) between them.  Which block is where, and whether a page may be used at all, is settled
before and elsewhere: the peers' actors talk over an encrypted, authenticated *conversation*, and a
transport carries only the bytes.  A pair of hosts uses one transport at a time, and both directions
are independent: a host is `Owner` to those who read from it and `Reader` of those it reads from.

    reader's actor                              owner's actor
    ask = reader.ask()
        ── may I connect? (ask) ──────────────→
                                                offer = owner.admit(who, token, ask)
        ←──────────────────── (offer, token) ──
    link = reader.connect(offer, token)
        ── what have you of these keys? ──────→
                                                owner.lend(lease, who, extents)
        ←─────── these offsets, under `lease` ──
    link.read(lease, pieces, done, deadline)
        ⇠═══════════ bytes, by the transport ══
    done(outcomes)
        ── I am through with `lease` ─────────→
                                                owner.recall(lease, back)
                                                back()          the pages may be used again

**What the owner relies on.**  A page that is lent stays as it is until `back` is called, and the
actor holds it until then (by a lease of its index); memory comes back by that word and never by
time. `recall` makes the word come soon whatever the reader does: what it asks under the lease from
then on is refused, and whoever is still being sent bytes of it RECALL_S later is cut off.  A reader
is hostile until proven otherwise: it gets nothing without its token, nothing that is not lent to
it, and no more streams, bytes in flight, or time for a transfer that does not move than the
transport's limits say.  Whatever it sends costs it its own streams and nobody else anything.

**What the reader relies on.**  `read` writes into the local pages of its pieces and nowhere else.
`done` is called exactly once, with an outcome for each piece in their order; from then on, and once
`close` has returned, no thread and no NIC writes into those pages on behalf of that read any more.
It comes shortly after the deadline at the latest, whatever the owner does.  A piece that failed
says why, nothing of its bytes may be used, and it may be asked again, by this link or another.

**Checksums** (xxh3, 64 bits).  Of every piece that has arrived the reader makes one, of the bytes
as they lie in its pool.  What it is compared with is best what the owner's ledger says of the page,
told in the conversation: it is as old as the page, and costs nothing (`Piece.sum`).  Where the
ledger has none, the owner makes one as it sends the bytes, if its processor sends them at all; that
costs a sixth more.  A difference is a failed piece.

**What breaks.**  A link has several streams (or queue pairs), which share its reads piece by
piece.  One that breaks takes itself away and nothing else: what it had not finished another one
asks again.  When none is left the link is *broken*, all it has ends with PEER_GONE, and the actor
connects anew, with a new token.

Threads.  Every method may be called by any thread.  `done` and `back` are called by some thread,
perhaps before the call that they belong to has returned: they hand the result on, return at once
and call nothing of the link.  All methods return at once, but for `connect`, which waits for the
other host for CONNECT_S at most, and `close`, which waits for the transport's own threads, none of
which waits for the other host by then.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, Protocol

from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Seconds

TOKEN_BYTES: Bytes = 32
"""Of what proves to the owner that a stream is the admitted reader's: as many as the digest has
that is made of it, so that to guess either is equally hopeless."""

OFFER_BYTES: Bytes = 1024
"""Longest offer, or ask: an address, and a few numbers for each NIC or queue pair."""

CONNECT_S: Seconds = 3.0
"""For all streams of a link together: several round trips between continents, and no longer than
anybody is silent on one host before it is given up."""

STALL_S: Seconds = 3.0
"""A transfer that does not move a byte for so long is cut off: the host is gone, or the way to it,
and whoever waits asks another."""

RECALL_S: Seconds = 1.0
"""From a recall to the cut: what is on its way has left by then at a tenth of the slowest network
that is worth a fetch."""

STREAMS: Count = 4
"""Of a link: from there on more of them gained nothing, and with one the rate of the core that
copies is the rate of the link."""


class Piece(NamedTuple):
    """One run of bytes that is to be fetched: a page, or a part of one."""

    remote: int  # offset in the owner's pool
    local: int  # offset in ours
    bytes: int
    sum: int | None = None  # xxh3_64 that the conversation has told; None: the owner is to make one


class Outcome(NamedTuple):
    """What became of a piece.

    OK; EXPIRED (the deadline passed); NO_SUCH_LEASE (not lent, or recalled); CORRUPT (`here` and
    `there` differ); PEER_GONE (no stream is left); DISCONNECTED (this side has closed the link).
    """

    status: Status
    here: int = 0  # xxh3_64 of the bytes as they lie in our pool; 0 unless OK or CORRUPT
    there: int | None = None  # what that was compared with; None if there was nothing


Extent = tuple[int, int]
"""Offset in the owner's pool, and bytes."""

Done = Callable[[Sequence[Outcome]], None]
"""What a read calls when it has ended."""


class Owner(Protocol):
    """The side whose pool is read."""

    def admit(self, reader: Incarnation, token: bytes, ask: bytes) -> bytes:
        """Let a reader connect one link, once, with this token.

        Args:
            reader: the name that `lend` and `dismiss` use; admitted again it has a new token, and
                what it has connected so far stays.
            token: TOKEN_BYTES that nobody can guess, never used before.
            ask: what the reader's `Reader.ask` has said.

        Returns:
            The offer: for the reader alone, for `Reader.connect`.

        Raises:
            ValueError: the ask makes no sense, or there are READERS_MAX of them already.
        """
        ...

    def dismiss(self, reader: Incarnation) -> None:
        """It is gone, or not welcome any more: cut off whatever it has.  Its leases stay lent, to
        be recalled as others are, which then takes no time."""
        ...

    def lend(self, lease: int, reader: Incarnation, extents: Sequence[Extent]) -> None:
        """Let a reader read these bytes of the pool, until `recall`.

        Args:
            lease: a number that was never used before.

        Raises:
            ValueError: an extent is not within the pool, or the number is lent.
        """
        ...

    def recall(self, lease: int, back: Callable[[], None]) -> None:
        """Lend no more.

        Args:
            lease: what is not lent comes back at once.
            back: called once, when no byte of it is being read any more, about RECALL_S later at
                the latest.
        """
        ...

    def close(self) -> None:
        """Cut everybody off; every `back` that is due has been called when it returns."""
        ...


class Link(Protocol):
    """A connection to one owner."""

    @property
    def streams(self) -> int:
        """How many still work; with 0 the link is broken for good."""
        ...

    def read(self, lease: int, pieces: Sequence[Piece], done: Done, deadline: int) -> None:
        """Fetch pieces into our pool.

        Args:
            lease: under which the owner has lent all of them.
            pieces: of which no two overlap in our pool, and none a piece of a read that has not
                ended; at least one.
            done: called once.
            deadline: on CLOCK_MONOTONIC, in ns.

        Raises:
            ValueError: a piece is not within our pool, or longer than PIECE_BYTES, or empty.
        """
        ...

    def close(self) -> None:
        """Disconnect: what has not ended ends with DISCONNECTED, before it returns."""
        ...


class Reader(Protocol):
    """The side that fetches."""

    def ask(self) -> bytes:
        """What an owner has to know of us before it can admit us; '' if nothing."""
        ...

    def connect(self, offer: bytes, token: bytes) -> Link:
        """A link to the owner that made the offer.

        Args:
            offer: of `Owner.admit`; from the other host, and trusted no further.
            token: TOKEN_BYTES.

        Raises:
            LinkError: there is none; in one line for people.
        """
        ...

    def close(self) -> None:
        """Close all links."""
        ...


class LinkError(Exception):
    """No link could be made, and why, in one line for people."""


_TRANSPORTS = {"tcp": "pegaflow.device.link.tcp", "rdma": "pegaflow.device.link.verbs"}


def transport(name: str) -> ModuleType:
    """The module that makes owners and readers of a transport.  What it needs need not be installed
    for the others.

    Raises:
        ImportError: it cannot be used here.
    """
    return import_module(_TRANSPORTS[name])
