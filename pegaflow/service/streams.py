"""The three standard streams, whatever state they were left in by whoever started us.

Closed: Python has no stream then, and the next file that is opened gets its number: a line to
stderr of some library would go into the pool.  So `settle` opens /dev/null in its place, for us and
for our children.  Narrow: what the locale cannot write is written with escapes.  Full, or a pipe
that nobody reads: `written` makes one line and exit status 1 of it.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def settle() -> None:
    """Have all three, from now on.  For the first line of a command."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _occupy(number)
            stream = open(number, mode, closefd=False)  # noqa: SIM115 (it is ours to the end)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:  # the interpreter's own
        sys.stdout = _Output(sys.stdout)
        setattr(sys, "__stdout__", sys.stdout)  # noqa: B010 (it is declared final)


class _Output(io.TextIOWrapper):
    """Standard output that remembers what it could not write."""

    def __init__(self, was: io.TextIOWrapper) -> None:
        encoding, lines = was.encoding, was.line_buffering
        super().__init__(was.detach(), encoding, "backslashreplace", line_buffering=lines)
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        """As any stream."""
        try:
            return super().write(text)
        except OSError as err:
            self.failed = err
            raise

    def flush(self) -> None:
        """As any stream."""
        try:
            super().flush()
        except OSError as err:
            self.failed = err
            raise


@contextlib.contextmanager
def written(program: str) -> Iterator[None]:
    """A command that ends in here has written all that it had to say, or says why not."""
    try:
        yield
    except OSError:
        why = _unwritten(sys.stdout)
        if why is None:
            raise
    except SystemExit as end:
        why = _unwritten(sys.stdout)
        if why is None or end.code:
            raise
    else:
        why = _unwritten(sys.stdout)
        if why is None:
            return
    if why:
        print(f"{program}: cannot write the output: {why}", file=sys.stderr)
    raise SystemExit(1)


def _occupy(number: int) -> None:
    """Make this descriptor /dev/null, unless it is something already."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)


def _unwritten(out: TextIO) -> str | None:
    """Why not all is written: '' if its reader has gone; None if it is."""
    failed: OSError | None = getattr(out, "failed", None)
    try:
        out.flush()
    except OSError as err:
        failed = err
    except ValueError:  # closed
        return None
    if failed is None:
        return None
    # What is left would be tried once more when the interpreter ends.
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, out.fileno())
        os.close(null)
    return "" if failed.errno == errno.EPIPE else str(failed.strerror)
