"""One run from a seed: a group, its engines, some seconds of faults, then rest and the last checks.

Time of faults: engines crash, leave, stop for a while; every kind of child crashes, gets no core
for a while, stops for less and for more than the watchdog's patience; the supervisor crashes or is
told to stop, and another one starts on what is left; links are full; an extent or a bounce file
finds no room; where pages are verified, bits turn; with SSDs, they fail for a while or rot, and the
host goes down and comes up with an empty pool; with engines on GPUs, kernels hang and copies are
slow, fail, or outlive the session that asked for them.  Now and then an index that is about to
evict does so in the middle of a session's lookup.  Besides, every run has its share of traps
(traps.py): faults that wait for one message to one kind of process.
"""

import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from pegaflow.actors.flusher import inventory, segments, volumes
from pegaflow.actors.index.actor import Index
from pegaflow.actors.session import batches, ranks, reservation, saves
from pegaflow.actors.session import leases as leasing
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.core.blocks import adoption
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.segments.plan import Admission, FlushPlan
from pegaflow.wire.allocator import Pressure
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch
from pegaflow.wire.identities import Key
from pegaflow.wire.session import Way
from pegaflow.wire.values import FLUSHER, INDEX, SESSION, Address

from .books import Books
from .checks import Checks
from .client import Client
from .disk import Medium
from .engine import Engine, Kind
from .faults import GRANTS, Faults
from .files import Files
from .memory import COPY_THREADS, ChildProc, House
from .traps import RARE, Trap, is_of_gpu, is_of_ssd, traps_of
from .world import MS, Proc, S, World

