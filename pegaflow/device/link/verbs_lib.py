"""pyverbs, as far as it is used here, of whichever version is installed.

Versions differ in where the constants are, and in whether a completion channel says which file
it waits on.  Its import sets up logging for the whole process, which is undone.

What pyverbs has closed must never be touched again: that ends the process, without a word.  So
nobody but verbs_nic.py holds any of its objects.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pegaflow.core.errors import UserError

EVENT_FILE = "anon_inode:[infinibandevent]"
"""What the kernel calls the file of a completion channel."""

_NAMES = {
    "device": ["Context"],
    "pd": ["PD"],
    "mr": ["MR"],
    "cq": ["CQ", "CompChannel"],
    "qp": ["QP", "QPInitAttr", "QPAttr", "QPCap"],
    "addr": ["AHAttr", "GlobalRoute", "GID"],
    "wr": ["SGE", "SendWR"],
}


class Library:
    """The names of pyverbs that are used.

    Raises:
        UserError: it cannot be imported.
    """

    def __init__(self) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        try:
            for module, names in _NAMES.items():
                loaded = import_module(f"pyverbs.{module}")
                for name in names:
                    setattr(self, name, getattr(loaded, name))
            self.Error: type[Exception] = import_module("pyverbs.pyverbs_error").PyverbsError
            self.enums = _enums()
        except ImportError as err:
            raise UserError(
                f"RDMA needs pyverbs, which cannot be imported ({err}): the package is "
                "python3-pyverbs on Debian and Ubuntu"
            ) from None
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # pyverbs has no types: what was set above may be anything


def _enums() -> ModuleType:
    try:
        return import_module("pyverbs.enums")  # up to 58
    except ModuleNotFoundError:
        return import_module("pyverbs.libibverbs_enums")


def with_file(make: Callable[[], Any]) -> tuple[Any, int]:
    """A completion channel, and the descriptor of the file that it waits on.

    Args:
        make: makes it; no other thread makes one meanwhile.
    """
    before = _event_files()
    channel = make()
    fd = getattr(channel, "fd", None)
    if fd is None:
        (fd,) = _event_files() - before
    return channel, int(fd)


def _event_files() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == EVENT_FILE:
                found.add(int(name))
        except FileNotFoundError:
            continue  # the list itself, or closed meanwhile
    return found


def devices(root: Path = Path("/sys/class/infiniband")) -> list[str]:
    """The names of the RDMA devices of this host."""
    return sorted(path.name for path in root.glob("*"))


def node_of_device(name: str, root: Path = Path("/sys/class/infiniband")) -> int:
    """The NUMA node that a device is beside; -1 if that is not known, or makes no difference."""
    try:
        return int((root / name / "device" / "numa_node").read_text())
    except (OSError, ValueError):
        return -1
