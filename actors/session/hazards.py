"""What the session finds and keeps by itself: the index's table, and its own hazards.

A hazard is a word of ours in our hazard file that keeps a block where it is (wire/index.py,
core/pool/hazards.py).  The file is made when the engine is complete for the first time.  It is
announced to each index that we meet, before anything else is stated, and again with each beat until
that index has answered.  Hazards are trusted from the first index on that has noted the file, and
go on being trusted while there is none, since nobody else evicts.

One section of the file is lent to a client of the engine, so that it looks up by itself too
(lending.py): it may as long as we may, and while the engine is complete.

Where that does not work (no room, no memory barrier, an index that cannot map the file) lookups go
to the index, one line of the log and of `status` says why, and hazards that stand are worth what a
look at the ledger before and after each copy finds them to be.
"""

from collections.abc import Callable
from typing import NamedTuple

from pegaflow.actors.runtime.contract import Ask, Effect, Note, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.errors import UserError
from pegaflow.core.pool.finder import Finder, Run
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.hazards import Hazards, LentRows, Pages, Rows
from pegaflow.wire.control import BEAT_NS, LogLevel, Welcome
from pegaflow.wire.index import HazardFile, HazardsNoted
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Nanoseconds
from pegaflow.wire.values import INDEX, NOBODY, Address, Keys

from .engine import Engine
from .space import Space

NOTED_NS: Nanoseconds = 2 * BEAT_NS
"""Patience with an index that is told of our hazards; then it is told again."""

NO_BOUND: Bytes = 1 << 62
"""Of a run: pins.py says how much of it the engine may keep."""


class Opened(NamedTuple):
    """A hazard file of ours, and how others find it."""

    hazards: Hazards
    lent: LentRows
    path: str
    file: tuple[int, int]  # device and inode


OpenHazards = Callable[[Welcome], Opened]
"""Makes the session's hazard file; raises UserError if hazards cannot be had."""

OpenFinder = Callable[[Welcome], Finder]
"""Maps the ledger; raises UserError if it cannot."""


