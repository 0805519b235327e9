"""What every supervised process says and hears: hello, beat, neighbours, death, drain.

A child says Hello, gets Welcome, learns of its neighbours and dials those that its kind talks to.
It says Beat on its own clock; a child that cannot (stopped, or in an endless loop) is killed.  The
other parts of its actor, its *crew*, hear of all that from here.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from pegaflow.wire.control import (
    BEAT_NS,
    Beat,
    BindAgain,
    Bye,
    Drain,
    Gone,
    Hello,
    LogLevel,
    LogTo,
    Neighbour,
    Welcome,
    listed,
)
from pegaflow.wire.jobs import Done, SetLog
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import NOBODY, SUPERVISOR, Address

from .contract import (
    Actor,
    Dial,
    Do,
    Effect,
    Hangup,
    Note,
    On,
    Part,
    Rebind,
    Send,
    Sender,
    Stop,
    on,
)


class Member(Part):
    """Our place in the group.

    Args:
        address: this life.
        supervisor: whose child we are; a child does not outlive it.
        hello: what we say of ourselves.
        dials: names of the neighbours that this kind of actor dials.
        counts: of the actor.
    """

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        dials: tuple[str, ...],
        *,
        counts: Counter[str],
    ) -> None:
        self.address = address
        self.supervisor = supervisor
        self.hello = hello
        self.dials = dials
        self.welcome: Welcome | None = None  # set once; nothing is served before it
        self.peers: dict[str, Address] = {}  # living neighbours that we dialled, by name
        self.draining = False
        self.drained: Callable[[int], list[Effect]] = lambda now: self.farewell()
        self.measured: Callable[[], dict[str, int]] = dict  # gauges of our process, by the shell
        self._counts = counts
        self._crew: tuple[Part, ...] = ()
        self._next_beat_ns = 0  # when to say Beat again

    def lead(self, *crew: Part) -> None:
        """Said once: who hears of what we hear, in this order."""
        assert not self._crew
        self._crew = crew

    def handlers(self) -> Iterable[On]:
        """The words of the supervisor."""
        return (
            on(Welcome, self._on_welcome, SUPERVISOR),
            on(Neighbour, self._on_neighbour, SUPERVISOR),
            on(Gone, self._on_gone, SUPERVISOR),
            on(BindAgain, self._on_bind_again, SUPERVISOR),
            on(Drain, self._on_drain, SUPERVISOR),
            on(LogTo, self._on_log_to, SUPERVISOR),
        )

    def knows(self, sender: Address) -> bool:
        """Our supervisor and those whom we dial are heard in the life that we know them by."""
        if sender.name == SUPERVISOR:
            return sender == self.supervisor
        return sender.name not in self.dials or sender == self.peers.get(sender.name)

    def start(self, now: int) -> list[Effect]:
        """Say Hello to the supervisor."""
        self._next_beat_ns = now + BEAT_NS
        return [Send(self.supervisor, self.hello)]

    def wake_at(self) -> int | None:
        """The next beat."""
        return self._next_beat_ns

    def wake(self, now: int) -> list[Effect]:
        """Say Beat when it is due."""
        if now < self._next_beat_ns:
            return []
        self._next_beat_ns = now + BEAT_NS
        gauges = {name: n for part in self._crew for name, n in part.gauges().items()}
        remarks = tuple(line for part in self._crew for line in part.remarks())
        beat = Beat(listed(self._counts), listed({**gauges, **self.measured()}), remarks)
        others = [effect for part in self._crew for effect in part.beat(now)]
        return [Send(self.supervisor, beat), *others]

    def farewell(self) -> list[Effect]:
        """The last effects of this life."""
        return [Send(self.supervisor, Bye()), Stop()]

    def peer(self, name: str) -> Address:
        """The living neighbour of this name, or NOBODY."""
        return self.peers.get(name, NOBODY)

    def tell(self, name: str, msg: Message) -> list[Effect]:
        """Tell the living neighbour of this name; without one, nobody."""
        to = self.peers.get(name)
        return [Send(to, msg)] if to is not None else []

    def _on_welcome(self, sender: Sender, msg: Welcome, now: int) -> list[Effect]:
        assert self.welcome is None
        self.welcome = msg
        return [effect for part in self._crew for effect in part.up(msg, now)]

    def _on_neighbour(self, sender: Sender, msg: Neighbour, now: int) -> list[Effect]:
        if msg.address.name not in self.dials:
            return []
        self.peers[msg.address.name] = msg.address
        met = [effect for part in self._crew for effect in part.met(msg.address, now)]
        return [Dial(msg.address, msg.endpoint), *met]

    def _on_gone(self, sender: Sender, msg: Gone, now: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.peers.get(msg.address.name) == msg.address:
            del self.peers[msg.address.name]
            effects.append(Hangup(msg.address))
        return effects + [e for part in self._crew for e in part.gone(msg.address, now)]

    def _on_bind_again(self, sender: Sender, msg: BindAgain, now: int) -> list[Effect]:
        return [Rebind()]

    def _on_drain(self, sender: Sender, msg: Drain, now: int) -> list[Effect]:
        if self.draining:
            return []
        self.draining = True
        return self.drained(now)

    def _on_log_to(self, sender: Sender, msg: LogTo, now: int) -> list[Effect]:
        def set_(done: Done, now: int) -> list[Effect]:
            if done.status is Status.OK:
                return []
            facts = (("file", msg.file), ("why", done.note))
            return [Note("log_not_reopened", facts, LogLevel.WARNING)]

        return [Do(SetLog(msg.level, msg.file), set_)]


def member_of(actor: Actor) -> Member:
    """The member among the parts of a child."""
    return next(part for part in actor.parts if isinstance(part, Member))
