"""Units of the numbers that limit something: what a limit is declared as, people are shown it in.

    SILENT_NS: Nanoseconds = 3_000_000_000

A share is a fraction of the whole.  A number that limits nothing is a `Constant`: of a format, a
port, a factor, a bound between two buckets of a histogram.
"""

from typing import TypeAlias

Nanoseconds: TypeAlias = int
Milliseconds: TypeAlias = int
Seconds: TypeAlias = float
Bytes: TypeAlias = int
Count: TypeAlias = int
Share: TypeAlias = float
Constant: TypeAlias = int
