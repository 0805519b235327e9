"""Logging: one event name per line an operator may act on, to stderr.

On a terminal a line is written for a person, elsewhere as one JSON object.  A process says once
who it is (`configure(..., actor=, incarnation=)`) and every line of it carries that; an engine or
a request is bound where it is known: `get_logger().bind(engine=...)`.

Two rules are enforced here and not left to the caller.  Keys and payloads (any `bytes`) are shown
only at debug; above it their number and length stand in their place.  And a line that carries
`repeats=<key>` is rate-limited per (event, key): the first passes, the next ones within the
interval are counted, and the line that passes after it says how many were `suppressed`.

What others have to say in a process of ours (a library through `logging` or `warnings`, the
interpreter about an exception that nobody caught) comes as a line of ours too, `library_log` or
`uncaught`, and is rate-limited alike (`take_over`; never in an engine's process, whose log is not
ours).

Whoever redirects stderr to a file may move that file away: `reopen` then puts a new one of the same
name in its place, behind the same descriptor, so that whatever writes to it needs not know.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import logging
import os
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence, Set
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from pegaflow.wire.control import LogLevel
from pegaflow.wire.units import Bytes, Count, Seconds

REPEAT_INTERVAL_S: Seconds = 10.0
"""A person reads about that often; a dead neighbour repeats itself a thousand times a second."""

REPEAT_KEYS: Count = 1024
"""Keys that are remembered; the longest silent one is forgotten first, which costs one extra
line."""

_STDOUT, _STDERR = 1, 2

BYTES_SHOWN: Bytes = 32
"""Enough of a key to find it again, too little of a payload to flood the terminal."""


class LogFormat(enum.StrEnum):
    """The form of the log."""

    AUTO = "auto"  # for a person on a terminal, JSON elsewhere
    CONSOLE = "console"
    JSON = "json"


class Repeats:
    """Which repetitions of an event are worth a line, by the clock it is given.

    Args:
        clock: in seconds.
        interval_s: in which one line of each event and key passes.
    """

    def __init__(self, clock: Callable[[], float], interval_s: float = REPEAT_INTERVAL_S) -> None:
        self._clock = clock
        self._interval_s = interval_s
        #: (when the next line may pass, lines dropped since the last), longest silent first.
        self._seen: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()  # every thread of the process logs

    def passes(self, event: str, key: Hashable) -> int | None:
        """Whether one more line may be written now.

        Args:
            key: what makes two lines of one event the same.

        Returns:
            How many were dropped before this line; None if it is to be dropped as well.
        """
        with self._lock:
            return self._passes(event, key, self._clock())

    def _passes(self, event: str, key: Hashable, now_s: float) -> int | None:
        not_before_s, suppressed = self._seen.get((event, key), (now_s, 0))
        if now_s < not_before_s:
            self._seen[event, key] = (not_before_s, suppressed + 1)
            return None
        self._seen[event, key] = (now_s + self._interval_s, 0)
        self._seen.move_to_end((event, key))
        if len(self._seen) > REPEAT_KEYS:
            self._seen.popitem(last=False)
        return suppressed

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """As a structlog processor."""
        if "repeats" not in event:
            return event
        suppressed = self.passes(str(event["event"]), event.pop("repeats"))
        if suppressed is None:
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        return event


class Lossy:
    """A stream that loses what it cannot write: a full disk or a reader that went ends nobody.

    It goes past the stream's buffer: what stays there fails once more when the process ends, which
    turns its exit status into 120.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        buffer = getattr(out, "buffer", None)
        self._raw = getattr(buffer, "raw", buffer)

    def write(self, text: str) -> None:
        """Write, or lose it."""
        with contextlib.suppress(OSError):
            if self._raw is None:
                self._out.write(text)
            else:
                self._raw.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Flush, or lose it."""
        with contextlib.suppress(OSError):
            self._out.flush()


def configure(
    level: str = LogLevel.INFO,
    format: str = LogFormat.AUTO,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    **who: object,
) -> None:
    """Set logging up for this process.

    Args:
        level: a LogLevel.
        format: a LogFormat.
        stream: None: stderr.
        clock: for repeated lines, in seconds.
        **who: facts that stand in every line: actor, incarnation.
    """
    out = sys.stderr if stream is None else stream
    on_terminal = format == LogFormat.CONSOLE or (format == LogFormat.AUTO and out.isatty())

    def stamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**who, **event}

    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=out.isatty())]
        if on_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            Repeats(clock),
            stamp,
            structlog.processors.add_log_level,
            hide_bytes,
            structlog.processors.TimeStamper(fmt="iso", utc=not on_terminal),
            *renderer,
        ],
        wrapper_class=_filtering(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Lossy(out))),
        # Loggers made before this call must obey it too.
        cache_logger_on_first_use=False,
    )


def _filtering(level: str) -> Any:
    return structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])


def set_level(level: str) -> None:
    """From now on only lines of this level and above."""
    structlog.configure(wrapper_class=_filtering(level))


def file() -> str:
    """The path of the file that stderr is; empty if it is none (a terminal, a pipe, a journal) or
    has lost its name."""
    try:
        path = os.readlink(f"/proc/self/fd/{_STDERR}")
        same = os.path.samestat(os.lstat(path), os.fstat(_STDERR))
        return path if same and stat.S_ISREG(os.fstat(_STDERR).st_mode) else ""
    except OSError:
        return ""


def reopen(path: str) -> str:
    """Have stderr (and stdout, if both are one file) write to the file of this name.

    Args:
        path: is made if it is not there; a link is not followed.

    Returns:
        Why not, in which case nothing changes; '' if it is done.
    """
    try:
        old = os.fstat(_STDERR)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= os.O_NOCTTY | os.O_NONBLOCK  # whatever else has that name by now
        fd = os.open(path, flags, stat.S_IMODE(old.st_mode) & 0o666)
    except OSError as err:
        return err.strerror or str(err)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "not a regular file"
        both = [n for n in (_STDOUT, _STDERR) if _is(n, old)]
        for number in both:
            os.dup2(fd, number)  # what exec gives to a child
    finally:
        os.close(fd)
    return ""


def _is(number: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(number), found)
    except OSError:
        return False


def get_logger(**bound: object) -> FilteringBoundLogger:
    """The process's logger with `bound` in every line."""
    return cast(FilteringBoundLogger, structlog.get_logger(**bound))


