"""How large the pool may be, and why.

With no size given the pool takes a quarter of the machine, less where less is free: the memory that
is available now, the room below the memory limit of our cgroup (version 2 or 1), and the free part
of /dev/shm, whichever is smallest.  The answer carries the sentence that is printed at start, so
nobody has to guess why the pool is as it is.  A size that was asked for is taken, in whole extents,
or refused; nobody gets much less than they named.  The file beside the pool, which has a record per
page and the table of what is in memory, takes some 1.1 % of the pool more, and has to fit as well.

In huge pages (device/hugepages.py) a pool has as many of them as are free, if nobody says how many;
whether it gets them the kernel says when it is made.  Its ledger alone needs room in /dev/shm.

`choose` is pure: it is given a `Memory`; `look` reads one from the system.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.core.limits import GIB, MIB
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.core.pool.table import file_bytes
from pegaflow.device import poolfiles
from pegaflow.device.hugepages import HugePages
from pegaflow.wire.units import Bytes, Share

from .sizes import show

SHARE_OF_RAM: Share = 0.25
"""An engine, its weights and the system need the rest; whoever runs a cache host raises it by
flag."""

MARGIN: Bytes = 1 * GIB
"""The service's own processes and what the engines allocate while the pool is being filled."""

SHARE_OF_SHM: Share = 0.8
"""Engines (tensor transport, bounce files) use /dev/shm too, and a full one is their SIGBUS."""

SMALLEST_DEFAULT: Bytes = 128 * MIB
"""Below this a pool holds a few hundred blocks at best: better to say so than to run uselessly."""


@dataclass(frozen=True)
class Memory:
    """What the machine has, in bytes."""

    total_bytes: int
    #: What can be taken without swapping: MemAvailable.
    available_bytes: int
    #: Room below the tightest memory limit of our cgroups, or None where nothing limits us.
    cgroup_room_bytes: int | None
    #: Free space of the file system that holds the pool.
    shm_free_bytes: int

    def plus(self, there_bytes: int) -> Memory:
        """As if so many bytes, which an old pool has, were not taken."""
        room = None if self.cgroup_room_bytes is None else self.cgroup_room_bytes + there_bytes
        return Memory(
            self.total_bytes,
            self.available_bytes + there_bytes,
            room,
            self.shm_free_bytes + there_bytes,
        )


@dataclass(frozen=True)
class PoolSize:
    """How large the pool is, and why."""

    #: A whole number of extents, at least one.
    size: int
    #: One sentence for the person who started the service.
    reason: str


def choose(
    asked_bytes: int | None, memory: Memory, extent: int, pages: HugePages | None = None
) -> PoolSize:
    """The pool's size.

    Args:
        asked_bytes: what the user wants; None: what is sensible here.
        memory: of the machine, now.
        extent: bytes; the size is a multiple of it.
        pages: that the pool is to be made of; None: it lies in /dev/shm.

    Raises:
        UserError: there is no room for a sensible pool, or not for the one that is wanted.
    """
    if pages is not None:
        return _huge(asked_bytes, memory, extent, pages)
    return (
        _default(memory, extent) if asked_bytes is None else _explicit(asked_bytes, memory, extent)
    )


def _huge(asked: int | None, memory: Memory, extent: int, pages: HugePages) -> PoolSize:
    where = f"huge pages of {pages.size} in {pages.folder}"
    if asked is None:
        why = f"{pages.available} {where} are free"
        room = pages.available * pages.page_bytes - poolfiles.TRAILER_BYTES
        if room < max(SMALLEST_DEFAULT, extent):
            least = pages.pages(SMALLEST_DEFAULT + poolfiles.TRAILER_BYTES)
            do = pages.reserving(pages.total + max(0, least - pages.available))
            raise UserError(f"no room for a pool: {why}; {do} is the least")
    else:
        why, room = f"as asked, in {where}", asked
    size = room // extent * extent
    if not size:
        raise UserError(f"a pool of {show(room)} is smaller than one extent ({show(extent)})")
    rooms = (memory.shm_free_bytes, memory.available_bytes, memory.cgroup_room_bytes)
    most = min(room for room in rooms if room is not None)
    if _ledger(size) > most:
        raise UserError(
            f"the ledger of a pool of {show(size)} needs {show(_ledger(size))} in /dev/shm: there "
            f"is room for {show(most)}"
        )
    return PoolSize(size, f"pool of {show(size)}: {why}")


