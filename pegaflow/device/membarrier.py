"""The barrier in all processors that lets readers of shared memory go without one.

membarrier(2): when `barrier` returns, every thread of every process that has called `register` has
had a full memory barrier since the call: what it stored before, everybody sees, and what it loads
after, it loads from then.  The readers pay nothing, and the caller some microseconds.  Kernels
before 4.16 do not know it, and a seccomp filter may refuse it.
"""

import ctypes
import os
import platform
from collections.abc import Callable

_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
"""Of the system call, by machine."""

_GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 1 << 1, 1 << 2

Syscall = Callable[[int, int], int]
"""(number, command) -> 0, or an errno."""


def _kernel(number: int, command: int) -> int:
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(command), ctypes.c_long(0))
    return ctypes.get_errno() if result < 0 else 0


def register(syscall: Syscall = _kernel) -> str:
    """Let the barriers of others reach this process; '' or why that is refused."""
    return _membarrier(_REGISTER_GLOBAL_EXPEDITED, syscall)


def barrier(syscall: Syscall = _kernel) -> str:
    """A barrier in every process that is registered; '' or why it is refused."""
    return _membarrier(_GLOBAL_EXPEDITED, syscall)


def _membarrier(command: int, syscall: Syscall) -> str:
    machine = platform.machine()
    number = _NUMBERS.get(machine)
    if number is None:
        return f"membarrier is not known on {machine}"
    wrong = syscall(number, command)
    return f"membarrier: {os.strerror(wrong)}" if wrong else ""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
