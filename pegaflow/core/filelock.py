"""What the kernel is asked and says of an fcntl lock: `struct flock` of 64-bit Linux, as bytes.

Whoever locks a range of a file (device/locks.py), and whoever asks who lives in a run directory
(client/presence.py), speaks of the same structure.
"""

import struct

from pegaflow.wire.units import Constant

_FLOCK = struct.Struct("hhqqi0q")  # type, whence, start, len, pid
_FROM_START = 0  # whence: `start` counts from the beginning of the file
TO_END: Constant = 0
"""A length: to the end of the file, however far that is."""


def asked(kind: int, start: int = 0, length: int = TO_END) -> bytes:
    """A lock as `fcntl.fcntl` wants it; of the whole file, if nothing else is said.

    Args:
        kind: F_RDLCK, F_WRLCK or F_UNLCK.
        start: the first byte.
        length: of the range.
    """
    return _FLOCK.pack(kind, _FROM_START, start, length, 0)


def holder(answer: bytes) -> tuple[int, int]:
    """What F_GETLK has answered.

    Returns:
        The kind of the lock that is in the way, F_UNLCK if none is, and the pid of who has it: 0 or
        less if we cannot see it.
    """
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return int(kind), int(pid)
