"""From a file, a pipe or standard input to JSON values, one at a time.

What a file is told by its first bytes and never by its name: gzip, zstd, bzip2 and xz are unpacked
while they are read, a byte order mark says the encoding (UTF-8 without one), and a file that cannot
hold JSON (Parquet, Arrow, zip) is named. Nothing seeks, so a pipe is as good as a file.

The values are one per line, as traces mostly are, or one JSON document over many lines, or several
of them one after the other; the elements of a list are values of their own. A document over many
lines is held as text, and one value of it is parsed at a time. A file that does not begin as JSON
gives its first line, as text, and no more: whoever knows the formats says what it is.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pegaflow.wire.units import Count

from .errors import TraceError

STDIN = "-"

TEXT_MAX: Count = 1 << 30
"""Characters of one line, or of a document over many lines: above it the file is no trace."""

_HEAD_BYTES = 8
_PACKED_BYTES = 1 << 14
_ZSTD = b"\x28\xb5\x2f\xfd"
_NOT_JSON = {
    b"PAR1": "a Parquet file: convert it to JSON lines",
    b"ARROW1": "an Arrow file: convert it to JSON lines",
    b"PK\x03\x04": "a zip archive: unpack it, or `unzip -p FILE | pegaflow replay -`",
}
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class Readable(Protocol):
    """As much of a binary file as is used here."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Value:
    """One JSON value and where it stands."""

    where: str  # FILE:LINE, for people
    data: object


@contextmanager
def opened(path: Path) -> Iterator[Iterator[Value]]:
    """The values of a file, or of standard input for `-`.

    Raises:
        TraceError: it cannot be opened, unpacked, decoded or parsed.
    """
    name = shown(path)
    try:
        if str(path) == STDIN:
            yield _values(_decoded(sys.stdin.buffer, name), name)
            return
        with path.open("rb") as raw:
            yield _values(_decoded(raw, name), name)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{name}: {why}") from error


def shown(path: Path) -> str:
    """The file's name for people, whatever bytes it is made of."""
    if str(path) == STDIN:
        return "stdin"
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _decoded(raw: Readable, name: str) -> io.TextIOBase:
    """Unpack and decode, as the first bytes say."""
    stream = _unpacked(raw, name)
    head, stream = _peeked(stream)
    for magic, what in _NOT_JSON.items():
        if head.startswith(magic):
            raise TraceError(f"{name} is {what}")
    encoding = next((text for mark, text in _MARKS if head.startswith(mark)), "utf-8")
    return io.TextIOWrapper(stream, encoding)


def _unpacked(raw: Readable, name: str) -> Readable:
    head, stream = _peeked(raw)
    openers: dict[bytes, Callable[[io.BufferedReader], Readable]] = {
        b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
        b"BZh": lambda packed: bz2.BZ2File(packed),
        b"\xfd7zXZ\x00": lambda packed: lzma.LZMAFile(packed),
        _ZSTD: lambda packed: _zstd(packed, name),
    }
    for magic, opener in openers.items():
        if head.startswith(magic):
            return opener(stream)
    return stream


def _zstd(packed: Readable, name: str) -> Readable:
    try:
        import zstandard
    except ImportError:
        raise TraceError(
            f"{name} is packed with zstd, and the package zstandard is not installed: "
            f"pip install 'pegaflow[zstd]', or `zstdcat FILE | pegaflow replay -`"
        ) from None
    return _Zstd(packed, zstandard)


def _peeked(stream: Readable) -> tuple[bytes, io.BufferedReader]:
    """The first bytes, and a stream that still has them."""
    head = b""
    while len(head) < _HEAD_BYTES and (more := stream.read(_HEAD_BYTES - len(head))):
        head += more
    return head, io.BufferedReader(_Joined(head, stream))


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of their stream."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._head or self._rest.read(len(view))
        data, self._head = data[: len(view)], self._head[len(view) :]
        view[: len(data)] = data
        return len(data)


class _Zstd:
    """Zstd frames, one after the other.

    Not the library's own stream reader, which takes a file that was cut off for a whole one.
    """

    def __init__(self, packed: Readable, zstandard: Any) -> None:
        self._packed = packed
        self._zstandard = zstandard
        self._frame: Any = None  # the one under way
        self._more = b""  # read, and not yet given to a frame
        self._ready = io.BytesIO()

    def read(self, size: int, /) -> bytes:
        while not (data := self._ready.read(size)):
            packed = self._more or self._packed.read(_PACKED_BYTES)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a zstd frame")
                break
            self._unpack(packed)
        return data

    def _unpack(self, packed: bytes) -> None:
        if self._frame is None:
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = io.BytesIO(self._frame.decompress(packed))
        except self._zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._more = b""
        if self._frame.eof:
            self._more, self._frame = self._frame.unused_data, None


def _values(text: io.TextIOBase, name: str) -> Iterator[Value]:
    number = 0
    first = True
    while line := text.readline(TEXT_MAX):
        number += 1
        if len(line) >= TEXT_MAX:
            raise TraceError(f"{name}:{number}: more than {TEXT_MAX} characters in one line")
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not first:
                raise TraceError(f"{name}:{number}: {_why(error)}") from error
            if line.lstrip()[0] in "{[":
                yield from _document(line + text.read(TEXT_MAX), name, number)
            else:
                yield Value(f"{name}:{number}", line.strip())
            return
        first = False
        yield from _each(data, f"{name}:{number}")


def _document(text: str, name: str, line: int) -> Iterator[Value]:
    """JSON that does not keep to lines: values one after the other."""
    if len(text) >= TEXT_MAX:
        raise TraceError(f"{name}: more than {TEXT_MAX} characters in a document over many lines")
    decoder = json.JSONDecoder()
    at = counted = 0
    while True:
        start = next((n for n in range(at, len(text)) if not text[n].isspace()), len(text))
        if start == len(text):
            return
        line += text.count("\n", counted, start)
        counted = start
        try:
            data, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            line += text.count("\n", counted, getattr(error, "pos", start))
            raise TraceError(f"{name}:{line}: {_why(error)}") from error
        yield from _each(data, f"{name}:{line}")


def _each(data: object, where: str) -> Iterator[Value]:
    if not isinstance(data, list):
        yield Value(where, data)
        return
    for number, item in enumerate(data, start=1):
        yield Value(f"{where}, item {number}", item)


def _why(error: Exception) -> str:
    return getattr(error, "msg", None) or str(error)
