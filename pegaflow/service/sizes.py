"""Sizes as people write them: `30GiB`, `30gb`, `512MB`, `1.5g`, `1048576`.

Every unit is binary: `30gb`, `30g` and `30GiB` are the same 30 * 2**30 bytes.  These are sizes of
memory, which is sold and counted in powers of two, a pool is cut into power-of-two extents, and a
difference of 7 % between two spellings has never been what anyone meant.  Case does not matter.
"""

from __future__ import annotations

import re
from fractions import Fraction

from pegaflow.core.errors import UserError

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII)
_LARGEST = 1 << 62  # beyond any machine, and still fits a signed 64-bit field


def parse(text: str | int) -> int:
    """The bytes that `text` means; raises `UserError` for what is not a size above zero."""
    said = str(text).strip()
    match = _SIZE.fullmatch(said.lower())
    if match is None:
        raise UserError(f"not a size: {said!r} (write 30GiB, 512MB, 1.5g or a number of bytes)")
    number, unit = match.groups()
    size = int(Fraction(number) * (1 << _UNITS[unit]))
    if not 0 < size <= _LARGEST:
        raise UserError(f"not a usable size: {said!r} is {size} bytes")
    return size


def show(size: int) -> str:
    """A size for a person: the largest unit that keeps it at one or more, to three digits."""
    assert size >= 0, size
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):.4g} {unit}"
    return f"{size} B"
