"""A scripted engine: one life of a scheduler and its ranks, and what they do to the cache.

An engine of one rank is one process.  One of several is a scheduler, which opens the session and
looks up, and a process per rank, which joins, loads and saves by the scheduler's orders; they start
in any order and die one by one.  The bytes of a block follow from its key and shard, so a load that
ended well can be judged byte by byte.  At random times a rank takes back the blocks of a save under
way and overwrites them at once, as another thread of a real engine would.

Some orders are *poisoned*: the ranks hold wrong bytes for them, and one rank never keeps the order
(it skips it, drops it or never hears of it), or the scheduler does not commit it.  So none of it
may ever be seen.  Among replicas, which answer for a stripe of it each, only the second holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from pegaflow.client.machine import State
from pegaflow.client.results import Chain, Done, Lease, LookupDone
from pegaflow.wire.identities import NO_KEY, Key

from .books import Books, Operation, Role, content
from .client import BLOCKS, Client
from .files import Files
from .gpu import BUSES
from .world import MS, US, Call, World

CHAINS = 7
CHAIN_BLOCKS = 14
FORK = 4
"""Chains of keys that all engines share; every two of them have their first FORK blocks in common,
and all together are larger than the pool, so that eviction never rests."""

OPEN_MAX = 6
"""Operations of one engine at a time."""


def chain(number: int) -> tuple[Key, ...]:
    """The keys of a chain, head first."""
    keys: list[Key] = []
    for depth in range(CHAIN_BLOCKS):
        branch = number // 2 if depth < FORK else number
        parent = keys[-1] if keys else NO_KEY
        keys.append(Key(blake2b(parent + bytes((depth, branch)), digest_size=16).digest()))
    return tuple(keys)


ALL_CHAINS = tuple(map(chain, range(CHAINS)))


@dataclass(frozen=True, slots=True)
class Kind:
    """What does not change from one life of an engine to the next."""

    name: str
    size: int  # bytes of a block of one rank
    ranks: int = 1
    replicas: int = 1  # ranks that hold the same bytes


@dataclass(slots=True)
class _Task:
    """Blocks that some ranks work on."""

    blocks: tuple[int, ...]
    waiting: int  # ranks that have not said that they are done


@dataclass(frozen=True, slots=True)
class _Chain:
    """Blocks that the ranks save under one order."""

    order: int
    keys: tuple[Key, ...]
    parent: Key
    task: _Task
    manners: list[str]  # what each rank does with it
    poisoned: bool  # the ranks hold wrong bytes of it

    def said(self, gone: set[int]) -> Chain:
        """As a rank's client is told.

        Args:
            gone: orders whose blocks hold something else, from now on or later.
        """
        valid = lambda: self.order not in gone  # noqa: E731
        blocks = self.task.blocks
        return Chain(self.keys, blocks, order=self.order, parent=self.parent, valid=valid)


class Engine:
    """One life of one engine."""

    def __init__(self, world: World, files: Files, books: Books, kind: Kind) -> None:
        self.world, self.files, self.books, self.kind = world, files, books, kind
        self.generation = world.rng.randbytes(16)
        self.procs: dict[int, Client] = {}  # by rank; -1: a scheduler of several ranks
        self.free = list(range(BLOCKS))
        self.leases: list[tuple[Lease, tuple[Key, ...]]] = []  # not released, as far as known
        self.acting = True  # False: starts nothing any more
        self.leaves = False
        self.tasks = 0  # under way
        self.order = 0  # newest save
        self.again: tuple[tuple[Key, ...], Key] | None = None  # to be computed once more
        self._last: dict[tuple[int, int], int] = {}  # arrival of the newest word, by from and to
        self._doomed: set[int] = set()  # parts that have died or never will start
        self.chief = 0 if kind.ranks == 1 else -1
        self.on_gpu = world.gpus > 0 and world.chips.random() < world.gpus
        parts = [*range(kind.ranks)] if kind.ranks == 1 else [-1, *range(kind.ranks)]
        world.rng.shuffle(parts)
        for part in parts:
            delay = world.between(0, world.rng.choice((5 * MS, 300 * MS)))
            world.at(world.now + delay, lambda part=part: self._start(part))  # type: ignore[misc]

    def _start(self, part: int) -> None:
        if part in self._doomed:
            return
        way = self.world.rng.choice(self.world.ways)
        kind, rank, opens = self.kind, part if part >= 0 else None, part == self.chief
        role = Role(
            kind.name,
            self.generation,
            kind.size,
            kind.ranks,
            rank=rank,
            opens=opens,
            way=way,
            replicas=kind.replicas,
            gpu=part % len(BUSES) if self.on_gpu and part >= 0 else -1,
        )
        client = self.procs[part] = Client(self.world, self.files, self.books, role)
        self.world.note(client.address, f"is {kind.name}, part {part} of {kind.ranks}, {way.name}")
        if opens:
            self.world.openers[self.generation] = (client.pid, client.started_ticks)
            client.after(self.world.between(0, 5 * MS), self.act)

    # its ends

    @property
    def whole(self) -> bool:
        """Whether all of its processes live."""
        return len(self.procs) == self.kind.ranks + (self.chief < 0) and all(
            client.alive for client in self.procs.values()
        )

    @property
    def some_live(self) -> bool:
        """Whether any of its processes lives."""
        return any(client.alive for client in self.procs.values())

    def crash(self, client: Client | None = None) -> None:
        """One process dies, and the others follow: at once, or after a while of clinging to it."""
        parts = [part for part, proc in self.procs.items() if client in (None, proc)]
        first = self.world.rng.choice(parts)
        self._kill(first)
        for part in (part for part in range(self.chief, self.kind.ranks) if part != first):
            patience = self.world.rng.choice((MS, 50 * MS, 3000 * MS))
            after = self.world.now + self.world.between(0, patience)
            self.world.at(after, lambda part=part: self._kill(part))  # type: ignore[misc]

    def _kill(self, part: int) -> None:
        self._doomed.add(part)
        if part in self.procs:
            self.procs[part].die("crashes")

    def leave(self) -> None:
        """All processes close their clients and end."""
        self.acting, self.leaves = False, True
        self._doomed.update(range(self.chief, self.kind.ranks))
        for client in self.procs.values():
            client.input(lambda client=client: client.do(client.leave))  # type: ignore[misc]

    def settle(self) -> None:
        """Start nothing any more; give back what is not in use."""
        self.acting = False

        def give_all_back() -> None:
            while self.leases:
                self._give_back(0)

        chief = self.procs[self.chief]
        chief.input(lambda: chief.do(give_all_back))

    # what the scheduler does

    def act(self) -> None:
        """One random fault, then another some time later."""
        if not self.acting:
            return
        rng, chief = self.world.rng, self.procs[self.chief]
        pause = rng.choice((MS, 10 * MS, 30 * MS, 100 * MS))
        pause *= 1 if chief.machine.state is State.READY else 5
        chief.after(self.world.between(pause // 2, pause * 2), self.act)
        if rng.random() < 0.01:
            self._tell(rng.randrange(self.kind.ranks), lambda client: client.unregister())
        elif self.tasks < OPEN_MAX:
            faults = [self.look_up, self.save, self.save]
            faults += [self.load, self.load, self.load, self.release] if self.leases else []
            chief.do(rng.choice(faults))

    def look_up(self) -> None:
        """Ask for a prefix of some chain."""
        chief = self.procs[self.chief]
        keys = self._some_chain()[: self.world.between(1, CHAIN_BLOCKS + 1)]

        def found(done: Done) -> None:
            self.tasks -= 1
            if isinstance(done, LookupDone) and done.lease is not None:
                self.leases.append((done.lease, keys))

        known = chief.finding.find(keys, self.world.now)
        if known is not None:
            self.world.counts["client: lookups"] += 1
            if known.lease is not None:
                self.leases.append((known.lease, keys))
            return
        chief.run(chief.finding.wish(self.world.now))
        self.tasks += 1
        ticket, effects = chief.machine.operations.lookup(keys, self._deadline())
        chief.start(ticket, Operation("lookup", keys, found), effects)

    def save(self) -> None:
        """Let the ranks compute some blocks of a chain, or of several, and save them together."""
        rng = self.world.rng
        commits = rng.random() < 0.3
        made = [self._compute(commits) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        chains = [chain for chain in made if chain is not None]
        self.world.counts["client: chains in a save"] += len(chains) if len(chains) > 1 else 0
        for rank in range(self.kind.ranks if chains else 0):
            self._tell(rank, lambda client: self._save(client, chains, commits))

    def _compute(self, commits: bool) -> _Chain | None:
        """What is to become of a chain's blocks; none if there is no room."""
        rng = self.world.rng
        keys = self._some_chain()
        start = rng.choice((0, 0, 0, FORK, rng.randrange(CHAIN_BLOCKS)))
        parent = keys[start - 1] if start else NO_KEY
        keys = keys[start : start + rng.randrange(1, CHAIN_BLOCKS)]
        if self.again is not None and rng.random() < 0.5:
            (keys, parent), self.again = self.again, None
        task = self._allocate(len(keys))
        if task is None:
            return None
        self.order += 1
        order, ranks = self.order, self.kind.ranks
        manners = ["saves"] * ranks
        poisoned = False
        if ranks > 1 and rng.random() < 0.35:
            manners[rng.randrange(ranks)] = rng.choice(("skips", "never hears of", "drops"))
            poisoned = rng.random() < 0.7 and self.kind.replicas == 1
            self.again = keys, parent
        if commits and rng.random() < 0.3:
            poisoned, self.again = True, (keys, parent)
            self._take_word_back(order)
        elif commits:
            self._commit(order)
        return _Chain(order, keys, parent, task, manners=manners, poisoned=poisoned)

    def _commit(self, order: int) -> None:
        """The scheduler stands by an order: at once, or when the ranks may have copied it."""
        chief = self.procs[self.chief]
        chief.after(
            self.world.rng.choice((0, MS, 30 * MS)),
            lambda: chief.do(lambda: chief.run(chief.machine.operations.commit((order,)))),
        )

    def _take_word_back(self, order: int) -> None:
        """The scheduler does not stand by an order, and says so or not."""
        chief = self.procs[self.chief]
        self.world.note(chief.address, f"order {order} is void")
        if self.world.rng.random() < 0.5:
            chief.after(
                self.world.rng.choice((0, MS, 30 * MS)),
                lambda: chief.do(lambda: chief.run(chief.machine.operations.skip(order))),
            )

    def load(self) -> None:
        """Let the ranks load some blocks of a lease that we have."""
        if not self.leases:
            return
        rng = self.world.rng
        lease, keys = rng.choice(self.leases)
        first = rng.choice((0, 0, rng.randrange(lease.blocks)))
        keys = keys[first : lease.blocks]
        task = self._allocate(len(keys))
        if task is None:
            return
        chief = self.procs[self.chief]
        passed_on = chief.finding.share(lease)
        self.world.counts["client: leases passed on"] += len(passed_on)
        chief.run(passed_on)
        if rng.random() < 0.75:
            self.leases = [held for held in self.leases if held[0] != lease]
        for rank in range(self.kind.ranks):
            self._tell(rank, lambda client: self._load(client, lease, keys, first, task))

    def release(self) -> None:
        """Give some lease back."""
        if self.leases:
            self._give_back(self.world.rng.randrange(len(self.leases)))

    def _give_back(self, at: int) -> None:
        lease, _ = self.leases.pop(at)
        chief = self.procs[self.chief]
        if not chief.finding.release(lease):
            chief.run(chief.machine.operations.release(lease))

    # what a rank does

    def _save(self, client: Client, chains: list[_Chain], commits: bool) -> None:
        rng, rank, shard = self.world.rng, client.role.rank, client.role.shard
        assert rank is not None
        operations = client.machine.operations
        gone = {chain.order for chain in chains if chain.manners[rank] == "drops"}
        for chain in chains:
            manner = chain.manners[rank]
            wrong = " with wrong bytes" if chain.poisoned else ""
            if manner != "saves" or chain.poisoned:
                self.world.note(client.address, f"{manner} order {chain.order}{wrong}")
            if manner == "skips":
                client.run(operations.skip(chain.order))
        manners = {chain.manners[rank] for chain in chains}
        if manners == {"skips"} or "never hears of" in manners or not client.base:
            for chain in chains:
                self._done(client, chain.task)
            return
        for chain in chains:
            if chain.poisoned:
                client.spoil(chain.task.blocks)
                continue
            for key, block in zip(chain.keys, chain.task.blocks, strict=True):
                client.write(block, content(client.size, key, shard))

        def done(_: Done) -> None:
            for chain in chains:
                self._done(client, chain.task)

        keys = tuple(key for chain in chains for key in chain.keys)
        blocks = tuple(block for chain in chains for block in chain.task.blocks)
        ticket, effects = operations.save(
            [chain.said(gone) for chain in chains], self._deadline(), commits=commits
        )
        client.start(ticket, Operation("save", keys, done, blocks), effects)
        for chain in chains:
            often = 0.25 if chain.manners[rank] == "saves" else 0.8
            if rng.random() < often / len(chains):
                when = rng.choice((200 * US, 2 * MS, 20 * MS))
                some = [chain] if rng.random() < 0.5 else chains

                def take_back(some: list[_Chain] = some) -> None:
                    self._take_back(client, ticket, some, gone)

                client.after(rng.randrange(when), take_back)

    def _take_back(self, client: Client, ticket: int, some: list[_Chain], gone: set[int]) -> None:
        operation = client.open.get(ticket)
        if operation is None:
            return
        names = [chain.order for chain in some]
        self.world.note(client.address, f"takes the blocks of orders {names} back")
        gone.update(names)
        blocks = tuple(block for chain in some for block in chain.task.blocks)
        client.spoil(blocks)
        if len(blocks) == len(operation.blocks) and self.world.rng.random() < 0.5:
            client.do(lambda: client.drop(ticket))

    def _load(
        self, client: Client, lease: Lease, keys: tuple[Key, ...], first: int, task: _Task
    ) -> None:
        if not client.base:
            self._done(client, task)
            return
        ticket, effects = client.machine.operations.load(
            lease, task.blocks, first, self._deadline(), now=self.world.now
        )
        operation = Operation("load", keys, lambda done: self._done(client, task), task.blocks)
        client.start(ticket, operation, effects)

    # words between the processes of the engine

    def _tell(self, rank: int, call: Callable[[Client], None]) -> None:
        """The scheduler tells a rank; a rank that has not come up is told when it has."""

        def heard() -> None:
            client = self.procs.get(rank)
            if client is not None:
                client.do(lambda: call(client))
            elif rank not in self._doomed:
                self.world.at(self.world.now + 10 * MS, arrive)

        def arrive() -> None:
            client = self.procs.get(rank)
            if client is not None:
                client.input(heard)
            else:
                heard()

        if rank == self.chief:
            heard()
        else:
            self._word(self.chief, rank, arrive)

    def _done(self, client: Client, task: _Task) -> None:
        """A rank does not need these blocks any more."""

        def heard() -> None:
            task.waiting -= 1
            assert task.waiting >= 0
            if not task.waiting:
                self.tasks -= 1
                self.free.extend(task.blocks)

        rank = client.role.rank
        assert rank is not None
        chief = self.procs.get(self.chief)
        if rank == self.chief:
            heard()
        elif chief is not None:
            self._word(rank, self.chief, lambda: chief.input(heard))

    def _word(self, source: int, target: int, call: Call) -> None:
        """In order, some time."""
        arrival = max(self._last.get((source, target), 0) + 1, self.world.now + self.world.delay())
        self._last[source, target] = arrival
        self.world.at(arrival, call)

    def _some_chain(self) -> tuple[Key, ...]:
        """Some are asked for more often than others."""
        rng = self.world.rng
        return ALL_CHAINS[min(rng.randrange(CHAINS), rng.randrange(CHAINS))]

    def _deadline(self) -> int:
        patience = self.world.rng.choice((3 * MS, 40 * MS, 1000 * MS, 1000 * MS, 4000 * MS))
        return self.world.now + patience

    def _allocate(self, count: int) -> _Task | None:
        if count > len(self.free):
            return None
        self.tasks += 1
        return _Task(tuple(self.free.pop() for _ in range(count)), self.kind.ranks)

    @property
    def served(self) -> bool:
        """Whether every process is served and nothing is open."""
        return self.whole and all(client.served for client in self.procs.values())
