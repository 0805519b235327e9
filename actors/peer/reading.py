"""From Fetch to Fetched: blocks of other hosts are read into our pool.  See wire/peer.py.

The blocks of a Fetch are cut into pulls: stretches of its chain that one host is asked for.  Each
host has so many pulls at a time (PULLS), those of several engines in turn, in the order of their
chains.  A pull borrows its blocks, reserves pages, reads, gives back, and seals what stood until
then; then its pages are returned: what was published is the index's by then.  While a Seal is
unanswered its pages are neither used nor returned: it is asked again of the next index.

A host that has a link is read from; one that has none yet is asked for an offer when it is first
needed, and its pulls wait for that.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import replace

from pegaflow.actors.roles.pages import RESERVE_NS, Grant, Pages
from pegaflow.actors.runtime.contract import (
    MS,
    Ask,
    Do,
    Effect,
    NoAnswer,
    On,
    Part,
    Reply,
    Send,
    Sender,
    on,
)
from pegaflow.actors.runtime.member import Member
from pegaflow.core.limits import MIB
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.series import labelled
from pegaflow.wire.control import Welcome
from pegaflow.wire.flusher import FETCH_NS, Fetch, Fetched
from pegaflow.wire.identities import NO_LEASE
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.jobs import Done
from pegaflow.wire.message import Message
from pegaflow.wire.peer import (
    NONE,
    Borrow,
    Elsewhere,
    GiveBack,
    Lent,
    Ping,
    Pong,
    Returned,
)
from pegaflow.wire.peerjobs import (
    LeaveHost,
    PagesRead,
    ReadPages,
)
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Nanoseconds
from pegaflow.wire.values import INDEX, NOBODY, Address

from .following import Following
from .lending import page_bytes
from .linking import ENTER_NS, Linking
from .places import Places, RemoteHost
from .pulls import Pull, Source, Wish, makes_sense, stretches, whole

PULL_BYTES: Bytes = 32 * MIB
"""Bytes of one pull: long enough that its messages cost nothing, short enough that whoever asks
next does not wait long."""

PULLS: Count = 4
"""Pulls of one host at a time: one is borrowed and one sealed while others are read."""

WISHES_MAX: Count = 4096
"""Fetches without an end: the index has bounded those of each engine."""

PUBLISH_NS: Nanoseconds = 1000 * MS
"""Patience with the index."""


class Reading(Part):
    """Open Fetches."""

    def __init__(
        self,
        *,
        member: Member,
        places: Places,
        following: Following,
        pages: Pages,
        counts: Counter[str],
    ) -> None:
        self._member, self._places, self._following = member, places, following
        self._pages, self._counts = pages, counts
        self._geometry = Geometry(0, MIN_PAGE)  # the pool's, from Welcome on
        self._sources: dict[Address, Source] = {}  # of the hosts that live
        self._linking = Linking(counts)
        self.fetches = 0  # without an end
        self._unsealed: list[tuple[Pull, Seal]] = []  # for the next index

    def handlers(self) -> Iterable[On]:
        """What is to be fetched."""
        return (on(Fetch, self._on_fetch, INDEX),)

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The pool is known."""
        self._geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)

        return self._linking.prepare()

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """There is somebody who publishes what has been read."""
        return self._seal_again(now) if neighbour.name == INDEX else []

    def gauges(self) -> dict[str, int]:
        """What is being read."""
        sources = self._sources.values()
        return {
            "rdma_fetches": self.fetches,
            "rdma_pulls": sum(source.running for source in sources),
            "rdma_links": sum(source.linked for source in sources),
        }

    def check(self) -> None:
        """Pulls add up, and hosts have sources."""
        assert self._sources.keys() == self._places.hosts.keys()
        for source in self._sources.values():
            assert 0 <= source.running <= PULLS and all(source.turns.values())
        assert self.fetches >= 0

    # hosts

    def host_met(self, host: RemoteHost, now: int) -> list[Effect]:
        """Its blocks may be fetched."""
        self._sources[host.address] = Source()
        return []

    def host_lost(self, host: RemoteHost, now: int) -> list[Effect]:
        """What waits for it waits in vain; what is being read from it ends by itself."""
        source = self._sources.pop(host.address)
        source.gone = True
        leave = Do(LeaveHost(host.address.incarnation), lambda done, now: [])
        return [leave, *self._fail_waiting(source)]

    def ping_of(self, host: RemoteHost, ping: Ping) -> Ping:
        """The loans that we read."""
        source = self._sources[host.address]
        return replace(ping, lent_upto=source.heard_upto, loans=tuple(sorted(source.loans)))

    def host_ponged(self, host: RemoteHost, pong: Pong, now: int) -> list[Effect]:
        """Nothing."""
        return []

    # pulls

    def _on_fetch(self, sender: Sender, msg: Fetch, now: int) -> list[Effect]:
        everything = tuple(range(len(msg.keys)))
        if self.fetches >= WISHES_MAX or self._member.draining or len(msg.hosts) != len(msg.keys):
            self._counts["rdma_fetch_queue_full"] += len(msg.keys)
            return [Reply(sender, Fetched(Status.BUSY, everything))]
        self.fetches += 1
        fetch = Wish(sender, msg, len(msg.keys))
        effects: list[Effect] = []
        pulls = self._cut(fetch)
        taken = {position for pull in pulls for position in pull.positions}
        for pull in pulls:
            pull.source.turns.setdefault(msg.engine, deque()).append(pull)
        effects += self._fail(fetch, [at for at in everything if at not in taken])
        for host in {pull.host.address: pull.host for pull in pulls}.values():
            effects += self._go_on(host, now)
        return effects

    def _cut(self, fetch: Wish) -> list[Pull]:
        """The pulls of a Fetch."""
        msg = fetch.msg
        by_slot = {host.slot: host for host in self._places.hosts.values()}
        pulls: list[Pull] = []
        for slot, positions in stretches(msg.hosts, frozenset(by_slot)):
            host = by_slot[slot]
            cut = self._following.cut(host, msg.namespace)
            if cut is None:
                continue
            each = max(1, PULL_BYTES // (page_bytes(cut.payload_bytes) * cut.shards))
            for at in range(0, len(positions), each):
                some = positions[at : at + each]
                pulls.append(Pull(fetch, host, some, cut, source=self._sources[host.address]))
        return pulls

    def _go_on(self, host: RemoteHost, now: int) -> list[Effect]:
        """Begin as many pulls as this host may have at a time."""
        source = self._sources.get(host.address)
        if source is None or not source.turns:
            return []
        if not source.linked:
            return self._link(host, source, now)
        effects: list[Effect] = []
        while source.turns and source.running < PULLS:
            engine, pulls = next(iter(source.turns.items()))
            source.turns.move_to_end(engine)
            pull = pulls.popleft()
            if not pulls:
                del source.turns[engine]
            if now < pull.until(now):
                source.running += 1
                effects += self._borrow(pull, now)
            else:
                effects += self._fail(pull.fetch, pull.positions)
        return effects

    def _link(self, host: RemoteHost, source: Source, now: int) -> list[Effect]:
        """Have a data link to this host; what waits for it fails if there can be none now."""
        if source.linking:
            return []
        if not self._linking.may_try(source, now):
            return self._fail_waiting(source)

        def over(now: int) -> list[Effect]:
            return self._go_on(host, now) if source.linked else self._fail_waiting(source)

        return self._linking.make(host, source, now, over)

    def _fail_waiting(self, source: Source) -> list[Effect]:
        """What waits for a host without a link is a miss."""
        turns, source.turns = source.turns, OrderedDict()
        pulls = [pull for pulls in turns.values() for pull in pulls]
        return [effect for pull in pulls for effect in self._fail(pull.fetch, pull.positions)]

    def _borrow(self, pull: Pull, now: int) -> list[Effect]:
        msg, source, until = pull.fetch.msg, pull.source, pull.until(now)

        def lent(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, Lent) and answer.number != NO_LEASE:
                pull.loan = answer.number
                source.loans.add(answer.number)
                source.heard_upto = max(source.heard_upto, answer.number)
            if not isinstance(answer, Lent) or answer.status is not Status.OK:
                return self._over(pull, now)
            if not makes_sense(answer, pull.cut, len(pull.positions)):
                self._counts["rdma_answers_malformed"] += 1
                return self._over(pull, now)
            missing = pull.positions[answer.blocks :]
            del pull.positions[answer.blocks :]
            effects = self._fail(pull.fetch, missing) + self._absent(pull, missing[:1])
            if not answer.blocks:
                return effects + self._over(pull, now)
            pull.lent = answer
            return effects + self._reserve(pull, answer, now)

        keys = tuple(msg.keys[at] for at in pull.positions)
        borrow = Borrow(msg.namespace, keys, until - now)
        return [Ask(pull.host.address, borrow, until, lent)]

    def _absent(self, pull: Pull, positions: list[int]) -> list[Effect]:
        """It has not got the block at which the run ended; of those behind we know nothing."""
        if pull.source.gone or not positions:
            return []
        msg, (first, last) = pull.fetch.msg, NONE
        names = fingerprints(msg.namespace, [msg.keys[at] for at in positions])
        lost = Elsewhere(
            pull.host.slot, first, last, cuts=(), added=(), removed=tuple(names.tolist())
        )
        return self._member.tell(INDEX, lost)

    def _reserve(self, pull: Pull, lent: Lent, now: int) -> list[Effect]:
        if not self._pages.reachable:
            return self._over(pull, now)

        def reserved(grant: Grant | None, now: int) -> list[Effect]:
            if grant is None:
                return self._over(pull, now)
            pull.grant = grant
            return self._read(pull, lent, now)

        until = min(pull.fetch.sender.deadline or now + RESERVE_NS, now + RESERVE_NS)
        size, count = page_bytes(lent.payload_bytes), lent.blocks * lent.shards
        return self._pages.reserve(size, count, until, reserved)

    def _read(self, pull: Pull, lent: Lent, now: int) -> list[Effect]:
        local = self._geometry.offsets(pull.grant.pages, pull.grant.page_size)

        def read(result: PagesRead | Done, now: int) -> list[Effect]:
            sums = tuple(result.sums) if isinstance(result, PagesRead) else ()
            effects: list[Effect] = []
            if not isinstance(result, PagesRead) or result.broken:
                self._linking.broke(pull.source, now)
                effects = self._fail_waiting(pull.source)
            good = whole(sums, lent)
            self._counts["rdma_fetch_bytes"] += len(good) * lent.shards * lent.payload_bytes
            return effects + self._give_back(pull, sums, good, now)

        job = ReadPages(
            pull.host.address.incarnation,
            pull.loan,
            lent.payload_bytes,
            remote=lent.offsets,
            local=local,
            deadline=pull.fetch.sender.deadline or now + FETCH_NS,
        )
        return [Do(job, read)]

    def _give_back(
        self, pull: Pull, sums: tuple[int, ...], good: list[int], now: int
    ) -> list[Effect]:
        """Ask whether the loan stood until now: only then the bytes are those of the blocks."""
        if pull.source.gone:
            return self._publish(pull, sums, [], now)
        until = max(pull.fetch.sender.deadline or 0, now + ENTER_NS)
        loan = pull.loan

        def returned(answer: Message, now: int) -> list[Effect]:
            stood = isinstance(answer, Returned) and answer.status is Status.OK
            if not stood:
                self._counts["rdma_loans_ended"] += 1
            return self._publish(pull, sums, good if stood else [], now)

        self._forget_loan(pull)
        return [Ask(pull.host.address, GiveBack(loan), until, returned)]

    def _publish(
        self, pull: Pull, sums: tuple[int, ...], good: list[int], now: int
    ) -> list[Effect]:
        """Publish what has come; the rest is a miss."""
        lost = set(range(len(pull.positions))) - set(good)
        effects = self._fail(pull.fetch, [pull.positions[at] for at in sorted(lost)])
        pull.positions = [pull.positions[at] for at in good]
        if not good or pull.lent is None:
            return effects + self._over(pull, now)
        msg, shards = pull.fetch.msg, pull.lent.shards
        places = [at * shards + shard for at in good for shard in range(shards)]
        welcome = self._member.welcome
        verify = welcome is not None and welcome.verify
        seal = Seal(
            claim=msg.number,
            namespace=msg.namespace,
            page_size=pull.grant.page_size,
            payload_bytes=pull.lent.payload_bytes,
            shards=shards,
            keys=tuple(msg.keys[at] for at in pull.positions),
            parents=tuple(msg.parents[at] for at in pull.positions),
            pages=tuple(pull.grant.pages[at] for at in places),
            stamps=tuple(pull.grant.stamps[at] for at in places),
            checksums=tuple(sums[at] for at in places) if verify else (),
        )
        return effects + self._seal(pull, seal, now)

    def _seal(self, pull: Pull, seal: Seal, now: int) -> list[Effect]:
        index = self._member.peer(INDEX)
        if index == NOBODY:
            self._unsealed.append((pull, seal))
            return []

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._seal(pull, seal, now)
            accepted = set(answer.positions) if isinstance(answer, Sealed) else set()
            failed = [p for at, p in enumerate(pull.positions) if at not in accepted]
            self._counts["rdma_fetched_blocks"] += len(accepted)
            pull.fetch.left -= len(accepted)
            pull.positions = []
            return self._fail(pull.fetch, failed) + self._over(pull, now)

        return [Ask(index, seal, now + PUBLISH_NS, sealed)]

    def _seal_again(self, now: int) -> list[Effect]:
        """The Seals that no index has answered, to the next one."""
        again, self._unsealed = self._unsealed, []
        return [effect for pull, seal in again for effect in self._seal(pull, seal, now)]

    def _over(self, pull: Pull, now: int) -> list[Effect]:
        """The end of a pull: its pages are the index's or nobody's, its loan is given back."""
        effects = self._fail(pull.fetch, pull.positions)
        pull.positions = []
        if pull.loan != NO_LEASE:
            effects.append(Send(pull.host.address, GiveBack(pull.loan)))
            self._forget_loan(pull)
        effects += self._pages.give_back(pull.grant)
        pull.source.running -= 1
        return effects + self._ended(pull.fetch) + self._go_on(pull.host, now)

    def _forget_loan(self, pull: Pull) -> None:
        pull.source.loans.discard(pull.loan)
        pull.loan = NO_LEASE

    def _fail(self, fetch: Wish, positions: list[int]) -> list[Effect]:
        """These are not to be had."""
        if not positions:
            return []
        self._counts["rdma_fetch_failures"] += len(positions)
        fetch.failed += positions
        fetch.left -= len(positions)
        return self._ended(fetch)

    def _ended(self, fetch: Wish) -> list[Effect]:
        """Answer, once the last block has ended."""
        assert fetch.left >= 0
        if fetch.left or fetch.sender.question == 0:
            return []
        self._counts[labelled("rdma_fetch", "failure" if fetch.failed else "success")] += 1
        answer = Fetched(Status.OK, tuple(fetch.failed))
        effects: list[Effect] = [Reply(fetch.sender, answer)]
        fetch.sender = replace(fetch.sender, question=0)
        self.fetches -= 1
        return effects