EXTENT = 256 * 1024
POOL = Geometry(4 * EXTENT, EXTENT)
FAULTS_NS = 11 * S
REST_NS = 16 * S
WRONG = (AssertionError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Longer than any deadline, back-off and retry together."""

PRESS_NS = 120 * S
"""So long engines may go on after the faults, if nobody has pressed on the pool before."""

SCALE = (
    (batches, "BATCH_BLOCKS", 4),
    (saves, "ORDER_NS", 2 * S),
    (reservation, "READY_PAGES_MAX", 6),
    (ranks, "SLOTS_MAX", 10),
    (leasing, "LEASE_IDLE_NS", 7 * S),
    (adoption, "CHUNK_RECORDS", 8),
    (volumes, "SEGMENT_SMALLEST", 160 * 1024),
    (inventory, "MANIFEST_KEYS", 8),
    (segments, "CARRY_BYTES", 32 * 1024),
    (segments, "RETRY_NS", (300 * MS, 700 * MS)),
)
"""Numbers of the product made as small as the pool: several batches to a save, slots that run out,
leases that go idle within the run, ledgers that are not read at once, segments that are recycled.
"""

SSD_PATHS = ("/ssd/0", "/ssd/1")
SSD_CAPACITY = 8 * 160 * 1024
"""Less than all blocks of a run together."""

DRAIN_S = 0.5

BAITS = {
    "Drain": ("supervisor is told to stop", 1),
    "Held": ("index dies on leases", 10),
    "Claiming": ("index dies on claims", 5),
    "Fence": ("session dies unfenced", 6),
    "Corrupt": ("bit turns", 40),
    "Pressure": ("engine saves", 60),
    "Release": ("engine releases", 30),
    "Load": ("engine loads", 60),
    "Touched": ("engine loads", 60),
    "Loaded": ("engine loads", 60),
    "Bye": ("engine leaves", 5),
    "WriteAll": ("supervisor is told to stop", 2),
    "Written": ("supervisor is told to stop", 2),
    "Forget": ("engine saves", 60),
    "Fetch": ("engine loads", 60),
    "Fetched": ("engine loads", 60),
    "Left": ("engine leaves", 5),
}
"""What makes a rare message likely, and how often it is done."""

OF_INDEX = ("blocks_fetched", "blocks_hit_ssd", "fetches_stale", "evictions_turned_back")
"""Counters of the index that tell of the SSD tier, and of hazards."""

ON_DISKS = "on disks"
"""Said among the faults: every run has SSDs."""

CHASE = 24
"""Runs in which a trap that nobody has met is alone.  From this seed on some engines are on GPUs:
what is sought in the first seeds (mutants.py, fleet.py) is found whatever becomes of them."""

ON_GPUS = "on GPUs"
"""And: most engines have their memory on a GPU."""

NOTHING_ELSE = "nothing else"
"""And: no trap, no fault but those asked for.  Among traps and faults of all kinds engines hardly
ever hold leases, and hardly ever press on the pool, before the faults are over."""

WITHIN_LOOKUPS = "evictions within lookups"
"""And: whenever pages are wanted, the index waits for a lookup of what it is going to evict, and
does so in the middle of it."""

BAIT_TIMES = 12
"""How often a run does what it was asked to do besides."""

SMALL, LARGE = 1024, 24 * 1024
"""Block sizes: one takes the smallest slot of the pool, the other a larger one, so that extents are
cut anew."""


KINDS = (
    (Kind("one", SMALL), Kind("two", SMALL), Kind("odd", LARGE)),
    (Kind("pair", SMALL, 2), Kind("twin", SMALL, 2)),
    (Kind("one", SMALL), Kind("alike", SMALL, 2, replicas=2)),
    (Kind("pair", SMALL, 2), Kind("one", SMALL), Kind("big pair", LARGE, 2)),
)
"""Engines of a run, by its seed.  Those of one size and so many shards share their blocks."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a green run was like."""

    trace: str
    steps: int
    books: Books
    counts: dict[str, int]
    engines: int
    met: Counter[Trap]


class Scenario(Faults):
    """One run."""

    def __init__(self, seed: int, bait: str = "", only: Trap | None = None) -> None:
        super().__init__()
        self.world = World(seed)
        files = Files()
        self.files = files
        self.books = Books()
        self.engines = {}
        self._poised: tuple[Proc, Pressure] | None = None  # an index that is about to evict
        self._lurks = WITHIN_LOOKUPS in bait
        self._ending: set[str] = set()  # have been told to end, and are not started again yet
        alone = NOTHING_ELSE in bait
        traps = [only] if only is not None else [] if alone else traps_of(seed)
        self._traps = {
            trap: 0 if trap.message in RARE else self.world.rng.choice((0, 0, 1, 4))
            for trap in traps
        }
        self.met: Counter[Trap] = Counter()
        baits = {trap.message for trap in self._traps}
        if baits & {"Pages", "Copied", "Confirmed"}:
            self.world.ways = (Way.STAGED,)
        elif baits & {"Loaded", "BatchCopied", "Prove", "Proven"}:
            self.world.ways = (Way.PROCESS_VM,)
        on_gpus = ON_GPUS in bait or any(is_of_gpu(trap) for trap in self._traps)
        if (seed >= CHASE and seed % 7 in (3, 6)) or on_gpus:
            self.world.gpus = 0.0 if baits & {"Prove", "Proven"} else 0.7
        ssd = seed % 2 == 0 or any(is_of_ssd(trap) for trap in self._traps) or ON_DISKS in bait
        if ssd:
            files.media = {path: Medium(self.world) for path in SSD_PATHS}
            reused = seed % 10 == 4
            files.plan = FlushPlan(
                SSD_PATHS,
                capacity_bytes=SSD_CAPACITY,
                floor_bytes=None,
                write_queue_depth=2,
                write_inflight=2,
                prefetch_inflight=3,
                max_prefetch_blocks=10,
                admission=Admission.REUSED if reused else Admission.ALL,
                drain_timeout_s=DRAIN_S,
            )
        verify = seed % 3 == 1 or "Corrupt" in baits or "bit turns" in bait
        self.plan = Plan(
            *(1, "run", "sim"),
            http_addr="http",
            told={
                "copy_threads": COPY_THREADS,
                "verify": verify,
                "max_pinned_bytes": 0.25 if seed % 5 == 0 else 0.5,
            },
            ssd=ssd,
            drain_timeout_s=DRAIN_S,
        )
        self.house = self._open_house()
        self.checks = Checks(self.world, self.house)
        self.world.about = self._about
        self.world.meanwhile = self._meanwhile
        files.copying = self._copying
        for kind in KINDS[seed % len(KINDS)]:
            self._start_engine(kind)
        self.calm_at = self.world.now + FAULTS_NS
        if not alone:
            self.world.at(self.world.now + S, self._fault)
        faults = [BAITS[message] for message in sorted(baits & BAITS.keys())]
        words = ("", ON_DISKS, ON_GPUS, NOTHING_ELSE, WITHIN_LOOKUPS)
        faults += [(fault, BAIT_TIMES) for fault in bait.split(", ") if fault not in words]
        for fault, times in faults:
            for _ in range(times):
                when = self.world.now + self.world.between(S, FAULTS_NS - 4 * S)
                self.world.at(when, lambda fault=fault: self._do(fault))  # type: ignore[misc]

    def run(self) -> Result:
        """To the end; AssertionError with the story if anything is wrong."""
        with ExitStack() as stack:
            for module, name, value in SCALE:
                stack.enter_context(patch.object(module, name, value))
            return self._run()

    def _run(self) -> Result:
        world = self.world
        try:
            self._until(self.calm_at)
            world.note("--", "faults are over")
            world.rough = False
            for medium in self.files.media.values():
                medium.mode = ""
            self._until(world.now + REST_NS // 4)
            while not world.counts["pages evicted"] and world.now < self.calm_at + PRESS_NS:
                self._until(world.now + REST_NS // 4)
            for engine in self.engines.values():
                assert engine.whole, f"{engine.kind.name} has not come up"
                engine.settle()
            self._until(world.now + REST_NS)
            self._until(world.now + self._longest_rest())
            for engine in self.engines.values():
                states = [client.machine.state for client in engine.procs.values()]
                assert engine.served, f"{engine.kind.name} is {states}"
            self.checks.end()
        except WRONG as err:
            place = traceback.extract_tb(err.__traceback__)[-1]
            what = f"{str(err) or place.line} ({Path(place.filename).name}:{place.lineno})"
            where = f"seed {world.seed}, step {world.steps}: {what}"
            raise AssertionError(f"{world.story()}\n{where}") from err
        engines = len(self.engines)
        self._add_up(self.house)
        counts = dict(world.counts)
        return Result(world.trace, world.steps, self.books, counts, engines=engines, met=self.met)

    def _longest_rest(self) -> int:
        """Until the last engine whose sessions have failed too often is served again."""
        rest_of = self.house.supervisor.restarts.engine_rest_ns
        rests = [rest_of(name, self.world.now) for name in self.engines]
        if not any(rests):
            return 0
        self.world.counts["an engine rests"] += 1
        return max(rests) + REST_NS // 4

    def _until(self, when: int) -> None:
        while self.world.next_at <= when:
            self.world.turn()
            self.checks.step()

    def _open_house(self) -> House:
        """A service starts; when it ends, another one does."""
        house = House(self.world, self.files, self.plan, POOL)

        def ended() -> None:
            self._add_up(house)
            at = self.world.now + self.world.between(10 * MS, 800 * MS)
            self.world.at(max(at, self.world.lingers_until), self._reopen)  # a lock tells

        house.watch(ended)
        return house

    def _add_up(self, house: House) -> None:
        """What its children have counted of the SSD tier."""
        supervisor = house.supervisor
        for name in (INDEX, FLUSHER):
            living = supervisor.children.named(name)
            for counter in supervisor.reporting.totals.sums(name, living):
                if counter.name.startswith("ssd_") or counter.name in OF_INDEX:
                    self.world.counts[f"{name}: {counter.name}"] += counter.value

    def _reopen(self) -> None:
        self.house = self._open_house()
        self.checks.goes_on(self.house)

    def _start_engine(self, kind: Kind) -> None:
        self.engines[kind.name] = Engine(self.world, self.files, self.books, kind)
        self._ending.discard(kind.name)

    @property
    def faulty(self) -> bool:
        """Whether faults may still begin."""
        return self.world.now < self.calm_at - 4 * S

    def _copying(self, client: Client, session: Proc, writes: bool) -> None:
        """A session is about to touch an engine's memory: a good moment for a fault."""
        rng = self.world.rng
        if self._in_copy == "session stops in a copy" and not writes:
            return
        if not self.faulty or rng.random() > (0.4 if self._in_copy else 0.05):
            return
        faults = ["session stops in a copy", "engine dies in a copy", "rank leaves in a copy"]
        faults += ["session dies in a copy"] if client.kernels is not None else []
        long = (1200 * MS, 2300 * MS)
        lengths = long if self._in_copy else (20 * MS, 300 * MS, *long)
        fault, self._in_copy = self._in_copy or rng.choice(faults), ""
        self.world.counts[fault] += 1
        if fault == "session stops in a copy":
            session.pause(rng.choice(lengths))
        elif fault == "session dies in a copy":
            session.die("crashes in a copy")
        elif fault == "rank leaves in a copy":
            client.input(lambda: client.do(client.unregister))
        else:
            for name, engine in self.engines.items():
                if client in engine.procs.values():
                    self._end_engine("engine crashes", name, client)

    def _about(self, proc: Proc, envelope: Envelope) -> str:
        """A process is about to hear this: spring the trap that waits for it, if there is one."""
        if not self.faulty:
            return ""
        said = envelope.message
        name, kind = proc.address.name, type(said).__name__
        if self._deaf and (name, kind) == (INDEX, "Seal"):
            self._deaf = False
            self.world.counts["seal is not heard"] += 1
            proc.pause(self.world.rng.choice((300 * MS, 1200 * MS)))
            self.world.procs[envelope.sender].die("crashes with a Seal on its way")
            return "stops"
        if isinstance(said, Pressure) and (self._lurks or self.world.rng.random() < 0.2):
            self._poised = proc, said
            proc.pause(self.world.rng.choice((10 * MS, 100 * MS)))
            return "stops"
        if self._orphan and isinstance(said, Fetch):
            self._orphan = False
            self.world.counts["session dies in a wait"] += 1
            self.world.procs[Address(SESSION, said.engine)].die("crashes with a Fetch on its way")
        for fault in sorted(self._armed):
            if name == SESSION and isinstance(said, GRANTS[fault][0]) and said.number:
                self._armed.discard(fault)
                lose = partial(self._lose_granter, proc, GRANTS[fault][1])
                self.world.at(self.world.now + self.world.between(0, MS), lose)
        for trap, left in list(self._traps.items()):
            if (trap.actor, trap.message) != (name, kind):
                continue
            if left:
                self._traps[trap] -= 1
                continue
            del self._traps[trap]
            return self._spring(trap, proc, envelope)
        return ""

    def _meanwhile(self, keys: Sequence[Key]) -> None:
        """A session is in the middle of a lookup: an index that is about to evict does so now."""
        index, pressure = self._poised or (None, None)
        if index is None or pressure is None or not (index.alive and index.paused):
            return
        if self._lurks:
            assert isinstance(index, ChildProc) and isinstance(index.actor, Index)
            policy = index.actor.residency.policy
            going = policy.victims(pressure.page_size, pressure.count)
            now = not {block.key for block in going}.isdisjoint(keys)
        else:
            now = self.world.rng.random() < 0.5
        if now:
            self._poised = None
            self.world.counts["evicts within a lookup"] += 1
            index.resume()

    def _spring(self, trap: Trap, proc: Proc, envelope: Envelope) -> str:
        self.met[trap] += 1
        self.world.note(proc.address, f"{trap.fault} at {trap.message}")
        if trap.fault in ("stops", "hangs"):
            lengths = (1200 * MS, 2300 * MS) if trap.fault == "stops" else (3500 * MS, 5000 * MS)
            proc.pause(self.world.rng.choice(lengths))
            sender = self.world.procs.get(envelope.sender)
            if (
                sender is not None
                and sender.address.name == SESSION
                and self.world.rng.random() < 0.5
            ):
                sender.die("crashes while it is not heard")
            return "stops"
        if isinstance(proc, Client):
            for name, engine in self.engines.items():
                if proc in engine.procs.values():
                    self._end_engine("engine crashes", name, proc)
        return trap.fault

    def _end_engine(self, fault: str, name: str, first: Client | None = None) -> None:
        """An engine ends, and is started again a little later."""
        engine = self.engines[name]
        if name in self._ending or not engine.procs:
            return
        self.world.counts[fault] += 1
        self._ending.add(name)
        if fault == "engine leaves":
            engine.leave()
        else:
            engine.crash(first)
        delay = self.world.between(MS, 800 * MS)
        self.world.at(self.world.now + delay, lambda: self._replace(engine))

    def _replace(self, engine: Engine) -> None:
        if engine.leaves and engine.some_live:
            self.world.at(self.world.now + 100 * MS, lambda: self._replace(engine))
        else:
            self._start_engine(engine.kind)


def run(seed: int, only: Trap | None = None) -> Result:
    """One run from this seed, with its own share of traps or with this one alone."""
    return Scenario(seed, only=only).run()