class _Libraries(logging.Handler):
    """Lines of others as lines of ours: repetitions are those of one logger and one text, whatever
    is filled into it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a text and its values differ
            facts: dict[str, Any] = {"library": record.name, "said": record.getMessage().strip()}
            if record.exc_info and record.exc_info[0] is not None:
                facts["exc_info"] = record.exc_info
            repeats = (record.name, str(record.msg))
            get_logger().log(record.levelno, "library_log", **facts, repeats=repeats)


_LIBRARIES = _Libraries(logging.WARNING)

_Caught = tuple[type[BaseException], BaseException, TracebackType | None]


def take_over() -> None:
    """From now on all that this process says is a line of ours."""
    logging.getLogger().addHandler(_LIBRARIES)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _uncaught((kind, error, trace), "main")
    sys.unraisablehook = lambda said: _uncaught(
        (said.exc_type, said.exc_value or said.exc_type(), said.exc_traceback), "nobody's"
    )
    threading.excepthook = lambda said: _uncaught(
        (said.exc_type, said.exc_value or said.exc_type(), said.exc_traceback),
        said.thread.name if said.thread else "unknown",
    )


def _uncaught(caught: _Caught, thread: str) -> None:
    repeats = (caught[0].__name__, thread)
    get_logger().critical("uncaught", thread=thread, exc_info=caught, repeats=repeats)


def enable_faulthandler() -> None:
    """A crash in C code (a bad mapping, a lost file) leaves every thread's stack on stderr."""
    faulthandler.enable(file=sys.stderr, all_threads=True)


def hide_bytes(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replaces keys and payloads: in full only at debug, and even there only their beginning."""
    show = _beginning if method == LogLevel.DEBUG else _stand_in
    return {name: show(value) for name, value in event.items()}


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | Set) and not isinstance(value, str)


def _stand_in(value: Any) -> object:
    if _is_bytes(value):
        return f"<{len(value)} bytes>"
    if _is_list(value) and any(map(_is_bytes, value)):
        return f"<{len(value)} keys>"
    return value


def _beginning(value: Any) -> object:
    if _is_bytes(value):
        rest = "..." if len(value) > BYTES_SHOWN else ""
        return bytes(value[:BYTES_SHOWN]).hex() + rest
    if isinstance(value, Sequence) and _is_list(value):
        return [_beginning(item) for item in value]
    return value
