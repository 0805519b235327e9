"""An operating system that fails on demand."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pegaflow.device.diskops import Identity, Ops

CALLS = (
    "open",
    "make_folder",
    "lock",
    "mode",
    "links",
    "identity",
    "find",
    "names",
    "space",
    "size",
    "read",
    "write",
    "allocate",
    "cut",
    "sync",
    "sync_all",
    "unlink",
    "rename",
)


class Failing(Ops):
    """The nth call of a kind from now on fails with this error, and so does every later one."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, tuple[int, int]] = {}  # call -> how many still go well, errno
        self.most = 0  # bytes that one read or write moves; 0: all
        self.free: int | None = None  # bytes of the file system

    def will_fail(self, call: str, number: int, after: int = 0) -> None:
        self.fail[call] = (after, number)

    def _try(self, call: str, then: Callable[[], Any]) -> Any:
        self.calls[call] += 1
        left, number = self.fail.get(call, (1, 0))
        if number and not left:
            raise OSError(number, os.strerror(number))
        if number:
            self.fail[call] = (left - 1, number)
        return then()

    def open(self, path: str, flags: int, at: int | None = None) -> int:
        return int(self._try("open", lambda: super(Failing, self).open(path, flags, at)))

    def make_folder(self, path: str) -> None:
        self._try("make_folder", lambda: super(Failing, self).make_folder(path))

    def lock(self, fd: int) -> None:
        self._try("lock", lambda: super(Failing, self).lock(fd))

    def mode(self, fd: int) -> int:
        return int(self._try("mode", lambda: super(Failing, self).mode(fd)))

    def links(self, fd: int) -> int:
        return int(self._try("links", lambda: super(Failing, self).links(fd)))

    def identity(self, fd: int) -> Identity:
        return Identity(*self._try("identity", lambda: super(Failing, self).identity(fd)))

    def find(self, path: str, at: int | None = None) -> Identity:
        return Identity(*self._try("find", lambda: super(Failing, self).find(path, at)))

    def names(self, fd: int) -> list[str]:
        return list(self._try("names", lambda: super(Failing, self).names(fd)))

    def space(self, fd: int) -> tuple[int, int]:
        free, total = self._try("space", lambda: super(Failing, self).space(fd))
        return (free if self.free is None else self.free), total

    def size(self, fd: int) -> int:
        return int(self._try("size", lambda: super(Failing, self).size(fd)))

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        some = self._some(into)
        return int(self._try("read", lambda: super(Failing, self).read(fd, some, offset)))

    def write(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:
        some = self._some(parts)
        return int(self._try("write", lambda: super(Failing, self).write(fd, some, offset)))

    def _some(self, parts: Sequence[memoryview]) -> Sequence[memoryview]:
        return [parts[0][: self.most]] if self.most else parts

    def allocate(self, fd: int, size: int) -> None:
        self._try("allocate", lambda: super(Failing, self).allocate(fd, size))

    def cut(self, fd: int, size: int) -> None:
        self._try("cut", lambda: super(Failing, self).cut(fd, size))

    def sync(self, fd: int) -> None:
        self._try("sync", lambda: super(Failing, self).sync(fd))

    def sync_all(self, fd: int) -> None:
        self._try("sync_all", lambda: super(Failing, self).sync_all(fd))

    def unlink(self, name: str, at: int) -> None:
        self._try("unlink", lambda: super(Failing, self).unlink(name, at))

    def rename(self, name: str, to: str, at: int) -> None:
        self._try("rename", lambda: super(Failing, self).rename(name, to, at))


ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT)
