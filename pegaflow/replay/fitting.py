"""How many tokens a block of the trace has, from the trace itself.

A row says how many tokens its prompt has and how many block ids. With blocks of `size` tokens there
are tokens / size ids, rounded up where the last block may be a part of one, down where it may not.
So a row allows an interval of sizes, and the whole trace the intersection of its rows: three of
them, for traces that always round up, always down, or now so and now so. Two rows that allow no
size in common are both named. Constant memory, one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pegaflow.wire.units import Count

from .errors import TraceError
from .words import count

BLOCK_TOKENS_MAX: Count = 1 << 20
"""Above it a block would be larger than any prompt, and the trace was misread."""


@dataclass(slots=True)
class Interval:
    """Sizes of a block, in tokens, that are still possible."""

    low: int = 1
    high: int = BLOCK_TOKENS_MAX

    def narrow(self, low: int, high: int) -> None:
        """Keep what is within these bounds."""
        self.low, self.high = max(self.low, low), min(self.high, high)

    def __contains__(self, size: int) -> bool:
        return self.low <= size <= self.high

    def __bool__(self) -> bool:
        return self.low <= self.high


@dataclass(slots=True)
class Fit:
    """Which block sizes the rows seen so far allow."""

    up: Interval = field(default_factory=Interval)  # every row rounds up
    down: Interval = field(default_factory=Interval)  # every row rounds down
    either: Interval = field(default_factory=Interval)
    _lowest: str = ""  # the row that set `either.low`, in words
    _highest: str = ""  # and the one that set `either.high`

    def add(self, where: str, tokens: int, ids: int) -> None:
        """Take a row's word for it.

        Raises:
            TraceError: no block size fits this row and those before it.
        """
        down_low = tokens // (ids + 1) + 1
        down_high = tokens // ids if ids else BLOCK_TOKENS_MAX
        up_low = -(-tokens // ids) if ids else (BLOCK_TOKENS_MAX + 1 if tokens else 1)
        up_high = -(-tokens // (ids - 1)) - 1 if ids > 1 else BLOCK_TOKENS_MAX
        if ids and not tokens:
            up_high = 0
        self.down.narrow(down_low, down_high)
        self.up.narrow(up_low, up_high)
        low, high = down_low, max(down_high, up_high)
        row = f"{count(ids, 'block id')} for {count(tokens, 'token')}"
        if low > self.either.low:
            self.either.low, self._lowest = low, f"{where} has {row}"
        if high < self.either.high:
            self.either.high, self._highest = high, f"{where} has {row}"
        if not self.either:
            self._refuse(where, row)

    def _refuse(self, where: str, row: str) -> None:
        others = (one for one in (self._lowest, self._highest) if not one.startswith(f"{where} "))
        other = next((one for one in others if one), "")
        if not other:
            raise TraceError(f"{where}: {row}: no block size fits")
        raise TraceError(f"{where}: {row}, while {other}: no block size fits both")

    def size(self, name: str, usual: int | None) -> int:
        """The block size: the usual one of this kind of trace if it fits, or the only one.

        Raises:
            TraceError: the rows leave a choice that only a person can make.
        """
        regular = [one for one in (self.up, self.down) if one] or [self.either]
        if usual is not None and any(usual in one for one in regular):
            return usual
        low, high = min(one.low for one in regular), max(one.high for one in regular)
        if low == high:
            return low
        powers = [1 << n for n in range(BLOCK_TOKENS_MAX.bit_length())]
        fitting = [size for size in powers if any(size in one for one in regular)]
        if len(fitting) == 1:
            return fitting[0]
        raise TraceError(
            f"{name}: blocks of {low} to {high} tokens would fit: say which with --block-tokens"
        )


def check(where: str, tokens: int, ids: int, size: int, *, said: str) -> None:
    """A row of a trace whose block size is known, and from whom.

    Raises:
        TraceError: the row has another number of ids than blocks.
    """
    if ids in (tokens // size, -(-tokens // size)):
        return
    wanted = tokens // size if not tokens % size else f"{tokens // size} or {tokens // size + 1}"
    raise TraceError(
        f"{where}: {count(ids, 'block id')} for {count(tokens, 'token')}, where blocks of "
        f"{count(size, 'token')} ({said}) make {wanted}"
    )
