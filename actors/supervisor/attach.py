"""The front desk: where an engine finds its session.  The supervisor's half that engines talk to.

* An engine that asks twice gets the same session.
* An engine id whose session belongs to another generation gets a new session once the old one is
  proven dead; while the old engine's process lives, the newcomer is refused, so two engines cannot
  supersede each other for ever.
* A spare that does not say Serving in time is the watchdog's; its engine waits for the end of it.
* An engine whose sessions fail one after the other is refused for a while (restarts.py), so that it
  does not use up everybody's spares.
* A joiner (OpenSession.opens is False) waits until somebody has opened its generation, and never
  gets a spare itself: what outlived its opener cannot bring a superseded generation back.
* Who finds no spare waits here, and the supervisor starts one spare more for each opener who waits.

It looks at the supervisor's children and gives spares away; starting, killing and burying them is
the supervisor's.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from pegaflow.actors.runtime.contract import MS, Ask, Effect, Note, Reply, Sender
from pegaflow.wire.control import SAME_HOST, OpenSession, Refused, Serve, Serving, SessionAt
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

from .children import Kid, who
from .restarts import FAILURES_MAX, PERIOD_NS, Budgets
from .watchdog import SERVE_NS

ENGINES_MAX = 256
"""Engines of one host: eight devices, each shared by more than can be.  Each costs a process."""

ENGINE_MAX = 256
"""Characters of an engine id: it stands in log lines, messages and the state of the group."""

NAMESPACE_MAX = 64
"""Bytes of a namespace, and of a probe: a hash of whatever made it is enough."""

OPENS_MAX = 256
"""Engines waiting for a session at once."""


@dataclass(slots=True)
class _Open:
    sender: Sender
    msg: OpenSession


class FrontDesk:
    """Gives sessions to engines.  `changed` is said after a spare is taken."""

    def __init__(
        self,
        kids: dict[Address, Kid],
        budgets: Budgets,
        changed: Callable[[int], list[Effect]],
        pid_namespace: int,
    ) -> None:
        self.kids = kids  # the supervisor's own table
        self.budgets = budgets  # the supervisor's own
        self.opens: deque[_Open] = deque()  # engines that wait for a session
        self._pid_namespace = pid_namespace  # that our pids are of; 0: unknown
        self._changed = changed

    def open(self, sender: Sender, msg: OpenSession) -> list[Effect]:
        """An engine asks: refuse it at once, or let it wait for `serve`."""
        why = _fault(msg)
        if why:
            return [Reply(sender, Refused(Status.BAD_REQUEST, why))]
        if len(self.opens) >= OPENS_MAX:
            return [Reply(sender, Refused(Status.BUSY, "too many engines wait for a session"))]
        engines = {msg.engine} | {k.engine for k in self.kids.values() if k.engine}
        if len(engines | {o.msg.engine for o in self.opens}) > ENGINES_MAX:
            why = f"{ENGINES_MAX} engines are being served, and one service takes no more"
            return [Reply(sender, Refused(Status.BUSY, why))]
        self.opens.append(_Open(sender, msg))
        return []

    def serve(self, now: int) -> list[Effect]:
        """Answer everyone who can be answered now.  Only while the core is up."""
        effects: list[Effect] = []
        waiting = list(self.opens)
        self.opens.clear()
        for open_ in waiting:
            effects += self._serve(open_, now)
        return effects

    def waiting(self) -> int:
        """Openers that wait; one that asked again waits once."""
        return len({open_.msg.engine for open_ in self.opens if open_.msg.opens})

    def expire(self, now: int) -> None:
        """Forget who has waited beyond its deadline: it does not listen any more."""
        for open_ in [o for o in self.opens if o.sender.deadline and o.sender.deadline <= now]:
            self.opens.remove(open_)

    def close(self) -> list[Effect]:
        """Refuse everyone who waits."""
        refused = Refused(Status.DRAINING, "the service is stopping")
        effects: list[Effect] = [Reply(o.sender, refused) for o in self.opens]
        self.opens.clear()
        return effects

    def check(self) -> None:
        """A session serves one engine."""
        engines = [k.engine for k in self.kids.values() if k.engine and not k.killed]
        assert len(engines) == len(set(engines)), engines

    def _serve(self, open_: _Open, now: int) -> list[Effect]:
        msg = open_.msg
        kid = next((k for k in self.kids.values() if k.engine == msg.engine), None)
        if kid is not None:
            assert kid.opener is not None
            if kid.killed or kid.state == "draining":
                self.opens.append(open_)  # until the old one is proven dead
                return []
            if kid.opener.generation != msg.generation and not msg.opens:
                why = f"engine id {msg.engine!r} is served in another generation than this rank's"
                return [Reply(open_.sender, Refused(Status.SUPERSEDED, why))]
            if kid.opener.generation != msg.generation:
                why = f"engine id {msg.engine!r} is in use by the living process {kid.opener.pid}"
                return [Reply(open_.sender, Refused(Status.DUPLICATE, why))]
            if (kid.opener.namespace, kid.opener.probe) != (msg.namespace, msg.probe):
                why = f"engine id {msg.engine!r} is open with another model or configuration"
                return [Reply(open_.sender, Refused(Status.DUPLICATE, why))]
            if self._is_foreign(open_) and not kid.foreign:
                why = (
                    f"engine id {msg.engine!r} was opened in another pid namespace than this one's"
                )
                return [Reply(open_.sender, Refused(Status.DUPLICATE, why))]
            if kid.state == "assigned":
                self.opens.append(open_)  # until it has said Serving
                return []
            return [Reply(open_.sender, self._session_at(kid, open_))]
        rest = self.budgets.engine_rest(msg.engine, now)
        if rest:
            period, seconds = PERIOD_NS // (1000 * MS), rest // (1000 * MS) + 1
            why = (
                f"the sessions of engine {msg.engine!r} failed {FAILURES_MAX} times within "
                f"{period} s: it gets none for {seconds} s; the service's log says why"
            )
            return [Reply(open_.sender, Refused(Status.BUSY, why))]
        spare = next((k for k in self.kids.values() if k.state == "spare" and not k.killed), None)
        if spare is None or not msg.opens:
            self.opens.append(open_)
            return []
        return self._assign(spare, open_, now)

    def _assign(self, spare: Kid, open_: _Open, now: int) -> list[Effect]:
        msg = open_.msg
        taken = {kid.seat for kid in self.kids.values()}
        spare.seat = next(seat for seat in count(1) if seat not in taken)
        spare.engine, spare.opener, spare.state = msg.engine, msg, "assigned"
        spare.owes = now

        def serving(answer: Message, now: int) -> list[Effect]:
            effects = self.serves(spare) if isinstance(answer, Serving) else []
            if effects:
                effects.append(Reply(open_.sender, self._session_at(spare, open_)))
            else:
                self.opens.append(open_)  # until the spare serves after all, or is proven dead
            return effects + self._changed(now)

        spare.foreign = self._is_foreign(open_)
        serve = Serve(
            *(msg.engine, msg.generation, msg.pid, msg.started, msg.namespace, msg.probe),
            remote=open_.sender.remote or spare.foreign,
            foreign=spare.foreign,
        )
        return [Ask(spare.address, serve, now + SERVE_NS, serving)]

    def serves(self, spare: Kid) -> list[Effect]:
        """A spare says that it serves its engine; nothing if that comes too late."""
        if spare.killed or spare.state != "assigned":
            return []
        spare.state = "serving"
        return [Note("engine_opened", who(spare))]

    def _is_foreign(self, open_: _Open) -> bool:
        """Whether this client of our host sees other pids than we do."""
        theirs = 0 if open_.sender.remote else open_.msg.pid_namespace
        return bool(theirs and self._pid_namespace) and theirs != self._pid_namespace

    def _session_at(self, kid: Kid, open_: _Open) -> SessionAt:
        """The answer to an engine, with a word on a twin that hashes otherwise."""
        if open_.sender.remote:
            where = SessionAt(kid.address, f"{SAME_HOST}{kid.port}", 0)
        else:
            pid = 0 if self._is_foreign(open_) else kid.pid
            where = SessionAt(kid.address, kid.endpoint, pid)
        mine = kid.opener
        assert mine is not None
        for other in self.kids.values():
            its = other.opener
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
