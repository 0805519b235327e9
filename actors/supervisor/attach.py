"""Attach: where an engine finds its session.

* An engine that asks twice gets the same session.
* An engine id whose session belongs to another generation gets a new session once the old one is
  proven dead; while the old engine's process lives, the newcomer is refused, so two engines cannot
  supersede each other for ever.
* A spare that does not say Serving in time is the watchdog's; its engine waits for the end of it.
* An engine whose sessions fail one after the other is refused for a while (restarts.py), so that it
  does not use up everybody's spares.
* A joiner (OpenSession.opens is False) waits until somebody has opened its generation, and never
  gets a spare itself: what outlived its opener cannot bring a superseded generation back.
* Who finds no spare waits (opens.py), and a spare more is started for each opener who waits.  While
  index or allocator is missing everybody waits.

Starting a spare is staffing's, killing and burying it the watchdog's and the membership's.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import count

from pegaflow.actors.runtime.contract import MS, Ask, Effect, Note, On, Part, Reply, Sender, on
from pegaflow.wire.control import SAME_HOST, OpenSession, Refused, Serve, Serving, SessionAt
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import CLIENT, Address

from .children import Assignment, ChildRecord, Children, ChildState, who
from .opens import Open, Opens, stopping
from .restarts import FAILURES_MAX, PERIOD_NS, Restarts
from .staffing import Staffing
from .stage import Lifecycle
from .watchdog import SERVE_NS

ENGINES_MAX: Count = 256
"""Engines of one host: eight devices, each shared by more than can be.  Each costs a process."""

ENGINE_MAX: Count = 256
"""Characters of an engine id: it stands in log lines, messages and the state of the group."""

NAMESPACE_MAX: Bytes = 64
"""Bytes of a namespace, and of a probe: a hash of whatever made it is enough."""

OPENS_MAX: Count = 256
"""Engines waiting for a session at once."""


class Attach(Part):
    """Gives sessions to engines."""

    def __init__(
        self,
        children: Children,
        lifecycle: Lifecycle,
        *,
        restarts: Restarts,
        opens: Opens,
        staffing: Staffing,
        pid_namespace: int,
    ) -> None:
        self._children = children
        self._lifecycle = lifecycle
        self._restarts = restarts
        self._opens = opens
        self._staffing = staffing
        self._pid_namespace = pid_namespace  # that our pids are of; 0: unknown

    def handlers(self) -> Iterable[On]:
        """The question of an engine."""
        return (on(OpenSession, self._on_open, CLIENT),)

    def beat(self, now: int) -> list[Effect]:
        """Forget who has waited too long."""
        if not self._lifecycle.stopping:
            self._opens.expire(now)
        return []

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """A spare says that it serves after its time: it was starved, or the watchdog has it."""
        child = self._children.get(sender)
        served = self._serves(child) if child and isinstance(msg, Serving) else []
        return served + self.go_on(now)

    def go_on(self, now: int) -> list[Effect]:
        """Something has changed: serve the engines that wait, then start what is missing."""
        served: list[Effect] = []
        if self._lifecycle.ready():
            for open_ in self._opens.take():
                served += self._serve(open_, now)
        return served + self._staffing.staff(now)

    def check(self) -> None:
        """A session serves one engine."""
        engines = [child.engine for child in self._children if child.engine and not child.killed]
        assert len(engines) == len(set(engines)), engines

    def _on_open(self, sender: Sender, msg: OpenSession, now: int) -> list[Effect]:
        if self._lifecycle.stopping:
            return [Reply(sender, stopping())]
        refused = self._refusal(msg)
        if refused is None:
            self._opens.add(Open(sender, msg))
        answer: list[Effect] = [] if refused is None else [Reply(sender, refused)]
        return answer + self.go_on(now)

    def _refusal(self, msg: OpenSession) -> Refused | None:
        """An answer that needs no look at the sessions; None: it may wait for one."""
        why = _fault(msg)
        if why:
            return Refused(Status.BAD_REQUEST, why)
        if len(self._opens) >= OPENS_MAX:
            return Refused(Status.BUSY, "too many engines wait for a session")
        engines = {child.engine for child in self._children if child.engine}
        if len(engines | {msg.engine} | self._opens.engines()) > ENGINES_MAX:
            why = f"{ENGINES_MAX} engines are being served, and one service takes no more"
            return Refused(Status.BUSY, why)
        return None

    def _serve(self, open_: Open, now: int) -> list[Effect]:
        """Answer an engine, or let it wait."""
        msg = open_.msg
        child = self._children.of_engine(msg.engine)
        if child is not None:
            return self._join(child, open_)
        rest = self._restarts.engine_rest_ns(msg.engine, now)
        if rest:
            period, seconds = PERIOD_NS // (1000 * MS), rest // (1000 * MS) + 1
            why = (
                f"the sessions of engine {msg.engine!r} failed {FAILURES_MAX} times within "
                f"{period} s: it gets none for {seconds} s; the service's log says why"
            )
            return [Reply(open_.sender, Refused(Status.BUSY, why))]
        spare = min(self._children.spares(), key=lambda child: bool(child.warming), default=None)
        if spare is None or not msg.opens:
            self._opens.add(open_)
            return []
        return self._assign(spare, open_, now)

    def _join(self, child: ChildRecord, open_: Open) -> list[Effect]:
        """This engine has a session: another client of it asks, or another life of it."""
        assert child.assignment is not None
        msg, opener = open_.msg, child.assignment.opener
        if child.killed or child.state is ChildState.DRAINING:
            self._opens.add(open_)  # until the old one is proven dead
            return []
        status, why = Status.DUPLICATE, ""
        if opener.generation != msg.generation and not msg.opens:
            status = Status.SUPERSEDED
            why = f"engine id {msg.engine!r} is served in another generation than this rank's"
        elif opener.generation != msg.generation:
            why = f"engine id {msg.engine!r} is in use by the living process {opener.pid}"
        elif (opener.namespace, opener.probe) != (msg.namespace, msg.probe):
            why = f"engine id {msg.engine!r} is open with another model or configuration"
        elif self._is_foreign(open_) and not child.assignment.foreign:
            why = f"engine id {msg.engine!r} was opened in another pid namespace than this one's"
        if why:
            return [Reply(open_.sender, Refused(status, why))]
        if child.state is ChildState.ASSIGNED:
            self._opens.add(open_)  # until it has said Serving
            return []
        return [Reply(open_.sender, self._session_at(child, open_))]

    def _assign(self, spare: ChildRecord, open_: Open, now: int) -> list[Effect]:
        msg, foreign = open_.msg, self._is_foreign(open_)
        taken = {child.seat for child in self._children}
        seat = next(seat for seat in count(1) if seat not in taken)
        spare.assignment = Assignment(msg, seat, foreign, since_ns=now)
        spare.state = ChildState.ASSIGNED

        def serving(answer: Message, now: int) -> list[Effect]:
            effects = self._serves(spare) if isinstance(answer, Serving) else []
            if effects:
                effects.append(Reply(open_.sender, self._session_at(spare, open_)))
            else:
                self._opens.add(open_)  # until the spare serves after all, or is proven dead
            return effects + self.go_on(now)

        serve = Serve(
            engine=msg.engine,
            generation=msg.generation,
            pid=msg.pid,
            started_ticks=msg.started_ticks,
            namespace=msg.namespace,
            probe=msg.probe,
            remote=open_.sender.remote or foreign,
            foreign=foreign,
        )
        return [Ask(spare.address, serve, now + SERVE_NS, serving)]

    def _serves(self, spare: ChildRecord) -> list[Effect]:
        """A spare says that it serves its engine; nothing if that comes too late."""
        if spare.killed or spare.state is not ChildState.ASSIGNED:
            return []
        spare.state = ChildState.SERVING
        return [Note("engine_opened", who(spare))]

    def _is_foreign(self, open_: Open) -> bool:
        """Whether this client of our host sees other pids than we do."""
        theirs = 0 if open_.sender.remote else open_.msg.pid_namespace
        return bool(theirs and self._pid_namespace) and theirs != self._pid_namespace

    def _session_at(self, child: ChildRecord, open_: Open) -> SessionAt:
        """The answer to an engine, with a word on a twin that hashes otherwise."""
        if open_.sender.remote:
            where = SessionAt(child.address, f"{SAME_HOST}{child.port}", 0)
        else:
            pid = 0 if self._is_foreign(open_) else child.pid
            where = SessionAt(child.address, child.endpoint, pid)
        assert child.assignment is not None
        mine = child.assignment.opener
        for other in self._children:
            its = other.assignment.opener if other.assignment is not None else None
            if its and its.namespace == mine.namespace and its.probe != mine.probe:
                advice = (
                    f"engines {mine.engine!r} and {its.engine!r} run the same model with different "
                    "hash seeds, so they will never share a block: start both with the same "
                    "PYTHONHASHSEED"
                )
                return replace(where, advice=advice)
        return where


def _fault(msg: OpenSession) -> str:
    """What is wrong with the question of an engine, in one line; '' if it is sound."""
    if not 0 < len(msg.engine) <= ENGINE_MAX or not msg.engine.isprintable():
        return f"an engine id of 1..{ENGINE_MAX} printable characters is needed"
    if len(msg.generation) != 16:
        return f"a generation of 16 bytes is needed, not of {len(msg.generation)}"
    if not 16 <= len(msg.namespace) <= NAMESPACE_MAX:
        return f"a namespace of 16..{NAMESPACE_MAX} bytes is needed, not of {len(msg.namespace)}"
    if len(msg.probe) > NAMESPACE_MAX:
        return f"a probe of at most {NAMESPACE_MAX} bytes is needed, not of {len(msg.probe)}"
    return ""
