"""The pages that a session holds: a small stock to fill at once, and those in use.

Pages come by Reserve and leave by Return: when the index has answered for them, or when they will
never be sealed.  Until then every statement names them.  While there is no allocator, whoever
wants pages waits for the next one.
"""

from collections.abc import Callable, Iterable

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Send
from pegaflow.core.pool.geometry import slot_size
from pegaflow.wire.allocator import Reserve, Reserved, Return, Stock
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import NOBODY

ALLOCATOR_NS = 1000 * MS
"""Patience with the allocator: a hundred times its worst answer on a busy host."""

STOCK_BYTES = 8 << 20
"""Pages kept ready, so that a save need not ask the allocator first."""

STOCK_PAGES_MAX = 64
"""Pages kept ready at most: one batch."""

RESERVE_MAX = 256
"""Pages asked for at once: a long save must not evict the whole pool before it copies a byte."""

USED_SHARE = 4
"""Pages of one engine's open saves are at most one part in so many of the pool: one that never
ends its saves, be it stopped or ill, must not keep the others from theirs."""

Pages = tuple[tuple[int, int], ...]
"""(page, stamp) each."""


class PageStock:
    """Granted pages of one size.

    Args:
        page_size: bytes.
        hunger: (pages wanted by all who wait, pages wanted by the first of them).
        feed: pages have come.
        starve: there are none to be had, and why.
    """

    def __init__(
        self,
        page_size: int,
        hunger: Callable[[], tuple[int, int]],
        feed: Callable[[int], list[Effect]],
        starve: Callable[[Status, int], list[Effect]],
    ) -> None:
        self.page_size = page_size
        self.most = 0  # bytes that may be in use; 0: any number
        self.allocator = NOBODY
        self.free: dict[int, int] = {}  # page -> stamp: granted, not yet used
        self.used: dict[int, int] = {}  # page -> stamp: being filled, in place or in a Seal
        self.granted_upto = 0  # newest grant number we have seen
        self._hunger, self._feed, self._starve = hunger, feed, starve
        self._reserving = False

    @property
    def likes(self) -> int:
        """Pages that we like to have ready."""
        return max(4, min(STOCK_PAGES_MAX, STOCK_BYTES // self.page_size))

    def is_full(self, count: int) -> bool:
        """Whether so many pages more would be too many in use; the first ones never are."""
        wanted = (len(self.used) + count) * slot_size(self.page_size)
        return bool(self.most and self.used) and wanted > self.most

    def held_bytes(self) -> int:
        """Bytes of the pool that we hold."""
        return (len(self.free) + len(self.used)) * slot_size(self.page_size)

    def statement(self) -> Stock:
        """What we hold of the allocator's."""
        return Stock(self.granted_upto, (*self.free, *self.used), self.page_size)

    def take(self, count: int) -> Pages:
        """So many pages to use; none if there are not so many, or too many are in use."""
        if len(self.free) < count or self.is_full(count):
            return ()
        pages = tuple(self.free.popitem() for _ in range(count))
        self.used.update(pages)
        return pages

    def give_back(self, pages: Iterable[int]) -> list[Effect]:
        """These used pages leave our books: sealed, or never to be."""
        gone = tuple(pages)
        for page in gone:
            del self.used[page]
        return [Send(self.allocator, Return(gone))] if gone and self.allocator != NOBODY else []

    def reserved(self, answer: Reserved, now: int) -> list[Effect]:
        """Pages came, asked for or sent again."""
        if answer.number > self.granted_upto:
            self.granted_upto = answer.number
            self.free.update(zip(answer.pages, answer.stamps, strict=True))
        return self._feed(now)

    def refill(self, now: int) -> list[Effect]:
        """Have pages ready."""
        wanted, first = self._hunger()
        wanted = max(first, min(wanted, RESERVE_MAX))
        enough = wanted + self.likes // 2 <= len(self.free)
        if self._reserving or enough or self.allocator == NOBODY:
            return []
        return self._reserve(max(wanted, self.likes) - len(self.free), now)

    def _reserve(self, count: int, now: int) -> list[Effect]:
        """Ask for pages; if there are not so many, for just what the first who waits needs."""
        self._reserving = True

        def reserved(answer: Message, now: int) -> list[Effect]:
            self._reserving = False
            if isinstance(answer, Reserved) and answer.status is Status.OK:
                return self.reserved(answer, now)
            gone = isinstance(answer, NoAnswer) and answer.status is Status.PEER_GONE
            _, first = self._hunger()
            if not first or gone:
                return []
            least = first - len(self.free)
            if isinstance(answer, Reserved) and 0 < least < count:
                return self._reserve(least, now)
            status = answer.status if isinstance(answer, NoAnswer | Reserved) else Status.UNKNOWN
            return self._starve(status, now)

        ask = Reserve(self.page_size, count)
        return [Ask(self.allocator, ask, now + ALLOCATOR_NS, reserved)]