class HazardBook(Part):
    """Our hazards, and who has noted them."""

    def __init__(
        self, member: Member, engine: Engine, open_hazards: OpenHazards, open_finder: OpenFinder
    ) -> None:
        self._member, self._engine = member, engine
        self._open_hazards, self._open_finder = open_hazards, open_finder
        self._opened: Opened | None = None
        self._finder: Finder | None = None  # with `_opened`
        self._asked = NOBODY  # the index that was told of the file and has not answered
        self._answered = NOBODY  # the index that has
        self.trusted = False  # our hazards are read before anything is freed
        self._why = ""  # not, in one line
        self.borrower = NOBODY  # the client that has the section which we lend
        self._recalled = False  # it has to ask for it again
        self._allowed_bytes = 0  # that it may keep, if it may keep any

    def gauges(self) -> dict[str, int]:
        """Hazards that stand."""
        lent = self._opened.lent.standing if self._opened is not None else 0
        return {"session_hazards": self.standing + lent, "session_hazards_lent": lent}

    def remarks(self) -> tuple[str, ...]:
        """Why each lookup costs a message."""
        return (f"engine {self._engine.name} looks up by message: {self._why}",) * bool(self._why)

    def begin(self, now: int) -> list[Effect]:
        """The engine is complete: have hazards, unless that was tried before."""
        welcome = self._member.welcome
        assert welcome is not None
        self._settle()
        if self._opened is not None or self._why:
            return []
        try:
            self._finder = self._open_finder(welcome)
            self._opened = self._open_hazards(welcome)
        except UserError as err:
            return self._refused(str(err))
        return self._announce(now)

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An index in a new life."""
        return self._announce(now) if neighbour.name == INDEX else []

    def beat(self, now: int) -> list[Effect]:
        """Who has not answered is told again."""
        return self._announce(now)

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """The index has noted the file after all."""
        known = isinstance(msg, HazardsNoted) and sender == self._member.peer(INDEX)
        return self._heard(sender, msg) if known else []

    @property
    def standing(self) -> int:
        """Hazards of our own that are not cleared."""
        return len(self._opened.hazards) if self._opened is not None else 0

    @property
    def may_stand(self) -> bool:
        """Whether an index must know the file before it frees anything: also one that has refused
        it, as long as hazards are left that an earlier one has noted."""
        lent = self._opened.lent.standing if self._opened is not None else 0
        return self.trusted or self.standing + lent > 0

    # what a client has of it

    @property
    def opened(self) -> Opened | None:
        """The file, if it is trusted."""
        return self._opened if self.trusted else None

    @property
    def lent(self) -> LentRows:
        """The section that is lent; there is one if there is a file."""
        assert self._opened is not None
        return self._opened.lent

    @property
    def finder(self) -> Finder:
        """What both look into; there is one if there is a file."""
        assert self._finder is not None
        return self._finder

    @property
    def why(self) -> str:
        """Why nobody looks up without a message; '' if that is not known."""
        return self._why

    def lend(self, client: Address) -> None:
        """The section is this client's, or nobody's."""
        assert self._opened is not None
        if client != self.borrower:
            self._opened.lent.forget()
        self.borrower, self._recalled = client, False
        self._settle()

    def recall(self) -> None:
        """The engine has other blocks now: the client has to hear of them."""
        self._recalled = True
        self._settle()

    def pause(self) -> None:
        """The engine is not complete any more."""
        self._settle()

    def allow(self, bytes_: Bytes) -> None:
        """So much of the pool the lent section may keep."""
        self._allowed_bytes = bytes_
        self._settle()

    @property
    def unsaid(self) -> int:
        """Blocks that the client has found by itself and not told us of."""
        nobody = self._opened is None or self.borrower == NOBODY
        return 0 if nobody else self.lent.unsaid

    def _settle(self) -> None:
        if self._opened is not None:
            lends = self.trusted and self._engine.complete and not self._recalled
            some = lends and self.borrower != NOBODY
            self._opened.lent.allow(self._allowed_bytes if some else 0)

    # what it is good for

    def find(self, space: Space, keys: Keys) -> Run | None:
        """Find the leading blocks that are in memory, and keep them by hazards.

        Returns:
            The run, whose rows are the caller's to clear; it may have no block.  None: the index
            has to be asked.
        """
        if not self.trusted:
            return None
        assert self._opened is not None and self._finder is not None
        hazards = self._opened.hazards
        run = self._finder.find(
            space.namespace, keys, hazards, shards=space.shards, most_bytes=NO_BOUND
        )
        return run

    def clear(self, rows: Rows, *, lent: bool = False) -> None:
        """These hazards stand no longer.

        Args:
            lent: they are rows of the section that is lent, and were given to us.
        """
        assert self._opened is not None
        if lent:
            self._opened.lent.clear(rows)
        else:
            self._opened.hazards.clear(rows)

    def sealed(self, pages: Pages, stamps: U64) -> bool:
        """Whether these pages still hold what they held when the hazards were written."""
        assert self._finder is not None
        return self._finder.sealed(pages, stamps)

    # the index

    def _announce(self, now: int) -> list[Effect]:
        """Tell the living index where our hazards are."""
        index, opened = self._member.peer(INDEX), self._opened
        if opened is None or index in (NOBODY, self._asked, self._answered):
            return []
        self._asked = index

        def heard(answer: Message, now: int) -> list[Effect]:
            if self._asked == index:
                self._asked = NOBODY
            return self._heard(index, answer)

        ask = HazardFile(opened.path, opened.file)
        return [Ask(index, ask, now + NOTED_NS, heard)]

    def _heard(self, index: Address, answer: Message) -> list[Effect]:
        if not isinstance(answer, HazardsNoted):
            return []
        self._answered = index
        if answer.status is not Status.OK:
            return self._refused(answer.note or answer.status.label)
        self.trusted, self._why = True, ""
        self._settle()
        return []

    def _refused(self, why: str) -> list[Effect]:
        """Each lookup is the index's from now on."""
        said, self.trusted, self._why = self._why, False, why
        self._settle()
        if said == why:
            return []
        facts = (("engine", self._engine.name), ("why", why))
        return [Note("lookups_by_message", facts, LogLevel.WARNING)]
