"""The session: one engine's process.  See wire/session.py.

A spare waits until the supervisor gives it an engine (Serve).  From then on it lives exactly as
long as its engine: when a client process is proven dead (one on TCP: out of reach, see afar.py), or
the last client leaves, the session stops, and with one process all goes that the engine left
behind.

Its books: the leases it holds for the engine's requests (here), and the saves under way (saves.py).
A lease is passed on to the index's Release only when no copy of it runs, whoever asked for it.
"""

from dataclasses import dataclass
from hashlib import blake2b

from pegaflow.cache.geometry import Geometry
from pegaflow.wire import index as to_index
from pegaflow.wire import layout as layouts
from pegaflow.wire.allocator import Reserved, Return
from pegaflow.wire.control import Hello, Refused, Serve, Serving
from pegaflow.wire.index import Claimed, EndClaim, Held, Holding
from pegaflow.wire.jobs import Done, OpenBounce, Unreachable, WatchProcess
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    LEASE_IDLE_NS,
    Attach,
    Attached,
    Confirmed,
    Copied,
    Drop,
    Found,
    Keep,
    Leave,
    Load,
    Lookup,
    Pages,
    Ping,
    Pong,
    Release,
    Save,
    Saved,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, INDEX, NOBODY, SUPERVISOR, Address

from .actor import Ask, Do, Effect, NoAnswer, Note, Reply, Send, Sender
from .afar import Afar
from .child import Child
from .saves import INDEX_NS, Saves

BOUNCE_BYTES = 64 << 20
"""Size of the bounce file: four batches of 256 KiB pages; more would only leave the CPU cache."""

SLOTS_MAX = 1024
"""Slots of the bounce file: of small pages, more would never be under way at once."""

COPIES_MAX = 4096
"""Loads under way at once: an engine has one per request at most."""

LOOKUPS_MAX = 4096
"""Lookups that the index has not answered: an engine has one per waiting request at most."""

CLIENTS_MAX = 1024
"""Clients of one engine: its scheduler and workers, and all that they were before a reconnect."""


@dataclass(slots=True)
class _Lease:
    pages: tuple[int, ...]  # one per block
    used: int  # when it was last asked for
    copies: int = 0  # loads of it that run now
    ended: bool = False  # release it as soon as no copy runs


@dataclass(slots=True)
class _Rank:
    client: Address
    attached: Attached | None = None  # None while the bounce file is being made


