"""What every supervised actor has in common: hello, beat, neighbours, drain.

A child says Hello, gets Welcome, learns of its neighbours and dials those that its kind talks to.
It says Beat on its own clock; a child that cannot (stopped, or in an endless loop) is killed.
"""

from collections.abc import Callable

from pegaflow.wire.control import (
    BEAT_NS,
    Beat,
    BindAgain,
    Bye,
    Drain,
    Gone,
    Hello,
    LogTo,
    Neighbour,
    Welcome,
    listed,
)
from pegaflow.wire.jobs import Done, SetLog
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import NOBODY, SUPERVISOR, Address

from .contract import Actor, Dial, Do, Effect, Hangup, Note, Rebind, Send, Sender, Stop


class Child(Actor):
    """An actor under the supervisor.  Subclasses extend the hooks below."""

    DIALS: tuple[str, ...] = ()
    """Names of the neighbours that this kind of actor dials."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address)
        self.supervisor = supervisor  # constant: a child does not outlive its supervisor
        self.hello = hello
        self.measured: Callable[[], dict[str, int]] = dict  # gauges of our process, by the shell
        self.welcome: Welcome | None = None  # set once; nothing is served before it
        self.peers: dict[str, Address] = {}  # living neighbours that we dialled, by name
        self.next_beat = 0  # when to say Beat again
        self.draining = False
        self.on(Welcome, self._on_welcome, SUPERVISOR)
        self.on(Neighbour, self._on_neighbour, SUPERVISOR)
        self.on(Gone, self._on_gone, SUPERVISOR)
        self.on(BindAgain, self._on_bind_again, SUPERVISOR)
        self.on(Drain, self._on_drain, SUPERVISOR)
        self.on(LogTo, self._on_log_to, SUPERVISOR)

    def knows(self, sender: Address) -> bool:
        """Our supervisor and those whom we dial are heard in the life that we know them by."""
        if sender.name == SUPERVISOR:
            return sender == self.supervisor
        dialled = sender.name in self.DIALS
        return super().knows(sender) and (not dialled or sender == self.peers.get(sender.name))

    def start(self, now: int) -> list[Effect]:
        """Say Hello to the supervisor."""
        self.next_beat = now + BEAT_NS
        return [Send(self.supervisor, self.hello)]

    def wake_at(self) -> int | None:
        """The next beat."""
        return self.next_beat

    def wake(self, now: int) -> list[Effect]:
        """Say Beat when it is due."""
        if now < self.next_beat:
            return []
        self.next_beat = now + BEAT_NS
        gauges = listed({**self.gauges(), **self.measured()})
        beat = Beat(listed(self.counts), gauges, self.remarks())
        return [Send(self.supervisor, beat), *self.beat(now)]

    def remarks(self) -> tuple[str, ...]:
        """Hook: what is not as it should be, one line for people each."""
        return ()

    def beat(self, now: int) -> list[Effect]:
        """Hook: what else to do at each beat."""
        return []

    def up(self, now: int) -> list[Effect]:
        """Hook: Welcome has come."""
        return []

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Hook: a process of the group is proven dead."""
        return []

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """Hook: a neighbour that we dial is up, perhaps in a new life."""
        return []

    def drain(self, now: int) -> list[Effect]:
        """Hook: finish what is open; say `farewell` at once or later."""
        return self.farewell()

    def farewell(self) -> list[Effect]:
        """The last effects of this life."""
        return [Send(self.supervisor, Bye()), Stop()]

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """Hook: an answer to a question that has already ended.  Grants go back."""
        return []

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
        return self.up(now)

    def _on_neighbour(self, sender: Sender, msg: Neighbour, now: int) -> list[Effect]:
        if msg.address.name not in self.DIALS:
            return []
        self.peers[msg.address.name] = msg.address
        return [Dial(msg.address, msg.endpoint), *self.met(msg.address, now)]

    def _on_gone(self, sender: Sender, msg: Gone, now: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.peers.get(msg.address.name) == msg.address:
            del self.peers[msg.address.name]
            effects.append(Hangup(msg.address))
        return effects + self.gone(msg.address, now)

    def _on_bind_again(self, sender: Sender, msg: BindAgain, now: int) -> list[Effect]:
        return [Rebind()]

    def _on_drain(self, sender: Sender, msg: Drain, now: int) -> list[Effect]:
        if self.draining:
            return []
        self.draining = True
        return self.drain(now)

    def _on_log_to(self, sender: Sender, msg: LogTo, now: int) -> list[Effect]:
        def set_(done: Done, now: int) -> list[Effect]:
            if done.status is Status.OK:
                return []
            return [Note("log_not_reopened", (("file", msg.file), ("why", done.note)), "warning")]

        return [Do(SetLog(msg.level, msg.file), set_)]
