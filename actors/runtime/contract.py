"""The contract: an actor is a function of messages and time.

In: a message and `now` (CLOCK_MONOTONIC nanoseconds).  Out: a list of effects.  No clock, socket,
thread, randomness or file inside.  The shell (loop.py) runs an actor over real sockets; the
simulator runs the same object under a virtual clock.

An actor is composed of parts.  A part owns a piece of the state and handles the messages about it;
what it needs of other parts it is given by construction, so that references among parts point one
way, and no part calls its actor.  What concerns all of them (a process has died, a beat is due) is
told to each, in the order in which the actor names its parts.

Handlers return lists: a generator that nobody iterates would silently do nothing.  A message that
an actor did not declare never reaches it (host.py counts and drops it), so one that reaches it and
has no handler is a bug of ours and an assertion.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.jobs import Job, Result
from pegaflow.wire.message import Message, message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Constant
from pegaflow.wire.values import Address

MS: Constant = 1_000_000
"""Nanoseconds in a millisecond."""

_R = TypeVar("_R", bound=Result)


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
    asked_ns: int = 0  # a client's question: when it came
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


@dataclass(frozen=True, slots=True, init=False)
class Do:
    """Device work for the shell; `then` gets its result, of a class that the job names.

    Args:
        then: gets the result and `now`, once; mypy holds its type against what the job may end
            with.
    """

    job: Job[Any]
    then: "Completion"

    def __init__(self, job: Job[_R], then: Callable[[_R, int], "list[Effect]"]) -> None:
        object.__setattr__(self, "job", job)
        object.__setattr__(self, "then", then)


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a link to a neighbour, or to another host."""

    address: Address
    endpoint: str  # path of a socket; or tcp://...
    key: bytes = b""  # on TCP: the other's public key in Z85; empty: it has none


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
    level: LogLevel = LogLevel.INFO
    repeats: str = ""


@dataclass(frozen=True, slots=True)
class Redeliver:
    """A message that had to wait is received now, as if it had just come."""

    sender: Sender
    message: Message


Effect = Send | Reply | Ask | Do | Dial | Hangup | Rebind | Stop | Note | Redeliver
Then = Callable[[Message, int], list[Effect]]
Completion = Callable[[Any, int], list[Effect]]
Handler = Callable[[Sender, Any, int], list[Effect]]

_M = TypeVar("_M", bound=Message)


class On(NamedTuple):
    """Messages of this kind are accepted from actors of these names."""

    kind: type[Message]
    handler: Handler
    senders: frozenset[str]


def on(kind: type[_M], handler: Callable[[Sender, _M, int], list[Effect]], *senders: str) -> On:
    """An entry of `Part.handlers`.

    Args:
        handler: gets who sent it, the message, and `now`.
        *senders: names of actors; from others the message is counted and dropped.
    """
    assert senders
    return On(kind, handler, frozenset(senders))


class Part:
    """A piece of an actor's state, with the messages about it.  Everything here may be left out."""

    def handlers(self) -> Iterable[On]:
        """The messages that it handles."""
        return ()

    def knows(self, sender: Address) -> bool:
        """Whether frames of this life are heard."""
        return True

    def start(self, now: int) -> list[Effect]:
        """Its first effects in this life."""
        return []

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The supervisor has said what everybody needs to know: once, before any neighbour is met.

        Args:
            welcome: constant for this life.
            now: CLOCK_MONOTONIC in nanoseconds, here and everywhere in an actor.
        """
        return []

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """A neighbour that we dial is up, perhaps in a new life, which knows nothing of us."""
        return []

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """A process of the group is proven dead: this life of it says and does nothing more."""
        return []

    def beat(self, now: int) -> list[Effect]:
        """What else to do with each beat."""
        return []

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """An answer to a question that has already ended.  Grants go back."""
        return []

    def wake_at(self) -> int | None:
        """When `wake` wants to be called next, if nothing else happens.

        Returns:
            CLOCK_MONOTONIC, in nanoseconds; None: never.
        """
        return None

    def wake(self, now: int) -> list[Effect]:
        """Effects of time having passed, if it is time; it may not be."""
        return []

    def gauges(self) -> dict[str, int]:
        """Numbers that describe the present state, for `status`."""
        return {}

    def remarks(self) -> tuple[str, ...]:
        """What is not as it should be, one line for people each."""
        return ()

    def check(self) -> None:
        """Assert every invariant."""


class Actor:
    """Base of all actors: its parts, dispatch by message type, and the counters."""

    def __init__(self, address: Address) -> None:
        self.address = address  # this life; constant
        self.abroad: Address | None = None  # its name between hosts, if it speaks with any
        self.counts: Counter[str] = Counter()  # what happened so far; only grows
        self.parts: tuple[Part, ...] = ()  # in the order in which they hear of everything
        self._timed: tuple[Part, ...] = ()  # those that ever want to be woken,
        self._woken: tuple[Part, ...] = ()  # that do anything then,
        self._picky: tuple[Part, ...] = ()  # and that do not hear everybody
        self._handlers: dict[type[Message], On] = {}

    def compose(self, *parts: Part) -> None:
        """Said once, in the constructor."""
        assert not self.parts
        self.parts = parts
        self._timed = tuple(p for p in parts if type(p).wake_at is not Part.wake_at)
        self._woken = tuple(p for p in parts if type(p).wake is not Part.wake)
        self._picky = tuple(p for p in parts if type(p).knows is not Part.knows)
        for part in parts:
            for entry in part.handlers():
                assert entry.kind not in self._handlers
                self._handlers[entry.kind] = entry

    def accepts(self, kind: type[Message], sender: str) -> bool:
        """Whether this message from an actor of this name may be given to `receive`."""
        entry = self._handlers.get(kind)
        return entry is not None and sender in entry.senders

    def knows(self, sender: Address) -> bool:
        """Whether frames of this life are heard.  Of our own name nobody's are: what the shell
        informs us of comes in our own name, and through no socket."""
        return sender.name != self.address.name and all(p.knows(sender) for p in self._picky)

    def start(self, now: int) -> list[Effect]:
        """The first effects of this life."""
        return [effect for part in self.parts for effect in part.start(now)]

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """Effects of one message, which `accepts` has passed.

        Args:
            sender: its `question` is 0 if no answer is expected.
        """
        assert self.accepts(type(msg), sender.address.name), f"{type(msg).__name__} from {sender}"
        return self._handlers[type(msg)].handler(sender, msg, now)

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """An answer to a question that has already ended."""
        return [effect for part in self.parts for effect in part.late(sender, msg, now)]

    def wake_at(self) -> int | None:
        """When `wake` wants to be called next, if nothing else happens."""
        times = [at for part in self._timed if (at := part.wake_at()) is not None]
        return min(times, default=None)

    def wake(self, now: int) -> list[Effect]:
        """Effects of time having passed.  What a part delivers again is received before the next
        part is woken."""
        effects: list[Effect] = []
        for part in self._woken:
            for effect in part.wake(now):
                if isinstance(effect, Redeliver):
                    effects += self.receive(effect.sender, effect.message, now)
                else:
                    effects.append(effect)
        return effects

    def gauges(self) -> dict[str, int]:
        """Numbers that describe the present state, for `status`."""
        return {name: value for part in self.parts for name, value in part.gauges().items()}

    def remarks(self) -> tuple[str, ...]:
        """What is not as it should be, one line for people each."""
        return tuple(line for part in self.parts for line in part.remarks())

    def check(self) -> None:
        """Assert every invariant."""
        for part in self.parts:
            part.check()
