"""How long a client waits for whom, in nanoseconds."""

from pegaflow.wire.units import Count, Nanoseconds

RETRY_NS: tuple[Nanoseconds, ...] = (
    20_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
)
"""Delay before the nth OpenSession in a row: at once after a crash, gently while a host is down."""

ABSENT_NS: Nanoseconds = 100_000_000
"""Longest delay before we look again for a service that is not there: a look takes microseconds."""

OPEN_NS: Nanoseconds = 2_000_000_000
"""Patience with the front desk: a spare is ready or starts in a fraction of a second."""

OPEN_GPU_NS: Nanoseconds = 10_000_000_000
"""Patience with a session that opens GPU memory: the first of its device imports cupy and makes a
CUDA context, which takes a second or two on a host that has done neither lately."""

SOON_NS: Nanoseconds = 5_000_000_000
"""A session that dies so soon after it has opened GPU memory may have died of that, though it was
asked to move nothing; of one that dies later, and still was not, an operator has stopped the
service under an idle engine."""

FALLS_MAX: Count = 2
"""So many in a row, and GPU memory is not named to the next one: what a driver does not do for one
session it does for none."""

PING_NS: Nanoseconds = 1_000_000_000
"""Patience with a session that let a deadline pass; the watchdog kills it a little later."""

GRACE_NS: Nanoseconds = 500_000_000
"""Patience with a session that writes into our blocks, beyond the deadline that it was given: it
looks at that before each chunk of a millisecond.  The caller's deadline is so much later, and then
we kill it; of a short time the session gets half.  One that is ready to run is looked at again so
much later."""

LEAVE_NS: Nanoseconds = 1_000_000_000
"""Patience with a session that we leave; then, if it may touch our memory, we kill it."""
