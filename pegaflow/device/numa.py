"""Which memory of the host is nearest to its GPUs, and a file of shared memory that is put there.

A host with several NUMA nodes has GPUs beside some of them; a copy between a GPU and the memory of
another node crosses the link between the nodes, which has less bandwidth than the bus and is
shared.  So the pool's extents are spread over the nodes that have GPUs, one after the other, and
others are taken where those are full.

The kernel says where GPUs are without a CUDA context: NVIDIA's driver has a folder for each in
/proc/driver/nvidia/gpus, PCI has its node in /sys.  mbind(2) on a shared mapping stays with the
file (tmpfs), so it holds for whoever makes the space real, also by fallocate.  In hugetlbfs it
stays with the mapping, which fallocate does not look at (hugetlb_vm_ops in Linux's mm/hugetlb.c has
no set_policy, so that hugetlbfs_fallocate finds the policy of the task alone); there the thread
that makes an extent real has such a policy meanwhile (`preferring`).  Both move nothing that is
there: a pool that is adopted stays where it was.  Docker's default profile of seccomp refuses both;
then the kernel chooses, as ever.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pegaflow.wire.gpu import is_meant
from pegaflow.wire.units import Constant

MPOL_DEFAULT: Constant = 0  # linux/mempolicy.h: the node on which a thread runs
MPOL_PREFERRED: Constant = 1  # this node, and others where it is full

_MBIND = {"x86_64": 237, "aarch64": 235}  # its number, by machine (unistd.h)
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_BITS = 64  # of a word of a mask of nodes
_libc = ctypes.CDLL(None, use_errno=True)


def beside_gpus(names: Sequence[str], root: Path = Path("/")) -> list[int]:
    """The nodes that have GPUs, in their order; none where there is nothing to choose.

    Args:
        names: of the GPUs that count, as wire.gpu.device_name; empty: all of the host.
        root: another tree for /proc and /sys, in tests.
    """
    if len(list(root.glob("sys/devices/system/node/node[0-9]*"))) < 2:
        return []
    found: set[int] = set()
    folders = sorted(root.glob("proc/driver/nvidia/gpus/*"))
    for number, folder in enumerate(folders):
        bus = folder.name.lower()
        if not names or any(is_meant(name, number, bus, _uuid(folder)) for name in names):
            found.add(_node(root / "sys/bus/pci/devices" / bus / "numa_node"))
    return sorted(node for node in found if node >= 0)


def prefer(address: int, length: int, node: int) -> str:
    """Have the kernel take memory of this node for a part of a file that is not there yet.

    Args:
        address: at which the part is mapped, shared; on a page.
        length: bytes.

    Returns:
        Why not, in a few words; '' if it will.
    """
    number = _MBIND.get(platform.machine())
    if number is None:
        return os.strerror(errno.ENOSYS)
    where = ctypes.c_void_p(address), ctypes.c_ulong(length)
    if _libc.syscall(number, *where, MPOL_PREFERRED, *_mask(node), 0):
        return os.strerror(ctypes.get_errno())
    return ""


@contextmanager
def preferring(node: int) -> Iterator[str]:
    """Have the kernel take memory of this node for whatever this thread makes real meanwhile.

    Yields:
        Why not, in a few words; '' if it does.
    """
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        yield os.strerror(errno.ENOSYS)
        return
    if _libc.syscall(number, MPOL_PREFERRED, *_mask(node)):
        yield os.strerror(ctypes.get_errno())
        return
    try:
        yield ""
    finally:
        _libc.syscall(number, MPOL_DEFAULT, None, ctypes.c_ulong(0))


def _mask(node: int) -> tuple[ctypes.Array[ctypes.c_uint64], ctypes.c_ulong]:
    words = node // _BITS + 1
    mask = (ctypes.c_uint64 * words)()
    mask[-1] = 1 << node % _BITS
    return mask, ctypes.c_ulong(words * _BITS + 1)  # the kernel takes one less


def _uuid(folder: Path) -> bytes:
    with suppress(OSError, ValueError):
        for line in (folder / "information").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "GPU UUID":
                return bytes.fromhex(value.strip().removeprefix("GPU-").replace("-", ""))
    return b""


def _node(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return -1
