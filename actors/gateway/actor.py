"""The gateway: what HTTP sees of the service.

It asks the supervisor for its Report on its own beat, one question at a time, and hands each one to
the shell (Publish), whose HTTP thread answers from the newest.  So a scrape touches no other actor,
and HTTP is answered while the others are restarted or do not answer at all; it then says how old
what it shows is.

An address that cannot be had (another program listens there) is no failure of this process: it says
so once, tries again ever less often, and the cache serves on.
"""

from pegaflow.actors.runtime.child import Child
from pegaflow.actors.runtime.contract import MS, Ask, Do, Effect, Note
from pegaflow.wire.control import Hello, Inspect, Report
from pegaflow.wire.jobs import Done, Listen, Publish
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

INSPECT_NS = 1000 * MS
"""How often the supervisor is asked: a scrape is at most so much behind it, or two beats more."""

INSPECT_WAIT_NS = 2000 * MS
"""Patience with the supervisor's answer; then it is asked again."""

RETRY_NS = (2000 * MS, 5000 * MS, 15_000 * MS, 60_000 * MS)
"""Pause before the nth try to listen: what blocks a port is seldom gone within seconds."""


class Gateway(Child):
    """Asks for reports, has them published."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.port = 0  # where HTTP is answered; 0: nowhere yet
        self.retry_at: int | None = None  # when to try to listen again; None: nothing to try
        self._tries = 0  # to listen, in vain
        self._asked = 0  # when the supervisor was asked last
        self._asking = False  # and it has not answered yet

    def gauges(self) -> dict[str, int]:
        """The port, 0 while HTTP is not answered."""
        return {"http_port": self.port}

    def up(self, now: int) -> list[Effect]:
        """Listen, and ask for the first report."""
        return [*self._listen(now), *self._ask(now)]

    def beat(self, now: int) -> list[Effect]:
        """Ask, and try again to listen, when it is time."""
        effects: list[Effect] = []
        if self.welcome is not None and not self._asking and now - self._asked >= INSPECT_NS:
            effects += self._ask(now)
        if self.retry_at is not None and now >= self.retry_at:
            effects += self._listen(now)
        return effects

    def _ask(self, now: int) -> list[Effect]:
        self._asked, self._asking = now, True

        def answered(answer: Message, now: int) -> list[Effect]:
            self._asking = False
            if not isinstance(answer, Report):
                self.counts["reports_missed"] += 1
                return []
            return [Do(Publish(answer), lambda done, now: [])]

        return [Ask(self.supervisor, Inspect(), now + INSPECT_WAIT_NS, answered)]

    def _listen(self, now: int) -> list[Effect]:
        assert self.welcome is not None
        address = self.welcome.http_addr
        self.retry_at = None

        def listening(done: Done, now: int) -> list[Effect]:
            if done.status is Status.OK:
                self.port = done.values[0]
                return [Note("http_serving", (("address", done.note),))]
            self._tries += 1
            self.retry_at = now + RETRY_NS[min(self._tries, len(RETRY_NS)) - 1]
            if self._tries > 1:
                return []
            advice = (
                "the cache serves without HTTP and keeps trying: free the address, or serve with "
                "another --http-addr or with --http-addr none"
            )
            facts = (("address", address), ("why", done.note), ("advice", advice))
            return [Note("http_unavailable", facts, "warning")]

        return [Do(Listen(address), listening)]
