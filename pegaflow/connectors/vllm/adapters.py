"""LoRA adapters, told apart by content.

vLLM's block hashes cover an adapter's name and path, not its weights: an adapter that was trained
on and stored under its old name would be served KV of the old one. So the keys of a request with an
adapter are vLLM's hashes mixed with a digest of the adapter's files.

Which weights the engine has in memory is another question than what lies on disk now: vLLM loads an
adapter once, when it is first used or named to it, and again after it had to make room, and tells
no connector. The digest is right at all times only if the files have not changed since before the
engine could load them. That is so if no file of the adapter was changed, replaced or renamed after
the scheduler was made (by ctime, which nobody can set back), nor changed since the adapter was
first seen here. And one id must stand for one path, for vLLM keeps what it has loaded under an id.

An adapter of which this cannot be said (trained while the engine runs; without files) is served by
vLLM as ever: its requests have no keys here, so they neither read nor save. One line says so.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from .digests import SETTLED_S, Digests
from .files import Unestablished, fingerprint, listed, locate


class SaltedHashes(Sequence[bytes]):
    """vLLM's list of hashes, which grows, seen through an adapter.

    Args:
        salt: what the adapter is, in 1..64 bytes.
    """

    def __init__(self, hashes: Sequence[bytes], salt: bytes) -> None:
        self._hashes = hashes
        self._salt = salt

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._mixed(one) for one in self._hashes[index]]
        return self._mixed(self._hashes[index])

    def __iter__(self) -> Iterator[bytes]:
        return map(self._mixed, self._hashes)

    def _mixed(self, one: bytes) -> bytes:
        return mixed(one, self._salt)


def mixed(one: bytes, salt: bytes) -> bytes:
    """One hash, seen through an adapter."""
    return blake2b(bytes(one), digest_size=32, key=salt).digest()


class Adapted:
    """A request of vLLM, whose hashes are seen through its adapter.

    Args:
        salt: as of SaltedHashes; None: nothing of the request is looked up or saved.
    """

    def __init__(self, request: Any, salt: bytes | None) -> None:
        self._request = request
        self._salt = salt  # None: it has no keys

    @property
    def block_hashes(self) -> Sequence[bytes]:
        """One hash per hash block of its tokens."""
        if self._salt is None:
            return ()
        return SaltedHashes(self._request.block_hashes, self._salt)

    def seen(self, one: bytes) -> bytes:
        """A hash of vLLM's, seen through the adapter; empty: the request has no keys."""
        return b"" if self._salt is None else mixed(one, self._salt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def unsalted(source: Any) -> Any:
    """vLLM's request itself, whose hashes are vLLM's own."""
    return source._request if isinstance(source, Adapted) else source


@dataclass(slots=True)
class _Seen:
    """One id of an adapter."""

    path: str  # as vLLM was told
    files: tuple[object, ...]  # the stats of its files when it was first seen
    digest: str
    why: str = ""  # not empty: it is not what it was, for the rest of this engine's life


@dataclass(slots=True)
class Adapters:
    """See the module."""

    settings: str  # what the configuration says of all adapters
    tell: Callable[[str, str], None]  # one line: the adapter's name, and why it has no keys
    whole: bool = False  # whether files are read whole
    made_s: float = field(default_factory=time.time)  # before vLLM could load any adapter
    _seen: dict[int, _Seen] = field(default_factory=dict)  # by vLLM's id
    _digests: Digests = field(default_factory=Digests)

    def source(self, request: Any) -> Any:
        """The request, as its keys are made of it."""
        asked = getattr(request, "lora_request", None)
        if asked is None:
            return request
        seen = self._look(asked)
        if seen.why:
            return Adapted(request, None)
        said = f"{self.settings}\n{seen.digest}".encode()
        return Adapted(request, blake2b(said, digest_size=32, person=b"pegaflow.lora").digest())

    def _look(self, asked: Any) -> _Seen:
        number, path = int(asked.lora_int_id), str(asked.lora_path)
        seen = self._seen.get(number)
        why = ""
        files: tuple[object, ...] = ()
        digest = ""
        try:
            where = locate(os.path.expanduser(path))
            files, newest = _stats(where)
            if newest > self.made_s - SETTLED_S:
                why = "its files were changed after this engine was started"
            elif seen is None:
                digest = fingerprint(where, self.whole, self._digests)
        except Unestablished as error:
            why = str(error)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        if seen is None:
            seen = self._seen[number] = _Seen(path, files, digest)
        elif not why and (seen.path, seen.files) != (path, files):
            why = f"id {number} stood for other files before"
        if why and not seen.why:
            seen.why = why
            self.tell(str(asked.lora_name), why)
        return seen


def _stats(path: str) -> tuple[tuple[object, ...], float]:
    """(what changes if a file of the adapter does, the newest ctime); raises OSError."""
    found: list[object] = []
    newest = 0.0
    for name, file in [("", path), *listed(path)]:
        for stat in (os.lstat(file), os.stat(file)):
            found.append((name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns))
            newest = max(newest, stat.st_ctime)
    return tuple(found), newest
