"""Simulated SSDs that lie, below the real device code (device/disk.py).

A `Medium` is a directory: what the kernel has of each file, what of it is durable, and what has
been written since.  When the host goes down, any part of what was not synced may be lost or torn,
in any order; so may names.  When a process is killed, nothing is lost but the write that it was in.
Bits rot, disks fail for a while, fill up, are slow, become read-only or vanish.

`Ops` are the system calls of one process on them.
"""

import errno
import os
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from pegaflow.core.segments.codec import padded
from pegaflow.device.disk import Disk
from pegaflow.device.diskops import Identity, Ops
from pegaflow.wire.diskjobs import ReadRun
from pegaflow.wire.jobs import Result
from pegaflow.wire.message import Message

from .files import Files
from .world import Died, Proc, World

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

MODES = {
    "eio": errno.EIO,
    "full": errno.ENOSPC,
    "readonly": errno.EROFS,
    "gone": errno.ENOENT,
    "slow": 0,
    "replaced": 0,
}
"""How a disk may be broken for a while, and what it says; replaced: an empty directory is there."""

SPACE = 1 << 30
"""Bytes of a file system."""

TOP = ("/", "/ssd")
"""What is above the directories."""


@dataclass(slots=True, eq=False)
class _File:
    """One file: as the kernel has it, as it is durable, and the writes between the two."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: list[tuple[int, bytes]] = field(default_factory=list)
    name_durable: bool = False
    inode: int = 0


class Medium:
    """A directory on a disk of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inode = 1
        self.made = 0  # files so far: an inode is not used again
        self.decoy: Medium | None = None  # what is in its place while it is replaced
        self.files: dict[str, _File] = {}
        self.unlinked: dict[str, _File] = {}  # whose names are still there after a crash, perhaps
        self.mode = ""  # how it is broken now
        self.owner: Proc | None = None  # who has locked it
        self.rots = 0  # bits that have turned so far

    def crash(self) -> None:
        """The host goes down: what was not synced is there, torn or lost."""
        rng = self.world.rng
        for name, file in list(self.unlinked.items()):
            if name not in self.files and rng.random() < 0.3:
                self.files[name] = file
                self.world.counts["a removed segment is back"] += 1
        self.unlinked.clear()
        for name, file in list(self.files.items()):
            if not file.name_durable and rng.random() < 0.5:
                del self.files[name]
                continue
            data = bytearray(file.durable)
            for offset, part in rng.sample(file.dirty, len(file.dirty)):
                dice = rng.random()
                if dice < 0.3:
                    continue
                first, last = 0, len(part)
                if dice < 0.8:
                    self.world.counts["a write is torn"] += 1
                    sectors = len(part) // SECTOR
                    first, last = sorted(rng.randrange(sectors + 1) * SECTOR for _ in range(2))
                data.extend(bytes(max(0, offset + last - len(data))))
                data[offset + first : offset + last] = part[first:last]
            file.data, file.durable, file.dirty = data, bytes(data), []
            file.name_durable = True

    def replace(self) -> None:
        """Another directory is there from now on, until the mode is another one."""
        self.decoy = Medium(self.world)
        self.decoy.inode = self.inode + 1

    def rot(self) -> bool:
        """A bit of some file turns, where something was written."""
        files = [f for _, f in sorted(self.files.items()) if any(f.data)]
        if not files:
            return False
        file = self.world.rng.choice(files)
        at = self.world.rng.randrange(len(file.data))
        while not file.data[at]:
            at = self.world.rng.randrange(len(file.data))
        file.data[at] ^= 1 << self.world.rng.randrange(8)
        self.rots += 1
        if at < len(file.durable):
            durable = bytearray(file.durable)
            durable[at] = file.data[at]
            file.durable = bytes(durable)
        file.dirty = [(o, bytes(file.data[o : o + len(p)])) for o, p in file.dirty]
        return True


