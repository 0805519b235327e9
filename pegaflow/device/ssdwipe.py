"""`--fresh-ssd`: remove every segment of a directory, if it is a log of ours and nobody uses it.

It is ours if it has a marker (ssdfolder.py).  One from before there were markers is ours if every
file in it that is called a segment has the head of one.  Otherwise nothing is removed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pegaflow.core.segments.codec import HEAD_BYTES, read_head
from pegaflow.core.segments.marker import MARKER, OfLaterFormatError, unpack

from .diskops import Ops, buffer, said
from .ssdfolder import NAME, SEGMENT_FLAGS, Folder, Known, UnusableError, lock


def remove_log(path: str, ops: Ops | None = None) -> tuple[int, str]:
    """Remove every segment in a directory.

    Args:
        path: of the directory; that it is not there is no failure.

    Returns:
        Bytes that were removed; and in one line why not more, '' if all were.
    """
    ops = ops or Ops()
    folder = Folder(path, ops, Known())
    removed = 0
    try:
        marker = folder.enter()
        names = sorted(filter(NAME.fullmatch, ops.names(folder.fd)))
        why = _why_not_ours(ops, folder, names, marker)
        if why:
            return 0, f"{path} {why}: nothing is removed"
        for name in names:
            with _opened(ops, folder, name) as fd:
                if not lock(ops, fd):
                    return removed, f"{path}/{name} is in use by another service; stop that first"
                removed += ops.size(fd)
                ops.unlink(name, folder.fd)
    except FileNotFoundError:
        return removed, ""
    except UnusableError:
        return removed, f"{path} is in use by another service; stop that one first"
    except OSError as error:
        return removed, said(path, error)
    finally:
        folder.close()
    return removed, ""


def _why_not_ours(ops: Ops, folder: Folder, names: list[str], marker: bytes | None) -> str:
    try:
        if marker is not None and (not marker or unpack(marker) is not None):
            return ""
    except OfLaterFormatError as error:
        return f"is a log of format {error}, which this version does not know"
    for name in names:
        with _opened(ops, folder, name) as fd:
            page = memoryview(buffer(HEAD_BYTES))
            ops.read(fd, [page], 0)
            if any(page) and isinstance(read_head(bytes(page)), str):
                return f"has no {MARKER}, and {name} is no segment of ours"
    return ""


@contextmanager
def _opened(ops: Ops, folder: Folder, name: str) -> Iterator[int]:
    fd = ops.open(name, os.O_RDONLY | SEGMENT_FLAGS, folder.fd)
    try:
        yield fd
    finally:
        ops.close(fd)
