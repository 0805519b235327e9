"""Signals: what each of them means, from the first line of ours to the last.

A command is held back first: its first line (entry.py) blocks every signal, and `hold` leaves those
blocked that somebody may send, so that none of them ends it in the middle of its imports (which
take a third of a second) with a traceback or without a word.  What comes meanwhile waits in the
kernel.  Then either of two ways:

* A command that does something and ends calls `interruptible`: SIGINT, SIGTERM and SIGHUP raise
  `Interrupted` in the main thread, so that what was started is ended by its `finally`, and the
  process then dies of that very signal (`die_of`), which is what a shell looks at.  Where a
  process is started, but not yet in the hands of a `finally`, `held` delays them; the child leaves
  Ctrl-C to its parent (`obedient`).
* A service leaves them blocked for good and reads them from a descriptor in its loop (`Signals`),
  with the meanings below.

A process inherits the mask of blocked signals through exec.  So the children of a service are deaf
from their first instruction; `deaf` then makes that a disposition.  They hear of everything from
the supervisor, by messages: a signal that a terminal sends to the whole process group (Ctrl-C) has
its meaning once, and none of them is ended in the wrong order.

What a signal means to the service:

    INT, TERM, PWR   drain and stop; the second one kills what has not stopped yet
    QUIT             stop at once, as that second one
    HUP              read the configuration again, open the log file anew
    USR1             write the state of every process to the log
    USR2             log at level debug; again: at the configured level
    TSTP, TTIN, CONT job control: everybody stops, and goes on
    ABRT, BUS, FPE, ILL, SEGV
                     a fault: every thread's stack on stderr, then death; the children die with it
    CHLD, URG, WINCH, PIPE, TTOU, XFSZ
                     nothing
    all others       a line in the log

and to a child: USR1 prints every thread's stack on stderr, job control and faults are as above, and
everything else is ignored.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

FAULTS = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""Something is broken, or somebody wants to know where we hang."""

JOB_CONTROL = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGCONT})
"""The shell's, with their default actions."""

NOTHING = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGPIPE,
        signal.SIGTTOU,
        signal.SIGXFSZ,
    }
)
"""Of no meaning.  A write to a closed pipe, to a file that is too large or from the background to
a terminal is a failed or a lost write, and no end of a service."""

STOP = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGPWR})
"""Drain and stop."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command."""

SENT = (
    frozenset(signal.valid_signals())
    - FAULTS
    - JOB_CONTROL
    - NOTHING
    - {
        signal.SIGKILL,
        signal.SIGSTOP,
    }
)
"""Everything else: what somebody sends on purpose."""


class Interrupted(BaseException):
    """A signal ends this command; everything on the way out cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def hold(before: Collection[int] | None = None) -> None:
    """From now on signals wait.  `before`: what was blocked before entry.py blocked all of them."""
    if before is None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SENT)
    else:
        signal.pthread_sigmask(signal.SIG_SETMASK, {*SENT, *before})


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT)


class _Ending:
    """The signal that ends this command, between its arrival and the exception."""

    def __init__(self) -> None:
        self.waits = False  # not now
        self.due = 0  # the signal that has come meanwhile; 0: none has

    def heard(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first one counts, the rest are too late."""
        for ending in ENDING:
            signal.signal(ending, signal.SIG_IGN)
        if not self.waits:
            raise Interrupted(number)
        self.due = number


_ending = _Ending()


@contextmanager
def held() -> Iterator[None]:
    """Signals wait meanwhile, and for as long as they want in a process that is started here.

    The mask is this thread's, for the process that is started; `_ending` holds back what another
    thread of ours has taken.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT)
    _ending.waits = True
    try:
        yield
    finally:
        _ending.waits = False
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    due, _ending.due = _ending.due, 0
    if due:
        raise Interrupted(due)


def interruptible() -> None:
    """A command that ends: the first of ENDING raises `Interrupted`."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _ending.heard)
    _release()


def obedient() -> None:
    """A child of a command: Ctrl-C is its parent's, and the rest ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _release()


def die_of(number: int) -> None:
    """End this process by a signal, as if nobody had handled it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def deaf() -> None:
    """A child of a service: what is sent to it is ignored, but for a look at its threads."""
    for number in SENT | NOTHING - {signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    _release()


class Heard(NamedTuple):
    """A signal that has come."""

    number: int
    sender: int  # pid; 0: the kernel (a terminal), or somebody of another pid namespace


class Signals:
    """The signals of a service, as records of a descriptor: they stay blocked, so no handler of
    theirs ever runs.  (Handlers would: one for each signal that is due, on top of each other, on
    the small stack that faulthandler has made for all of them.)"""

    def __init__(self) -> None:
        for number in NOTHING - {signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        hold()
        self.fd = _signalfd()

    def read(self) -> Iterator[Heard]:
        """What has come since the last time."""
        while True:
            try:
                record = os.read(self.fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            number, _, _, sender = struct.unpack_from("IiiI", record)
            yield Heard(number, sender)


_RECORD_BYTES = 128  # of a struct signalfd_siginfo, and room for a sigset_t


def _signalfd() -> int:
    import ctypes  # which no other command needs

    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.create_string_buffer(_RECORD_BYTES)
    libc.sigemptyset(mask)
    for number in SENT:
        libc.sigaddset(mask, int(number))
    fd = int(libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


def name(number: int) -> str:
    """What people call it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
