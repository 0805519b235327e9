"""The gateway: what HTTP sees of the service.

It asks the supervisor for its Report on its own beat, one question at a time, and hands each one to
the shell (Publish), whose HTTP thread answers from the newest.  So a scrape touches no other actor,
and HTTP is answered while the others are restarted or do not answer at all; it then says how old
what it shows is.

An address that cannot be had (another program listens there) is no failure of this process: it says
so once, tries again ever less often, and the cache serves on.
"""

from collections import Counter

from pegaflow.actors.runtime.contract import MS, Actor, Ask, Do, Effect, Note, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import Hello, Inspect, LogLevel, Report, Welcome
from pegaflow.wire.jobs import Done, Listen, Listening, Publish
from pegaflow.wire.message import Message
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import Address

INSPECT_NS: Nanoseconds = 1000 * MS
"""How often the supervisor is asked: a scrape is at most so much behind it, or two beats more."""

INSPECT_WAIT_NS: Nanoseconds = 2000 * MS
"""Patience with the supervisor's answer; then it is asked again."""

RETRY_NS: tuple[Nanoseconds, ...] = (2000 * MS, 5000 * MS, 15_000 * MS, 60_000 * MS)
"""Pause before the nth try to listen: what blocks a port is seldom gone within seconds."""


class Reports(Part):
    """Asks for reports, has them published."""

    def __init__(self, member: Member, counts: Counter[str]) -> None:
        self._member, self._counts = member, counts
        self._asked_ns = 0  # when the supervisor was asked last
        self._asking = False  # and it has not answered yet

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Ask for the first report."""
        return self._ask(now)

    def beat(self, now: int) -> list[Effect]:
        """Ask, when it is time."""
        due = self._member.welcome is not None and now - self._asked_ns >= INSPECT_NS
        return self._ask(now) if due and not self._asking else []

    def _ask(self, now: int) -> list[Effect]:
        self._asked_ns, self._asking = now, True

        def answered(answer: Message, now: int) -> list[Effect]:
            self._asking = False
            if not isinstance(answer, Report):
                self._counts["reports_missed"] += 1
                return []
            return [Do(Publish(answer), lambda done, now: [])]

        return [Ask(self._member.supervisor, Inspect(), now + INSPECT_WAIT_NS, answered)]


class Listener(Part):
    """The address on which HTTP is answered."""

    def __init__(self) -> None:
        self.port = 0  # 0: HTTP is not answered
        self._address = ""
        self._retry_at_ns: int | None = None  # when to try to listen again; None: nothing to try
        self._tries = 0  # to listen, in vain

    def gauges(self) -> dict[str, int]:
        """The port, 0 while HTTP is not answered."""
        return {"http_port": self.port}

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Listen."""
        self._address = welcome.http_addr
        return self._listen()

    def beat(self, now: int) -> list[Effect]:
        """Try again to listen, when it is time."""
        due = self._retry_at_ns is not None and now >= self._retry_at_ns
        return self._listen() if due else []

    def _listen(self) -> list[Effect]:
        self._retry_at_ns = None

        def listening(result: Listening | Done, now: int) -> list[Effect]:
            if isinstance(result, Listening):
                self.port = result.port
                return [Note("http_serving", (("address", result.address),))]
            self._tries += 1
            self._retry_at_ns = now + RETRY_NS[min(self._tries, len(RETRY_NS)) - 1]
            if self._tries > 1:
                return []
            advice = (
                "the cache serves without HTTP and keeps trying: free the address, or serve with "
                "another --http-addr or with --http-addr none"
            )
            facts = (("address", self._address), ("why", result.note), ("advice", advice))
            return [Note("http_unavailable", facts, LogLevel.WARNING)]

        return [Do(Listen(self._address), listening)]


class Gateway(Actor):
    """Shows reports."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address)
        member = Member(address, supervisor, hello, (), counts=self.counts)
        crew = (Listener(), Reports(member, self.counts))
        member.lead(*crew)
        self.compose(member, *crew)
