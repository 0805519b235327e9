"""The units in which sizes are said, and the limits that more than one part needs.

A limit that only one file uses stays in that file, and the default of a setting with the setting.
"""

from pegaflow.wire.units import Constant, Count, Seconds

KIB: Constant = 1024
MIB: Constant = 1024 * KIB
GIB: Constant = 1024 * MIB

IOV_MAX: Count = 1024
"""Pieces of memory of one system call that reads or writes many: Linux takes no more."""

OPEN_FILES: Count = 65536
"""An engine costs about ten descriptors per process that talks to it; this serves hundreds."""

KILL_SECONDS: Seconds = 5.0
"""Patience with a process that was sent SIGKILL: one that is stuck in the kernel may take longer
than anybody wants to wait.  One that has much of a pool gets more (`patience`)."""

DEATH_SECONDS_PER_GIB: Seconds = 0.5
"""Of a pool that is registered with the driver.  26 s were seen elsewhere for a process that had
243 GB registered, 0.12 s for each GiB; a service has several, which share cores and pages as they
die together: four times as much.  It is only ever waited for while one of them lives."""

PATIENCE_MAX: Seconds = 90.0
"""A service manager that waits two minutes for a start (README.md) must not end it while it waits:
the next start would wait again, for as long as a process that is stuck lives."""


def patience(pool_bytes: int) -> float:
    """Seconds within which a process is dead that has all of a pool registered with a driver."""
    return min(PATIENCE_MAX, KILL_SECONDS + DEATH_SECONDS_PER_GIB * pool_bytes / GIB)
