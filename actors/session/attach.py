"""How ranks come and go: Attach, Proven and Leave.  See ranks.py, and wire/session.py for the
conversation.

When the last rank has come the engine is complete: its space is that of its ranks' blocks, and if
that is another one than before, all ends that was of the one before.  When a rank goes, its loads
and saves are given up; it is gone once nothing of it runs any more.
"""

from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Do, Effect, Note, On, Part, Reply, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire import gpu as gpus
from pegaflow.wire import layout as layouts
from pegaflow.wire.control import Refused
from pegaflow.wire.gpujobs import MapGpu
from pegaflow.wire.identities import NO_NAMESPACE
from pegaflow.wire.jobs import (
    BounceOpened,
    Done,
    DrawProof,
    Job,
    MapEngine,
    OpenBounce,
    ProofDrawn,
    UnmapEngine,
    Unreachable,
)
from pegaflow.wire.session import Attach, Attached, Leave, Left, Prove, Proven, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, INDEX, NOBODY, U64s

from .devices import Devices
from .engine import CLIENTS_MAX, Engine
from .hazards import HazardBook
from .leases import Leases
from .loads import Loads
from .ranks import (
    Rank,
    bounce_slots,
    choose_ways,
    complete,
    fault,
    new_rank,
    wants_cuda_ipc,
    wants_process_vm,
)
from .reservation import Reservation
from .saves import Saves
from .space import space_of