def _default(memory: Memory, extent: int) -> PoolSize:
    available = memory.available_bytes
    bounds = [
        (
            int(memory.total_bytes * SHARE_OF_RAM),
            f"a quarter of {show(memory.total_bytes)} of memory",
        ),
        (
            _without_ledger(available - MARGIN),
            f"{show(available)} of available memory less {show(MARGIN)} and the ledger",
        ),
        (
            int(memory.shm_free_bytes * SHARE_OF_SHM),
            f"{SHARE_OF_SHM:.0%} of {show(memory.shm_free_bytes)} free in /dev/shm",
        ),
    ]
    if memory.cgroup_room_bytes is not None:
        room = memory.cgroup_room_bytes
        why = f"{show(room)} left of the cgroup limit less {show(MARGIN)} and the ledger"
        bounds.append((_without_ledger(room - MARGIN), why))
    bound, why = min(bounds)
    size = bound // extent * extent
    if size < max(SMALLEST_DEFAULT, extent):
        hint = "enlarge it (docker run --shm-size 8g)" if "/dev/shm" in why else "free some"
        raise UserError(f"no room for a pool: {why}; {hint}, or name a small --pool-size")
    return PoolSize(size, f"pool of {show(size)}: {why}")


def _explicit(asked: int, memory: Memory, extent: int) -> PoolSize:
    if asked < extent:
        raise UserError(f"a pool of {show(asked)} is smaller than one extent ({show(extent)})")
    rooms = [
        (memory.shm_free_bytes, "is free in /dev/shm"),
        (memory.available_bytes, "of memory is available"),
    ]
    if memory.cgroup_room_bytes is not None:
        rooms.append((memory.cgroup_room_bytes, "is left of the cgroup's memory limit"))
    room, where = min(rooms)
    size = asked // extent * extent
    if max(asked, size + _ledger(size)) > room:
        hint = "; enlarge it (docker run --shm-size 8g), or name less" if "shm" in where else ""
        beside = "" if asked > room else f" with its ledger of {show(_ledger(size))}"
        raise UserError(f"a pool of {show(asked)}{beside} does not fit: {show(room)} {where}{hint}")
    rounded = "" if size == asked else f", rounded down to whole extents of {show(extent)}"
    return PoolSize(size, f"pool of {show(size)}: as asked{rounded}")


def _ledger(size: int) -> int:
    """Bytes of the file beside a pool of this size, once all of it is real."""
    return file_bytes(size // MIN_PAGE)


def _without_ledger(room: int) -> int:
    """So much of this room a pool may take whose ledger is to fit too."""
    return room - _ledger(max(0, room))


def pin_note(size: int) -> str | None:
    """The line for a user whose pinned pool RLIMIT_MEMLOCK does not allow; None: it does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= size:
        return None
    return (
        f"only {show(soft)} may be locked (ulimit -l), {show(size)} is wanted: the pool stays "
        "unpinned; raise memlock in limits.conf, or LimitMEMLOCK= of the unit"
    )


def look(shm: str = "/dev/shm", root: Path = Path("/")) -> Memory:
    """Read what memory the machine has now.

    Args:
        shm: the file system that the pool is to be in.
        root: another tree, in tests.

    Raises:
        UserError: there is no such file system.
    """
    info = _numbers(root / "proc/meminfo")
    try:
        free = os.statvfs(shm)
    except OSError as error:
        raise UserError(
            f"no shared memory at {shm}: {error.strerror}; mount a tmpfs there"
        ) from error
    rooms = list(_cgroup_rooms(root))
    return Memory(
        total_bytes=info["MemTotal:"] * 1024,
        available_bytes=info["MemAvailable:"] * 1024,
        cgroup_room_bytes=min(rooms) if rooms else None,
        shm_free_bytes=free.f_bavail * free.f_frsize,
    )


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Room below each memory limit that applies to us: our own cgroup's and all its ancestors'.

    In a container the path in /proc/self/cgroup may not exist below the mount; its missing parts
    are skipped, and the mount itself is the container's own cgroup.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, inactive = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            inactive = "total_inactive_file"
        else:
            continue
        mount = root / "sys/fs/cgroup" / base
        inside = mount / path.lstrip("/")
        for folder in (inside, *inside.parents):
            ceiling = (folder / limit).read_text().strip() if (folder / limit).is_file() else "max"
            if ceiling != "max":
                # The kernel drops clean page cache before it refuses, so that counts as room.
                cache = _numbers(folder / "memory.stat").get(inactive, 0)
                used = int((folder / usage).read_text()) - cache
                yield max(0, int(ceiling) - max(0, used))
            if folder == mount:
                break


def _numbers(path: Path) -> dict[str, int]:
    """A file of `name number ...` lines."""
    words = (line.split() for line in path.read_text().splitlines())
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1}
