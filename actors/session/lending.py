"""What a client of the engine looks up by itself, in hazards that we lend it.  See wire/session.py.

One client at a time has the section: the first that asks, of those whose process we watch, since
its death has to end the section, and ours does that.  It is the client's until it leaves; what it
then has not passed on is cleared.

A lease that it passes on (Took) is one of ours from then on (leases.py), with the rows of its
hazards.  Loads of ranks that have heard of it before us wait here.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Redeliver, Reply, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import column, signed
from pegaflow.wire.identities import LeaseId
from pegaflow.wire.session import TOOK_NS, Borrow, Lent, Load, Looked, Took
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import CLIENT, NOBODY

from .engine import Engine
from .hazards import HazardBook
from .leases import LASTING_NS, LASTING_SHARE, OWN_FIRST, Leases, Own
from .touches import Touches

LENT_FIRST: Count = OWN_FIRST + (1 << 61)
"""Numbers of leases that clients find begin here: we never come so far with ours."""

LENT_EACH: Count = 1 << 40
"""Numbers for each time that the section is lent: nobody uses those of an earlier time again."""

LOOKED_MAX: Count = 1 << 32
"""Of what a client says it has done since it said so last: nobody does as much, and our counters
have 64 bits."""

NOTE_CHARS: Count = 200
"""Of a client's reason why it looks up by message: a line of `status`."""

WAITING_MAX: Count = 4096
"""Loads that wait for a Took: an engine has one per request and rank at most."""

CAME_MAX: Count = 4096
"""Leases that are remembered as having come: a load of one that has ended is refused at once."""


