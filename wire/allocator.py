"""Allocator: who may fill which page.  Sessions, flusher and index dial it.

    session → allocator   Reserve   → Reserved     pages to fill, under stamps never used before
    session → allocator   Return                   pages I hold no longer: sealed, or never to be
    session → allocator   PagesHeld                statement: up to this number I hold exactly these
    allocator → index     Pressure  → Freed        evict enough for so many pages, or ahead of need
    index → allocator     Freed                    told unasked: these pages' records are void now
    index → allocator     Fenced (control.py)      nothing of this dead process will be sealed
    allocator → index     Fence                    pages of this dead process wait for your Fenced

What is said here of sessions holds for the flusher, which fills pages too (flusher.py).

A page that leaves a holder (Return, a PagesHeld that omits it, Fenced) is free only if its ledger
record, read after that word, is void; if it is sealed it belongs to the index.  A page of the index
is free when Freed names it, or a periodic scan finds it, and its record is void.  So a lost Return
is mended by the next PagesHeld, a lost Freed by the next scan, and a lost Fenced by the next Fence.

Grants are numbered per holder.  A Reserved that the session no longer waits for is handed back with
Return, not ignored.  A page granted later than the stated number is sent again.

Pages are freed ahead of need.  A grant that leaves few free pages of its size, in a pool that grows
no more, is followed by Pressure `ahead`, so that whoever asks next finds pages waiting and need not
wait until victims are no hits, hazards are read and records void.  Only a grant leads to it, so
nothing goes for an engine that is idle.  The index evicts the coldest of that size, but empties no
extent of another size, and lets nothing go that a tier is still to write: it has that written, and
Freed names less, or nothing; then the allocator presses for nobody for a moment.  One Pressure is
under way at a time, and one ahead of need is short, since a Reserve that finds too few pages waits
for it too, before it has the index pressed for what is still missing.  None is for more than
PRESSURE_PAGES, whatever is missing: the next one asks for the rest, and the index answers others in
between.  The index's death ends the
question, and another grant asks the next index.  The allocator's death loses nothing: what was
evicted for it is void, so free for its successor, and a Freed that finds it dead is as a lost one.

A new allocator knows nothing.  It waits until every session that Members names has said PagesHeld
or is fenced, and until an index has spoken to it (which has then heard of every death that Members
knows, so writes nothing for the dead any more); THEN it reads the whole ledger: a sealed page is
the index's, a page that somebody states is his, every other one is free.  Questions wait until
then.  Numbers of grants go on from those that were stated; stamps hold the incarnation, so none is
used twice.

Who dies when: a session's death: Fenced, then all its pages come back by the rule above.  The
allocator's death ends no session: they go on with the pages they have, their Returns are lost and
mended by what they state, and what they ask for waits for the next allocator.
"""

from .identities import GrantId, PageId, Stamp
from .message import Message, message
from .status import Status
from .units import Count
from .values import Address, Numbers, U64s

PRESSURE_PAGES: Count = 4096
"""Pages of one Pressure: 4 to 6 ms of the index, which frees no more for one."""


@message(80)
class Reserve(Message):
    """So many pages of this size, all or none."""

    page_size: int
    count: int


@message(81)
class Reserved(Message):
    """Grant `number`: these pages under these stamps; none unless status is OK."""

    status: Status
    number: GrantId
    pages: Numbers[PageId]
    stamps: Numbers[Stamp]


@message(82)
class Return(Message):
    """I hold these pages no longer: the index has answered for them, or I will never seal them."""

    pages: Numbers[PageId]


@message(83)
class PagesHeld(Message):
    """Up to grant `upto` I hold exactly these pages, all of this size, or each of its own."""

    upto: GrantId
    pages: Numbers[PageId]
    page_size: int = 0
    sizes: U64s = ()  # beside `pages`, if they are not all of one


@message(84)
class Pressure(Message):
    """Evict enough for `count` pages of this size.

    `reassign`: this size has no extent to take them from; empty an extent of another size.
    `ahead`: nobody waits for them yet: empty no extent, and lose nothing that a tier is to have.
    """

    page_size: int
    count: int
    reassign: bool
    ahead: bool = False


@message(85)
class Freed(Message):
    """The records of these pages are void now."""

    pages: Numbers[PageId]


@message(86)
class Fence(Message):
    """Say Fenced of this process again: it is dead, and I still have pages of it."""

    address: Address
