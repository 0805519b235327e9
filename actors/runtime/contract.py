"""The contract: an actor is a function of messages and time.

In: a message and `now` (CLOCK_MONOTONIC nanoseconds).  Out: a list of effects.  No clock, socket,
thread, randomness or file inside.  The shell (loop.py) runs an actor over real sockets; the
simulator runs the same object under a virtual clock.

Handlers return lists: a generator that nobody iterates would silently do nothing.  A message that
an actor did not declare never reaches it (host.py counts and drops it), so one that reaches it and
has no handler is a bug of ours and an assertion.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pegaflow.wire.jobs import Done
from pegaflow.wire.message import Message, message
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

MS = 1_000_000
"""Nanoseconds in a millisecond."""


@message(220)
class NoAnswer(Message):
    """What a question gets instead of an answer: EXPIRED or PEER_GONE."""

    status: Status


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message and, if it is a question, what the answer has to quote."""

    address: Address
    question: int = 0
    deadline: int = 0
    remote: bool = False  # a client on TCP: its pids, and the memory they name, may not be ours
    asked: int = 0  # a client's question: when it came
    method: str = ""  # and what kind it is of; empty: nobody times the answer


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a neighbour something."""

    to: Address
    message: Message


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a question; at most once per question."""

    to: Sender
    message: Message


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a neighbour; `then` gets the answer or a NoAnswer, exactly once, by the deadline."""

    to: Address
    message: Message
    deadline: int
    then: "Then"


@dataclass(frozen=True, slots=True)
class Do:
    """Device work for the shell; `then` gets its completion."""

    job: Message
    then: "Done_"


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a link to a neighbour."""

    address: Address
    endpoint: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the link to a neighbour; what is queued on it is lost."""

    address: Address


@dataclass(frozen=True, slots=True)
class Rebind:
    """The file of our inbox is gone: listen at its path again; links that stand go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End this process.  An empty reason is a clean end."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the log that an operator may act on; `event` is a stable name.

    Lines of one event and one `repeats` are rate-limited.  Keys and payloads are never facts.
    """

    event: str
    facts: tuple[tuple[str, str | int], ...] = ()
    level: str = "info"
    repeats: str = ""


Effect = Send | Reply | Ask | Do | Dial | Hangup | Rebind | Stop | Note
Then = Callable[[Message, int], list[Effect]]
Done_ = Callable[[Done, int], list[Effect]]
Handler = Callable[[Sender, Any, int], list[Effect]]

_M = TypeVar("_M", bound=Message)


class Actor:
    """Base of all actors: dispatch by message type, and the counters."""

    def __init__(self, address: Address) -> None:
        self.address = address  # this life; constant
        self.counts: Counter[str] = Counter()  # what happened so far; only grows
        self.measured: Callable[[], dict[str, int]] = dict  # gauges of our process, by the shell
        self._handlers: dict[type[Message], tuple[Handler, frozenset[str]]] = {}

    def on(
        self, kind: type[_M], handler: Callable[[Sender, _M, int], list[Effect]], *senders: str
    ) -> None:
        """Declare that messages of this kind are accepted from actors of these names."""
        assert kind not in self._handlers and senders
        self._handlers[kind] = (handler, frozenset(senders))

    def accepts(self, kind: type[Message], sender: str) -> bool:
        """Whether this message from an actor of this name may be given to `receive`."""
        entry = self._handlers.get(kind)
        return entry is not None and sender in entry[1]

    def knows(self, sender: Address) -> bool:
        """Whether frames of this life are heard.  Of our own name nobody's are: what the shell
        informs us of comes in our own name, and through no socket."""
        return sender.name != self.address.name

    def start(self, now: int) -> list[Effect]:
        """The first effects of this life."""
        return []

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """Effects of one message."""
        assert self.accepts(type(msg), sender.address.name), f"{type(msg).__name__} from {sender}"
        return self._handlers[type(msg)][0](sender, msg, now)

    def wake_at(self) -> int | None:
        """When `wake` wants to be called next, if nothing else happens."""
        return None

    def wake(self, now: int) -> list[Effect]:
        """Effects of time having passed."""
        return []

    def gauges(self) -> dict[str, int]:
        """Numbers that describe the present state, for `status`."""
        return {}

    def check(self) -> None:
        """Assert every invariant."""