class SimOps(Ops):
    """System calls of one process."""

    def __init__(self, world: World, proc: Proc, files: Files) -> None:
        self._world, self._proc, self._files = world, proc, files
        self._media = files.media
        self._fds: dict[int, tuple[Medium, _File | None]] = {}
        self._last = 2

    def draw(self, size: int) -> bytes:
        return self._world.entropy.randbytes(size)

    def _medium(self, path: str) -> tuple[Medium, str]:
        assert path in self._media, "a file is named below its directory's descriptor"
        medium = self._media[path]
        return (medium.decoy if medium.mode == "replaced" else medium) or medium, ""

    def _fail(self, medium: Medium, *modes: str) -> None:
        """What a broken disk says, or a good one now and then."""
        rng = self._world.rng
        if medium.mode in modes and (medium.mode != "eio" or rng.random() < 0.5):
            self._world.counts[f"the disk says {medium.mode}"] += 1
            number = MODES[medium.mode]
            raise OSError(number, os.strerror(number))
        if "eio" in modes and self._world.rough and rng.random() < 0.004:
            self._world.counts["the disk says eio"] += 1
            raise OSError(errno.EIO, "it does not want to")

    def _named(self, name: str, at: int | None) -> tuple[Medium, str]:
        return self._medium(name) if at is None else (self._fds[at][0], name)

    def open(self, path: str, flags: int, at: int | None = None) -> int:
        if path in TOP:
            self._last += 1
            return self._last
        medium, name = self._named(path, at)
        creates = bool(flags & os.O_CREAT)
        self._fail(medium, "gone", *(("readonly", "full") if creates else ()))
        if medium.mode == "readonly" and flags & os.O_RDWR:
            raise OSError(errno.EROFS, "read-only")
        file = medium.files.get(name)
        if name and file is None:
            if not creates:
                raise FileNotFoundError(errno.ENOENT, "no such file")
            medium.made += 1
            file = medium.files[name] = _File(inode=1000 + medium.made)
        elif name and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "file exists")
        self._last += 1
        self._fds[self._last] = medium, file
        return self._last

    def close(self, fd: int) -> None:
        if fd not in self._fds:
            return  # of what is above the directories
        medium, file = self._fds.pop(fd)
        if file is None and medium.owner is self._proc:
            medium.owner = None

    def make_folder(self, path: str) -> None:
        self._fail(self._media[path], "gone")

    def lock(self, fd: int) -> None:
        medium, file = self._fds[fd]
        if file is not None:
            assert medium.owner is self._proc, "a file is locked before its directory"
            return
        if medium.owner is not None and medium.owner.alive:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")
        medium.owner = self._proc

    def mode(self, fd: int) -> int:
        return stat.S_IFDIR | 0o700 if self._fds[fd][1] is None else stat.S_IFREG | 0o600

    def links(self, fd: int) -> int:
        medium, file = self._fds[fd]
        return sum(other is file for other in medium.files.values())

    def identity(self, fd: int) -> Identity:
        medium, file = self._fds[fd]
        return Identity(0, (medium if file is None else file).inode)

    def find(self, path: str, at: int | None = None) -> Identity:
        if path in TOP:
            return Identity(0, 0)
        folder, _, below = path.rpartition("/")
        if at is None and folder in self._media:  # only looked at: nothing is opened by a path
            medium, name = self._medium(folder)[0], below
        else:
            medium, name = self._named(path, at)
        self._fail(medium, "gone")
        if not name:
            return Identity(0, medium.inode)
        if name not in medium.files:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return Identity(0, medium.files[name].inode)

    def unmounted(self, path: str) -> str:
        return ""

    def names(self, fd: int) -> list[str]:
        medium = self._fds[fd][0]
        self._fail(medium, "gone", "eio")
        return list(medium.files)

    def space(self, fd: int) -> tuple[int, int]:
        used = sum(len(file.data) for file in self._fds[fd][0].files.values())
        full = self._fds[fd][0].mode == "full"
        return (0 if full else SPACE - used), SPACE

    def size(self, fd: int) -> int:
        return len(self._file(fd).data)

    def _file(self, fd: int) -> _File:
        file = self._fds[fd][1]
        assert file is not None
        return file

    def _some(self, length: int) -> int:
        """Bytes that one call moves: mostly all."""
        if not self._world.rough or self._world.rng.random() < 0.98 or length < SECTOR:
            return length
        self._world.counts["a short count of the disk"] += 1
        return self._world.rng.randrange(1, length // SECTOR + 1) * SECTOR

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        medium, file = self._fds[fd][0], self._file(fd)
        self._fail(medium, "eio", "gone")
        there = max(0, len(file.data) - offset)
        left = min(self._some(sum(map(len, into))), there)
        done = 0
        for part in into:
            count = min(len(part), left - done)
            part[:count] = file.data[offset + done : offset + done + count]
            done += count
        return done

    def write(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:
        medium, file = self._fds[fd][0], self._file(fd)
        self._fail(medium, "eio", "gone", "readonly", "full")
        data = b"".join(map(bytes, parts))
        data = data[: self._some(len(data))]
        dies = self._world.rough and self._world.rng.random() < 0.002
        if dies:
            data = data[: self._world.rng.randrange(len(data) // SECTOR + 1) * SECTOR]
        file.data.extend(bytes(max(0, offset + len(data) - len(file.data))))
        file.data[offset : offset + len(data)] = data
        file.dirty.append((offset, data))
        if dies:
            self._world.counts["dies in a write"] += 1
            raise Died("crashes while it writes the log")
        self._files.wrote()
        return len(data)

    def allocate(self, fd: int, size: int) -> None:
        medium, file = self._fds[fd][0], self._file(fd)
        self._fail(medium, "eio", "gone", "readonly", "full")
        file.data.extend(bytes(max(0, size - len(file.data))))

    def cut(self, fd: int, size: int) -> None:
        medium, file = self._fds[fd][0], self._file(fd)
        self._fail(medium, "eio", "gone", "readonly")
        del file.data[size:]
        file.data.extend(bytes(max(0, size - len(file.data))))
        file.dirty = [(at, part[: size - at]) for at, part in file.dirty if at < size]

    def sync(self, fd: int) -> None:
        medium, file = self._fds[fd]
        self._fail(medium, "eio", "gone")
        if file is not None:
            file.durable, file.dirty = bytes(file.data), []

    def sync_all(self, fd: int) -> None:
        if fd not in self._fds:
            return
        self.sync(fd)
        medium, file = self._fds[fd]
        if file is None:
            for other in medium.files.values():
                other.name_durable = True
            medium.unlinked.clear()

    def unlink(self, name: str, at: int) -> None:
        medium = self._fds[at][0]
        self._fail(medium, "gone", "readonly")
        if name not in medium.files:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        medium.unlinked[name] = medium.files.pop(name)

    def rename(self, name: str, to: str, at: int) -> None:
        medium = self._fds[at][0]
        self._fail(medium, "gone", "readonly")
        if to in medium.files:
            medium.unlinked[to] = medium.files[to]
        medium.files[to] = medium.files.pop(name)


class _Pool:
    """The pool as the device wants it."""

    def __init__(self, data: bytearray) -> None:
        self.map = data


class FlushWork:
    """The device of a simulated flusher: every job is done at one moment, and told at another."""

    def __init__(self, world: World, proc: Proc, files: Files, pool: bytearray) -> None:
        self._world, self._files = world, files
        ops = SimOps(world, proc, files)
        paths = sorted(files.media)
        self._disk = Disk(paths, 0, _Pool(pool), ops, known=files.known)  # type: ignore[arg-type]

    def _slow(self, job: Message) -> bool:
        path = sorted(self._files.media)[job.volume]  # type: ignore[attr-defined]
        return self._files.media[path].mode == "slow"

    def part(self, job: Message) -> Generator[None, None, Result]:
        """A job as work for a thread."""
        dice = self._world.rng.random() if self._world.rough else 1.0
        if self._slow(job):
            dice = 0.0
        steps = (1000, 6000) if dice < 0.004 else (20, 400) if dice < 0.03 else (0, 3)
        for _ in range(self._world.between(*steps)):
            yield
        done = self._disk.work(job)
        if isinstance(job, ReadRun):
            length = padded(job.payload_bytes)
            self._files.written += [(at, at + length) for at in job.pages]
        for _ in range(self._world.between(0, 3)):
            yield  # it is done, and nobody knows
        return done