class Lending(Part):
    """The section that is lent, and what comes back of it."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        hazards: HazardBook,
        leases: Leases,
        touches: Touches,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine, self._hazards = member, engine, hazards
        self._leases, self._touches, self._counts = leases, touches, counts
        self._times = 0  # that the section was lent
        self._waiting: dict[LeaseId, list[tuple[Sender, Load, int]]] = {}  # until when
        self._known: dict[LeaseId, None] = {}  # that have come, the newest last
        self._since_ns = 0  # there is something in the section that is not ours
        self._lasting = (
            0,
            0,
        )  # bytes of that, if they are many, and for how many ns, as of the beat
        self._why = ""  # a client looks up by message though we do not have to

    def handlers(self) -> Iterable[On]:
        """The words of a client that looks up by itself."""
        return (
            on(Borrow, self._on_borrow, CLIENT),
            on(Took, self._on_took, CLIENT),
            on(Looked, self._on_looked, CLIENT),
        )

    def remarks(self) -> tuple[str, ...]:
        """Why its lookups cost a message each; and what it keeps and does not pass on."""
        name, (bytes_, age_ns) = self._engine.name, self._lasting
        line = f"a client of engine {name} looks up by message: {self._why}"
        kept = (
            f"has kept {bytes_ >> 20} MiB of the pool from eviction for {age_ns // (1000 * MS)} s"
        )
        stopped = f"a client of engine {name} {kept}, and passed it on to nobody: it is stopped"
        return (line,) * bool(self._why) + (stopped,) * bool(bytes_)

    def beat(self, now: int) -> list[Effect]:
        """Look at what the client has in the section, which says nothing as long as it is well."""
        opened, space, welcome = self._hazards.opened, self._engine.space, self._member.welcome
        if opened is None or space is None or welcome is None:
            return []
        rows = opened.lent.standing - int(opened.lent.owned.sum())
        bytes_ = max(0, rows) * space.block_bytes
        self._since_ns = (self._since_ns or now) if bytes_ else 0
        age_ns = now - self._since_ns if bytes_ else 0
        much = bytes_ >= welcome.pool_bytes * LASTING_SHARE and age_ns > LASTING_NS
        self._lasting = (bytes_, age_ns) if much else (0, 0)
        return []

    def wake_at(self) -> int | None:
        """When the first load has waited long enough."""
        return min(
            (until_ns for row in self._waiting.values() for *_, until_ns in row), default=None
        )

    def wake(self, now: int) -> list[Effect]:
        """Loads of leases that never came are refused."""
        late = [
            number
            for number, row in self._waiting.items()
            if any(until_ns <= now for *_, until_ns in row)
        ]
        return [effect for number in late for effect in self._heard(number)]

    def awaits(self, sender: Sender, msg: Load, now: int) -> bool:
        """Whether the lease of this load may be on its way to us; then the load waits for it."""
        until_ns = now + TOOK_NS
        lent = LENT_FIRST <= msg.lease < LENT_FIRST + self._times * LENT_EACH
        rushed = sender.deadline and sender.deadline < until_ns + TOOK_NS
        full = sum(map(len, self._waiting.values())) >= WAITING_MAX
        known = msg.lease in self._known or full
        if not lent or rushed or known:
            return False
        self._waiting.setdefault(msg.lease, []).append((sender, msg, until_ns))
        return True

    def _heard(self, number: LeaseId) -> list[Effect]:
        """The loads of a lease wait no longer: it has come, or never will."""
        self._known[number] = None
        if len(self._known) > CAME_MAX:
            del self._known[next(iter(self._known))]
        return [Redeliver(sender, msg) for sender, msg, _ in self._waiting.pop(number, ())]

    def _on_borrow(self, sender: Sender, msg: Borrow, now: int) -> list[Effect]:
        hazards, opened, client = self._hazards, self._hazards.opened, sender.address
        self._why = msg.note[:NOTE_CHARS]
        if self._engine.is_blind(sender):
            self._why = "it is on TCP or in another pid namespace"
            return [Reply(sender, Lent(Status.BAD_REQUEST, self._why))]
        if client not in self._engine.clients or hazards.borrower not in (NOBODY, client):
            return [Reply(sender, Lent(Status.BUSY, "another client of the engine does"))]
        space, welcome = self._engine.space, self._member.welcome
        if opened is None or space is None or welcome is None or not self._engine.complete:
            return [Reply(sender, Lent(Status.NOT_READY, hazards.why))]
        hazards.lend(client)
        first, self._times = LENT_FIRST + self._times * LENT_EACH, self._times + 1
        lent = Lent(
            status=Status.OK,
            ledger_path=welcome.ledger_path,
            ledger_file=welcome.ledger_file,
            pool_bytes=welcome.pool_bytes,
            extent_bytes=welcome.extent_bytes,
            hazard_path=opened.path,
            hazard_file=opened.file,
            section=1,
            namespace=space.namespace,
            world=space.shards,
            block_bytes=space.block_bytes,
            page_size=space.page_size,
            verify=space.verify,
            first=LeaseId(first),
        )
        return [Reply(sender, lent)]

    def _on_took(self, sender: Sender, msg: Took, now: int) -> list[Effect]:
        if sender.address == self._hazards.borrower and msg.lease not in self._known:
            self._take(msg, now)
        return self._heard(msg.lease)

    def _take(self, msg: Took, now: int) -> None:
        """Have the lease, or end it at once."""
        hazards, space = self._hazards, self._engine.space
        lent, pages, rows = hazards.lent, signed(msg.pages), signed(msg.rows)
        stamps, shards = column(msg.stamps), space.shards if space is not None else 0
        fits = len(pages) == len(stamps) == len(rows) * shards
        if not fits or not lent.take(rows, pages[::shards], stamps[::shards]):
            self._counts["leases_refused"] += 1
            return
        ours = space is not None and msg.namespace == space.namespace and msg.lease >= LENT_FIRST
        sums = hazards.finder.kept(msg.namespace, pages, stamps, shards) if ours else None
        if space is None or sums is None:
            self._counts["leases_refused"] += 1
            lent.clear(rows)
        else:
            own = Own(stamps, rows, lent=True)
            self._leases.take(msg.lease, pages, sums, own, space=space, now=now)

    def _on_looked(self, sender: Sender, msg: Looked, now: int) -> list[Effect]:
        if max(msg.lookups, msg.asked, msg.hit) > LOOKED_MAX:
            return []
        self._counts["lookups_client"] += msg.lookups
        self._counts["blocks_asked_local"] += msg.asked
        self._counts["blocks_hit_local"] += msg.hit
        return self._touches.add(signed(msg.pages)) if msg.pages else []
