"""Units of the numbers that limit something: what a limit is declared as, people are shown it in.

    SILENT_NS: Nanoseconds = 3_000_000_000

A share is a fraction of the whole.
"""

from typing import TypeAlias

Nanoseconds: TypeAlias = int
Milliseconds: TypeAlias = int
Seconds: TypeAlias = float
Bytes: TypeAlias = int
Count: TypeAlias = int
Share: TypeAlias = float
