"""How an engine boards its session: Serve, Attach and Leave, and the death of its processes.

The half of the session that knows who its engine is and which ranks are there; see session.py for
what it does for them, and wire/session.py for the conversation.
"""

from pegaflow.actors.runtime.child import Child
from pegaflow.actors.runtime.contract import MS, Do, Effect, Note, Reply, Send, Sender
from pegaflow.wire import layout as layouts
from pegaflow.wire.control import Hello, Refused, Serve, Serving
from pegaflow.wire.jobs import (
    Done,
    DrawProof,
    MapEngine,
    OpenBounce,
    UnmapEngine,
    Unreachable,
    WatchProcess,
)
from pegaflow.wire.session import Attach, Attached, Leave, Left, Ping, Pong, Prove, Proven, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, INDEX, NOBODY, SUPERVISOR, Address, U64s

from .ranks import (
    Rank,
    bounce_slots,
    choose_ways,
    complete,
    fault,
    namespace,
    new_rank,
    wants_process_vm,
)

CLIENTS_MAX = 1024
"""Clients of one engine: its scheduler and workers, and all that they were before a reconnect."""


DIAL_NS = 10_000 * MS
"""Patience with an engine that came over TCP and has not said a word to us."""


class Boarding(Child):
    """One engine's clients and ranks."""

    DIALS = (ALLOCATOR, INDEX)

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.serve: Serve | None = None  # the engine; None: a spare
        self.served = 0  # since when
        self.clients: set[Address] = set()  # that have spoken and not left
        self.remote: set[Address] = set()  # those of them whose pids mean nothing here
        self.watched: set[tuple[int, int]] = set()  # (pid, start) of client processes
        self.ranks: dict[int, Rank] = {}  # attached, or about to be
        self.leaving: list[Rank] = []  # given up, but a job of theirs still runs
        self.complete = False  # all ranks are there: lookups and saves are served
        self._mapping = 0  # newest mapping number
        self.on(Serve, self._on_serve, SUPERVISOR)
        self.on(Attach, self._on_attach, CLIENT)
        self.on(Proven, self._on_proven, CLIENT)
        self.on(Leave, self._on_leave, CLIENT)
        self.on(Ping, self._on_ping, CLIENT)
        self.on(Unreachable, self._on_unreachable, address.name)

    # what the session does about it

    def busy(self) -> bool:
        """Hook: whether a rank must wait before it attaches again."""
        return False

    def completed(self, now: int) -> list[Effect]:
        """Hook: all ranks are there."""
        return []

    def forget(self, rank: Rank) -> list[Effect]:
        """Hook: a rank is given up; nothing new may begin on it."""
        return []

    # the engine

    def _on_serve(self, sender: Sender, msg: Serve, now: int) -> list[Effect]:
        if self.serve is None:
            self.serve, self.served = msg, now
            watch = [] if msg.remote else self._watch(msg.pid, msg.started)
            return [Reply(sender, Serving()), *watch]
        same = (self.serve.engine, self.serve.generation) == (msg.engine, msg.generation)
        assert same, "a session serves one engine"
        return [Reply(sender, Serving())]

    def _watch(self, pid: int, started: int) -> list[Effect]:
        if (pid, started) in self.watched:
            return []
        self.watched.add((pid, started))

        def dead(done: Done, now: int) -> list[Effect]:
            assert self.serve is not None
            facts = (("engine", self.serve.engine), ("engine_pid", pid))
            return [Note("engine_died", facts), *self.farewell()]

        return [Do(WatchProcess(pid, started), dead)]

    # ranks

    def _on_attach(self, sender: Sender, msg: Attach, now: int) -> list[Effect]:
        self.meet(sender)
        refusal = self._fault(sender, msg)
        if refusal is not None:
            return [Reply(sender, refusal)]
        effects = [] if self._is_blind(sender) else self._watch(msg.pid, msg.started)
        old = self.ranks.get(msg.rank)
        if old is not None:
            effects += self._give_up(old)
        if any(rank.number == msg.rank for rank in self.leaving) or self.busy():
            busy = Refused(Status.NOT_READY, "earlier copies of this rank are still under way")
            return [*effects, Reply(sender, busy)]
        self._mapping += 1
        rank = self.ranks[msg.rank] = new_rank(sender.address, msg, self._mapping)
        if self._is_blind(sender) or not wants_process_vm(rank):
            return effects + self._bounce(rank, sender, now)

        def drawn(done: Done, now: int) -> list[Effect]:
            rank.proof = bytes.fromhex(done.note)
            return [Reply(sender, Prove(rank.proof))]

        return [*effects, Do(DrawProof(), drawn)]

    def meet(self, sender: Sender) -> None:
        """Know a client from now on, unless there are too many."""
        if len(self.clients) < CLIENTS_MAX:
            self.clients.add(sender.address)
            if self._is_blind(sender):
                self.remote.add(sender.address)

    def _is_blind(self, sender: Sender) -> bool:
        """Whether this client's pid means nothing here."""
        return sender.remote or (self.serve is not None and self.serve.foreign)

    def look_for_remote(self, now: int) -> list[Effect]:
        """A word to every client whose process we cannot watch: who is gone turns out to be
        unreachable.  An engine that never comes is not waited for."""
        waited = now - self.served > DIAL_NS
        if self.serve is not None and self.serve.remote and not self.clients and waited:
            return self.farewell()
        return [Send(client, Pong()) for client in self.remote]

    def _fault(self, sender: Sender, msg: Attach) -> Refused | None:
        if self.serve is None or self.welcome is None:
            return Refused(Status.NOT_READY, "the session has no engine yet")
        if self.peer(INDEX) == NOBODY or self.peer(ALLOCATOR) == NOBODY:
            return Refused(Status.NOT_READY, "index or allocator is not up yet")
        full = len(self.watched) >= CLIENTS_MAX and (msg.pid, msg.started) not in self.watched
        if full or sender.address not in self.clients:
            return Refused(Status.BUSY, f"{CLIENTS_MAX} clients have attached to this session")
        why = layouts.fault(msg.layout, msg.region_bytes)
        if why:
            return Refused(Status.BAD_LAYOUT, why)
        if self._is_blind(sender) and msg.way is Way.PROCESS_VM:
            why = (
                "process_vm is not for clients on TCP or in another pid namespace: "
                "let `way` be auto or staged"
            )
            return Refused(Status.BAD_REQUEST, why)
        why = fault(msg, self.ranks)
        if why:
            return Refused(Status.BAD_REQUEST, why)
        if layouts.page_size(msg.layout) > self.welcome.extent_bytes:
            size = layouts.page_size(msg.layout)
            why = (
                f"a block of {size} bytes is larger than an extent: serve with --extent-size {size}"
            )
            return Refused(Status.TOO_LARGE, why)
        return None

    def _on_proven(self, sender: Sender, msg: Proven, now: int) -> list[Effect]:
        mine = (r for r in self.ranks.values() if r.client == sender.address and r.proof)
        rank = next(mine, None)
        if rank is None:
            return [Reply(sender, Refused(Status.NOT_READY, "attach first"))]
        asked, proof = rank.asked, rank.proof
        rank.proof = b""

        def mapped(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            if rank.gone:
                return self._too_late(rank, sender)
            if done.status is Status.OK:
                choose_ways(rank)
            elif asked.way is Way.PROCESS_VM:
                return [Reply(sender, Refused(done.status, done.note)), *self._give_up(rank)]
            rank.note = done.note
            return self._bounce(rank, sender, now)

        rank.running += 1
        job = MapEngine(
            rank.mapping,
            asked.pid,
            asked.started,
            asked.bases,
            rank.layout,
            asked.scratch,
            proof,
        )
        return [Do(job, mapped)]

    def _bounce(self, rank: Rank, sender: Sender, now: int) -> list[Effect]:
        """Make the bounce file, if this rank saves through one; then it is there."""
        if rank.saves is not Way.STAGED:
            return self._attached(rank, sender, "", (), now)
        slots = bounce_slots(rank.page_size)

        def opened(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            if rank.gone:
                return self._too_late(rank, sender)
            if done.status is not Status.OK:
                return [Reply(sender, Refused(done.status, done.note)), *self._give_up(rank)]
            rank.slots, rank.free_slots = slots, list(range(slots))
            return self._attached(rank, sender, done.note, done.values, now)

        rank.running += 1
        return [Do(OpenBounce(slots, rank.page_size, rank.mapping), opened)]

    def _too_late(self, rank: Rank, sender: Sender) -> list[Effect]:
        taken = Refused(Status.DROPPED, "another client took this rank")
        return [Reply(sender, taken), *self.left(rank)]

    def _attached(
        self, rank: Rank, sender: Sender, path: str, file: U64s, now: int
    ) -> list[Effect]:
        assert self.welcome is not None and self.serve is not None
        rank.there = True
        effects: list[Effect] = []
        if complete(self.ranks):
            self.complete = True
            effects = self.completed(now)
        space = namespace(self.serve, self.ranks) if self.complete else b""
        answer = Attached(
            self.welcome.pool_path,
            self.welcome.pool_bytes,
            path,
            rank.slots,
            rank.page_size,
            space,
            rank.loads,
            rank.saves,
            rank.note,
            self.welcome.pool_file,
            file,
        )
        facts = (
            ("engine", self.serve.engine),
            ("rank", rank.number),
            ("page_size", rank.page_size),
            ("loads", rank.loads.name.lower()),
            ("saves", rank.saves.name.lower()),
            ("namespace", space.hex()),
        )
        return [Note("engine_attached", facts), Reply(sender, answer), *effects]

    def _give_up(self, rank: Rank) -> list[Effect]:
        """The rank's client copies nothing any more, and soon we do not either."""
        if rank.gone:
            return []
        rank.gone = True
        self.complete = False
        del self.ranks[rank.number]
        self.leaving.append(rank)
        effects: list[Effect] = [Do(UnmapEngine(rank.mapping), lambda done, now: [])]
        return effects + self.forget(rank) + self.left(rank)

    def left(self, rank: Rank) -> list[Effect]:
        """If nothing of a rank that was given up runs any more, say so."""
        if rank.running or rank not in self.leaving:
            return []
        self.leaving.remove(rank)
        if rank.leaving is None:
            return []
        return [Reply(rank.leaving, Left()), *self._end_if_alone()]

    def _on_leave(self, sender: Sender, msg: Leave, now: int) -> list[Effect]:
        client = sender.address
        if client not in self.clients:
            return [Reply(sender, Left())]
        self.clients.remove(client)
        self.remote.discard(client)
        mine = [rank for rank in self.ranks.values() if rank.client == client]
        if not mine:
            return [Reply(sender, Left()), *self._end_if_alone()]
        for rank in mine:
            rank.leaving = sender
        return [e for rank in mine for e in self._give_up(rank)]

    def _end_if_alone(self) -> list[Effect]:
        """With the last client the session goes, once nothing runs any more."""
        return self.farewell() if not self.clients and not self.leaving else []

    def _on_ping(self, sender: Sender, msg: Ping, now: int) -> list[Effect]:
        self.meet(sender)
        return [Reply(sender, Pong())]

    def _on_unreachable(self, sender: Sender, msg: Unreachable, now: int) -> list[Effect]:
        """A remote client's connection is gone: as if it had left."""
        gone = msg.address in self.remote
        return self._on_leave(Sender(msg.address), Leave(), now) if gone else []