class Session(Child):
    """Moves one engine's blocks."""

    DIALS = (ALLOCATOR, INDEX)

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.serve: Serve | None = None  # the engine; None: a spare
        self.clients: set[Address] = set()  # that have spoken and not left
        self.watched: set[tuple[int, int]] = set()  # (pid, start) of client processes
        self.afar = Afar()  # those of the clients that are on TCP
        self.rank: _Rank | None = None  # the attached rank
        self.saves: Saves | None = None  # there once the rank is attached
        self.leases: dict[int, _Lease] = {}  # by the index's number
        self.leased_upto = 0  # newest lease number we have seen
        self.copies: dict[int, tuple[Address, int]] = {}  # load under way -> client, lease
        self._copy = 0  # newest load number
        self._lookups = 0  # asked of the index, without an end yet
        self.on(Serve, self._on_serve, SUPERVISOR)
        self.on(Attach, self._on_attach, CLIENT)
        self.on(Lookup, self._on_lookup, CLIENT)
        self.on(Load, self._on_load, CLIENT)
        self.on(Copied, self._on_copied, CLIENT)
        self.on(Save, self._on_save, CLIENT)
        self.on(Keep, self._on_keep, CLIENT)
        self.on(Drop, self._on_drop, CLIENT)
        self.on(Release, self._on_release, CLIENT)
        self.on(Leave, self._on_leave, CLIENT)
        self.on(Ping, self._on_ping, CLIENT)
        self.on(Unreachable, self._on_unreachable, address.name)
        self.on(Held, self._on_held_again, INDEX)
        self.on(Reserved, self._on_reserved_again, ALLOCATOR)

    def gauges(self) -> dict[str, int]:
        """What is open now."""
        saves = self.saves
        return {
            "session_clients": len(self.clients),
            "session_attached": int(saves is not None),
            "session_leases": len(self.leases),
            "session_loads_open": len(self.copies),
            "session_saves_open": len(saves.saves) if saves else 0,
            "session_held_bytes": saves.held_bytes() if saves else 0,
        }

    def check(self) -> None:
        """Copies belong to leases; slots and pages add up."""
        running: dict[int, int] = {}
        for _, leased in self.copies.values():
            running[leased] = running.get(leased, 0) + 1
        for number, lease in self.leases.items():
            assert lease.copies == running.pop(number, 0)
            assert lease.copies or not lease.ended
        assert not running, "a copy of a lease that has ended"
        if self.saves:
            self.saves.check()

    def beat(self, now: int) -> list[Effect]:
        """State what we hold, so that the granters can mend what was lost."""
        if self.afar.overdue(now):
            return self._engine_lost(("why", "it never came"))
        effects = self.afar.beat()
        if self.saves is None:
            return effects
        for number, lease in list(self.leases.items()):
            if not lease.copies and now - lease.used > LEASE_IDLE_NS:
                self.counts["leases_idle"] += 1
                effects += self._end_lease(number)
        saves = self.saves
        holding = Holding(self.leased_upto, tuple(self.leases), saves.claimed_upto, saves.claims())
        effects.append(Send(self.peer(INDEX), holding))
        effects.append(Send(self.peer(ALLOCATOR), saves.stock_statement()))
        return effects

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """A grant that nobody waits for goes back; only our own granters grant."""
        if self.peers.get(sender.name) != sender:
            return []
        if isinstance(msg, Held) and msg.number:
            self.leased_upto = max(self.leased_upto, msg.number)
            return [Send(sender, to_index.Release(msg.number))]
        if isinstance(msg, Claimed) and msg.number:
            return [Send(sender, EndClaim(msg.number))]
        if isinstance(msg, Reserved) and msg.status is Status.OK:
            if self.saves is None:
                return [Send(sender, Return(msg.pages))]
            return self.saves.reserved(msg, now)
        return []

    def _on_serve(self, sender: Sender, msg: Serve, now: int) -> list[Effect]:
        if self.serve is None:
            self.serve = msg
            if msg.remote:
                self.afar.expect(now)
                return [Reply(sender, Serving())]
            return [Reply(sender, Serving()), *self._watch(msg.pid, msg.started)]
        same = (self.serve.engine, self.serve.generation) == (msg.engine, msg.generation)
        assert same, "a session serves one engine"
        return [Reply(sender, Serving())]

    def _watch(self, pid: int, started: int) -> list[Effect]:
        if (pid, started) in self.watched:
            return []
        self.watched.add((pid, started))

        def dead(done: Done, now: int) -> list[Effect]:
            return self._engine_lost(("engine_pid", pid))

        return [Do(WatchProcess(pid, started), dead)]

    def _on_unreachable(self, sender: Sender, msg: Unreachable, now: int) -> list[Effect]:
        if msg.address not in self.afar.clients:
            return []
        return self._engine_lost(("why", "its connection is gone"))

    def _engine_lost(self, fact: tuple[str, str | int]) -> list[Effect]:
        assert self.serve is not None
        return [Note("engine_died", (("engine", self.serve.engine), fact)), *self.farewell()]

    def _on_attach(self, sender: Sender, msg: Attach, now: int) -> list[Effect]:
        self._meet(sender)
        refusal = self._fault(sender.address, msg)
        if refusal is not None:
            return [Reply(sender, refusal)]
        effects = [] if sender.remote else self._watch(msg.pid, msg.started)
        if self.rank is not None and self.saves is not None:
            effects += self._forget(self.rank.client, now)
            if self.saves.saves:
                busy = Refused(Status.NOT_READY, "earlier saves of this rank are still under way")
                return [*effects, Reply(sender, busy)]
        rank = self.rank = _Rank(sender.address)
        page_size = layouts.page_size(msg.layout)
        slots = max(1, min(SLOTS_MAX, BOUNCE_BYTES // page_size))

        def opened(done: Done, now: int) -> list[Effect]:
            if rank is not self.rank:
                return [Reply(sender, Refused(Status.DROPPED, "another client took this rank"))]
            if done.status is not Status.OK:
                self.rank = None
                return [Reply(sender, Refused(done.status, done.note))]
            return self._attached(sender, msg, slots, page_size, done.note, now)

        return [*effects, Do(OpenBounce(slots, page_size), opened)]

    def _meet(self, sender: Sender) -> None:
        """Know a client from now on, unless there are too many."""
        if len(self.clients) < CLIENTS_MAX:
            self.clients.add(sender.address)
        self.afar.meet(sender, self.clients)

    def _fault(self, client: Address, msg: Attach) -> Refused | None:
        if self.serve is None or self.welcome is None:
            return Refused(Status.NOT_READY, "the session has no engine yet")
        if self.peer(INDEX) == NOBODY or self.peer(ALLOCATOR) == NOBODY:
            return Refused(Status.NOT_READY, "index or allocator is not up yet")
        full = len(self.watched) >= CLIENTS_MAX and (msg.pid, msg.started) not in self.watched
        if full or client not in self.clients:
            return Refused(Status.BUSY, f"{CLIENTS_MAX} clients have attached to this session")
        if msg.world != 1 or msg.rank != 0:
            why = f"rank {msg.rank} of {msg.world}: tensor parallel engines are not served yet"
            return Refused(Status.BAD_REQUEST, why)
        why = layouts.fault(msg.layout, msg.region_bytes)
        if why:
            return Refused(Status.BAD_LAYOUT, why)
        if layouts.page_size(msg.layout) > self.welcome.extent_bytes:
            size = layouts.page_size(msg.layout)
            why = (
                f"a block of {size} bytes is larger than an extent: serve with --extent-size {size}"
            )
            return Refused(Status.TOO_LARGE, why)
        return None

    def _attached(
        self, sender: Sender, msg: Attach, slots: int, page_size: int, path: str, now: int
    ) -> list[Effect]:
        assert self.welcome is not None and self.serve is not None and self.rank is not None
        namespace = blake2b(
            b"".join(
                blake2b(part, digest_size=32).digest()
                for part in (
                    self.serve.namespace,
                    self.serve.probe,
                    layouts.fingerprint(msg.layout),
                )
            ),
            digest_size=16,
        ).digest()
        geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        effects: list[Effect] = []
        saves = Saves(namespace, page_size, layouts.page_bytes(msg.layout), slots)
        if self.saves is not None:
            effects.append(Send(self.peer(ALLOCATOR), Return(tuple(self.saves.stock))))
            saves.granted_upto, saves.claimed_upto = (
                self.saves.granted_upto,
                self.saves.claimed_upto,
            )
        saves.index, saves.allocator = self.peer(INDEX), self.peer(ALLOCATOR)
        saves.offset_of = lambda page: geometry.offset(page, page_size)
        if self.saves is not None and self.saves.namespace != namespace:
            for number in list(self.leases):  # blocks of another layout: never into this one
                effects += self._end_lease(number)
        self.saves = saves
        self.rank.attached = Attached(
            self.welcome.pool_path, self.welcome.pool_bytes, path, slots, page_size, namespace
        )
        facts = (
            ("engine", self.serve.engine),
            ("page_size", page_size),
            ("namespace", namespace.hex()),
        )
        note = Note("engine_attached", facts)
        return [*effects, note, Reply(sender, self.rank.attached), *saves.refill(now)]

    def _on_lookup(self, sender: Sender, msg: Lookup, now: int) -> list[Effect]:
        self._meet(sender)
        if self.saves is None:
            return [Reply(sender, Found(Status.NOT_ATTACHED, 0, 0))]
        if self._lookups >= LOOKUPS_MAX or sender.address not in self.clients:
            return [Reply(sender, Found(Status.BUSY, 0, 0))]
        self._lookups += 1

        def held(answer: Message, now: int) -> list[Effect]:
            self._lookups -= 1
            if not isinstance(answer, Held):
                status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
                return [Reply(sender, Found(status, 0, 0))]
            if not answer.number:
                return [Reply(sender, Found(Status.OK, 0, 0))]
            self.leased_upto = max(self.leased_upto, answer.number)
            self.leases[answer.number] = _Lease(answer.pages, now)
            other = self.saves is None or self.saves.namespace != ask.namespace
            if other or sender.address not in self.clients:
                miss = Reply(sender, Found(Status.OK, 0, 0))
                return [miss, *self._end_lease(answer.number)]
            return [Reply(sender, Found(Status.OK, answer.number, len(answer.pages)))]

        self.counts["blocks_asked"] += len(msg.keys)
        ask = to_index.Find(self.saves.namespace, msg.keys)
        deadline = min(sender.deadline or now + INDEX_NS, now + INDEX_NS)
        return [Ask(self.saves.index, ask, deadline, held)]

    def _on_load(self, sender: Sender, msg: Load, now: int) -> list[Effect]:
        if self.saves is None or self.rank is None or self.rank.client != sender.address:
            return [Reply(sender, Pages(Status.NOT_ATTACHED, 0, ()))]
        lease = self.leases.get(msg.lease)
        if lease is None or lease.ended:
            return [Reply(sender, Pages(Status.NO_SUCH_LEASE, 0, ()))]
        if msg.rank != 0 or msg.count == 0 or msg.first + msg.count > len(lease.pages):
            return [Reply(sender, Pages(Status.BAD_REQUEST, 0, ()))]
        if len(self.copies) >= COPIES_MAX:
            return [Reply(sender, Pages(Status.BUSY, 0, ()))]
        self._copy += 1
        self.copies[self._copy] = (sender.address, msg.lease)
        lease.copies += 1
        lease.used = now
        pages = lease.pages[msg.first : msg.first + msg.count]
        self.counts["blocks_loaded"] += len(pages)
        offsets = tuple(map(self.saves.offset_of, pages))
        return [Reply(sender, Pages(Status.OK, self._copy, offsets))]

    def _on_copied(self, sender: Sender, msg: Copied, now: int) -> list[Effect]:
        client, number = self.copies.get(msg.copy, (NOBODY, 0))
        if client != sender.address:
            return [Reply(sender, Confirmed(Status.NO_SUCH_LEASE))]
        del self.copies[msg.copy]
        self.leases[number].copies -= 1
        self.leases[number].used = now
        return [Reply(sender, Confirmed(Status.OK)), *self._end_lease(number)]

    def _end_lease(self, number: int) -> list[Effect]:
        """Release a lease, or mark it so while a copy of it runs."""
        lease = self.leases[number]
        lease.ended = True
        if lease.copies:
            return []
        del self.leases[number]
        return [Send(self.peer(INDEX), to_index.Release(number))]

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        return self._end_lease(msg.lease) if msg.lease in self.leases else []

    def _on_save(self, sender: Sender, msg: Save, now: int) -> list[Effect]:
        if self.saves is None or self.rank is None or self.rank.client != sender.address:
            return [Reply(sender, Saved(Status.NOT_ATTACHED, 0, 0))]
        if msg.parent and len(msg.parent) != len(msg.keys[0] if msg.keys else b""):
            return [Reply(sender, Saved(Status.BAD_REQUEST, 0, 0))]
        return self.saves.begin(sender, msg, now)

    def _on_keep(self, sender: Sender, msg: Keep, now: int) -> list[Effect]:
        return self.saves.keep(sender.address, msg, now) if self.saves else []

    def _on_drop(self, sender: Sender, msg: Drop, now: int) -> list[Effect]:
        return self.saves.drop(sender.address, msg, now) if self.saves else []

    def _on_leave(self, sender: Sender, msg: Leave, now: int) -> list[Effect]:
        client = sender.address
        if client not in self.clients:
            return []
        self.clients.remove(client)
        self.afar.clients.discard(client)
        if not self.clients:
            return self.farewell()
        return self._forget(client, now)

    def _forget(self, client: Address, now: int) -> list[Effect]:
        """The client copies nothing any more: its saves without Keep and its loads are over."""
        effects = self.saves.leave(client, now) if self.saves is not None else []
        for copy in [c for c, (owner, _) in self.copies.items() if owner == client]:
            _, number = self.copies.pop(copy)
            self.leases[number].copies -= 1
            effects += self._end_lease(number)
        return effects

    def _on_ping(self, sender: Sender, msg: Ping, now: int) -> list[Effect]:
        self._meet(sender)
        return [Reply(sender, Pong())]

    def _on_held_again(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A lease sent again: ours already, or one that we never heard of and hand back."""
        if msg.number in self.leases:
            return []
        return self.late(sender.address, msg, now)

    def _on_reserved_again(self, sender: Sender, msg: Reserved, now: int) -> list[Effect]:
        return self.late(sender.address, msg, now)