class Attachment(Part):
    """Ranks that come and go, and what that means for the other parts."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        devices: Devices,
        hazards: HazardBook,
        leases: Leases,
        loads: Loads,
        saves: Saves,
        reservation: Reservation,
    ) -> None:
        self._member, self._engine, self._hazards = member, engine, hazards
        self._devices = devices
        self._leases, self._loads, self._saves = leases, loads, saves
        self._reservation = reservation
        self._mapping = 0  # newest mapping number

    def handlers(self) -> Iterable[On]:
        """The words of clients that come and go."""
        return (
            on(Attach, self._on_attach, CLIENT),
            on(Proven, self._on_proven, CLIENT),
            on(Leave, self._on_leave, CLIENT),
            on(Unreachable, self._on_unreachable, self._member.address.name),
        )

    def _on_attach(self, sender: Sender, msg: Attach, now: int) -> list[Effect]:
        self._engine.meet(sender)
        refusal = self._fault(sender, msg)
        if refusal is not None:
            return [Reply(sender, refusal)]
        effects = (
            [] if self._engine.is_blind(sender) else self._engine.watch(msg.pid, msg.started_ticks)
        )
        old = self._engine.ranks.get(msg.rank)
        if old is not None:
            effects += self._give_up(old)
        if any(rank.number == msg.rank for rank in self._engine.leaving) or self._saves_run():
            busy = Refused(Status.NOT_READY, "earlier copies of this rank are still under way")
            return [*effects, Reply(sender, busy)]
        self._mapping += 1
        rank = self._engine.ranks[msg.rank] = new_rank(sender.address, msg, self._mapping)
        if not self._engine.is_blind(sender) and wants_cuda_ipc(rank):
            job = MapGpu(
                rank.mapping, rank.layout, msg.gpu, pid=msg.pid, started_ticks=msg.started_ticks
            )
            return effects + self._map(rank, sender, job)
        if self._engine.is_blind(sender) or not wants_process_vm(rank):
            return effects + self._bounce(rank, sender, now)

        def drawn(result: ProofDrawn, now: int) -> list[Effect]:
            rank.proof = result.proof
            return [Reply(sender, Prove(rank.proof))]

        return [*effects, Do(DrawProof(), drawn)]

    def _fault(self, sender: Sender, msg: Attach) -> Refused | None:
        if self._engine.serve is None or self._member.welcome is None:
            return Refused(Status.NOT_READY, "the session has no engine yet")
        if self._member.peer(INDEX) == NOBODY or self._member.peer(ALLOCATOR) == NOBODY:
            return Refused(Status.NOT_READY, "index or allocator is not up yet")
        if not self._engine.has_room_for(sender.address, msg.pid, msg.started_ticks):
            return Refused(Status.BUSY, f"{CLIENTS_MAX} clients have attached to this session")
        why = layouts.fault(msg.layout, msg.region_bytes)
        if why:
            return Refused(Status.BAD_LAYOUT, why)
        if self._engine.is_blind(sender) and msg.way is Way.PROCESS_VM:
            why = (
                "process_vm is not for clients on TCP or in another pid namespace: "
                "let `way` be auto or staged"
            )
            return Refused(Status.BAD_REQUEST, why)
        why = gpus.fault(msg.gpu, msg.region_bytes) if msg.gpu.regions else ""
        why = why or fault(msg, self._engine.ranks)
        if why:
            return Refused(Status.BAD_REQUEST, why)
        if layouts.page_size(msg.layout) > self._member.welcome.extent_bytes:
            size = layouts.page_size(msg.layout)
            why = (
                f"a block of {size} bytes is larger than an extent: serve with --extent-size {size}"
            )
            return Refused(Status.TOO_LARGE, why)
        return None

    def _on_proven(self, sender: Sender, msg: Proven, now: int) -> list[Effect]:
        mine = (r for r in self._engine.ranks.values() if r.client == sender.address and r.proof)
        rank = next(mine, None)
        if rank is None:
            return [Reply(sender, Refused(Status.NOT_READY, "attach first"))]
        asked, proof = rank.asked, rank.proof
        rank.proof = b""
        job = MapEngine(
            mapping=rank.mapping,
            pid=asked.pid,
            started_ticks=asked.started_ticks,
            bases=asked.bases,
            layout=rank.layout,
            scratch=asked.scratch,
            proof=proof,
        )
        return self._map(rank, sender, job)

    def _map(self, rank: Rank, sender: Sender, job: Job[Done]) -> list[Effect]:
        """Have the device reach the rank's memory; if it cannot, the rank is served staged."""

        def mapped(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            if rank.gone:
                return [self._unmap(rank, sender)] if rank.on_gpu else self._too_late(rank, sender)
            if done.status is Status.OK:
                choose_ways(rank)
            elif rank.asked.way is Way.PROCESS_VM:
                return [Reply(sender, Refused(done.status, done.note)), *self._give_up(rank)]
            rank.note = done.note
            return self._bounce(rank, sender, now)

        rank.running += 1
        return [Do(job, mapped)]

    def _bounce(self, rank: Rank, sender: Sender, now: int) -> list[Effect]:
        """Make the bounce file, if this rank saves through one; then it is there."""
        if rank.saves is not Way.STAGED:
            return self._attached(rank, sender, "", (), now=now)
        slots = bounce_slots(rank.page_size)

        def opened(result: BounceOpened | Done, now: int) -> list[Effect]:
            rank.running -= 1
            if rank.gone:
                return self._too_late(rank, sender)
            if isinstance(result, Done):
                return [Reply(sender, Refused(result.status, result.note)), *self._give_up(rank)]
            rank.slots, rank.free_slots = slots, list(range(slots))
            return self._attached(rank, sender, result.path, result.file, now=now)

        rank.running += 1
        return [Do(OpenBounce(slots, rank.page_size, rank.mapping), opened)]

    def _too_late(self, rank: Rank, sender: Sender) -> list[Effect]:
        taken = Refused(Status.DROPPED, "another client took this rank")
        return [Reply(sender, taken), *self._engine.left(rank)]

    def _attached(
        self, rank: Rank, sender: Sender, path: str, file: U64s, *, now: int
    ) -> list[Effect]:
        engine, welcome = self._engine, self._member.welcome
        assert welcome is not None
        rank.there = True
        effects: list[Effect] = []
        if rank.loads is Way.CUDA_IPC:
            effects = self._devices.used(rank.asked.gpu)
        else:
            self._devices.elsewhere()
        if complete(engine.ranks):
            engine.complete = True
            effects += self._completed(now)
        space = (
            engine.space.namespace if engine.complete and engine.space is not None else NO_NAMESPACE
        )
        answer = Attached(
            pool_path=welcome.pool_path,
            pool_bytes=welcome.pool_bytes,
            bounce_path=path,
            slots=rank.slots,
            page_size=rank.page_size,
            namespace=space,
            loads=rank.loads,
            saves=rank.saves,
            note=rank.note,
            pool_file=welcome.pool_file,
            bounce_file=file,
            chains=True,
        )
        facts = (
            ("engine", engine.name),
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
        engine = self._engine
        rank.gone = True
        engine.complete = False
        self._hazards.pause()
        del engine.ranks[rank.number]
        engine.leaving.append(rank)
        effects: list[Effect] = [self._unmap(rank)]
        effects += self._saves.forget(rank) + self._loads.forget(rank)
        return effects + engine.left(rank)

    def _unmap(self, rank: Rank, late: Sender | None = None) -> Effect:
        """No copy begins any more; of a GPU the rank goes only when all handles are closed.

        Args:
            late: who attached it, to be told then that somebody else has it.
        """
        rank.running += rank.on_gpu

        def unmapped(done: Done, now: int) -> list[Effect]:
            rank.running -= rank.on_gpu
            if late is not None:
                return self._too_late(rank, late)
            return self._engine.left(rank) if rank.on_gpu else []

        return Do(UnmapEngine(rank.mapping), unmapped)

    def _on_leave(self, sender: Sender, msg: Leave, now: int) -> list[Effect]:
        client = sender.address
        if client not in self._engine.clients:
            return [Reply(sender, Left())]
        self._engine.clients.remove(client)
        self._engine.remote.discard(client)
        if client == self._hazards.borrower:
            self._hazards.lend(NOBODY)
        mine = [rank for rank in self._engine.ranks.values() if rank.client == client]
        if not mine:
            return [Reply(sender, Left()), *self._engine.end_if_alone()]
        for rank in mine:
            rank.leaving = sender
        return [e for rank in mine for e in self._give_up(rank)]

    def _on_unreachable(self, sender: Sender, msg: Unreachable, now: int) -> list[Effect]:
        """A remote client's connection is gone: as if it had left."""
        gone = msg.address in self._engine.remote
        return self._on_leave(Sender(msg.address), Leave(), now) if gone else []

    def _saves_run(self) -> bool:
        """Whether pages of the last complete layout are still in use."""
        return not self._engine.complete and self._saves.busy()

    def _completed(self, now: int) -> list[Effect]:
        """From now on the ranks' blocks have a namespace."""
        engine, welcome, old = self._engine, self._member.welcome, self._engine.space
        assert welcome is not None and engine.serve is not None
        space = space_of(welcome, engine.serve, engine.ranks)
        effects: list[Effect] = []
        if old is None or (old.namespace, old.page_size) != (space.namespace, space.page_size):
            if old is not None:
                effects = self._reservation.forget() + self._leases.end_all()
                self._saves.start_anew()
                self._hazards.recall()
            engine.space = space
        return effects + self._reservation.refill(now) + self._hazards.begin(now)
