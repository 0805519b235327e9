"""One run from a seed: a group, its engines, some seconds of faults, then rest and the last checks.

Time of faults: engines crash, leave, stop for a while; every kind of child crashes, stops for less
and for more than the watchdog's patience; the supervisor crashes or is told to stop, and another
one starts on what is left; links are full; an extent or a bounce file finds no room; where pages
are verified, bits turn.  Besides, every run has its share of traps (traps.py): faults that wait for
one message to one kind of process.
"""

import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from pegaflow.actors import ranks, saves, session, stock
from pegaflow.actors.session import Session
from pegaflow.actors.supervisor import Plan
from pegaflow.cache import adoption
from pegaflow.cache.geometry import Geometry
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.session import Way
from pegaflow.wire.values import ALLOCATOR, CLIENT, GATEWAY, INDEX, SESSION, SUPERVISOR

from .books import Books
from .checks import Checks
from .client import Client
from .engine import Engine, Kind
from .files import Files
from .memory import ChildProc, House
from .traps import RARE, Trap, traps_of
from .world import MS, Proc, S, World

EXTENT = 256 * 1024
POOL = Geometry(4 * EXTENT, EXTENT)
FAULTS_NS = 11 * S
REST_NS = 16 * S
"""Longer than any deadline, back-off and retry together."""

SCALE = (
    (saves, "BATCH_BLOCKS", 4),
    (saves, "ORDER_NS", 2 * S),
    (stock, "STOCK_PAGES_MAX", 6),
    (ranks, "SLOTS_MAX", 10),
    (session, "LEASE_IDLE_NS", 7 * S),
    (adoption, "CHUNK", 8),
)
"""Numbers of the product made as small as the pool: several batches to a save, slots that run out,
leases that go idle within the run, ledgers that are not read at once."""

BAITS = {
    "Drain": ("supervisor is told to stop", 1),
    "Held": ("index dies on leases", 10),
    "Claiming": ("index dies on claims", 5),
    "Fence": ("session dies unfenced", 6),
    "Corrupt": ("bit turns", 40),
    "Pressure": ("engine saves", 60),
    "Release": ("engine releases", 30),
    "Load": ("engine loads", 60),
    "Loaded": ("engine loads", 60),
    "Bye": ("engine leaves", 5),
    "Left": ("engine leaves", 5),
}
"""What makes a rare message likely, and how often it is done."""

GRANTS = {
    "index dies on leases": ("Held", INDEX),
    "index dies on claims": ("Claimed", INDEX),
    "allocator dies on pages": ("Reserved", ALLOCATOR),
}
"""Deaths of a granter right after a grant: what it says with that, and who it is."""

BAIT_TIMES = 12
"""How often a run does what it was asked to do besides."""

SMALL, LARGE = 1024, 24 * 1024
"""Block sizes: one takes the smallest slot of the pool, the other a larger one, so that extents are
cut anew."""


KINDS = (
    (Kind("one", SMALL), Kind("two", SMALL), Kind("odd", LARGE)),
    (Kind("pair", SMALL, 2), Kind("twin", SMALL, 2)),
    (Kind("one", SMALL), Kind("two", SMALL)),
    (Kind("pair", SMALL, 2), Kind("one", SMALL), Kind("big pair", LARGE, 2)),
)
"""Engines of a run, by its seed.  Those of one size and so many ranks share their blocks."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a green run was like."""

    trace: str
    steps: int
    books: Books
    counts: dict[str, int]
    engines: int
    met: Counter[Trap]


class Scenario:
    """One run."""

    def __init__(self, seed: int, bait: str = "", only: Trap | None = None) -> None:
        self.world = World(seed)
        self._in_copy = ""  # what happens in one of the next copies
        self._armed: set[str] = set()  # deeds of GRANTS that wait for their grant
        self._deaf = False  # the index does not hear the next Seal in time
        files = Files()
        self.files = files
        self.books = Books()
        self.engines: dict[str, Engine] = {}  # the present life of each
        self._ending: set[str] = set()  # have been told to end, and are not started again yet
        self._traps = {
            trap: 0 if trap.message in RARE else self.world.rng.choice((0, 0, 1, 4))
            for trap in (traps_of(seed) if only is None else [only])
        }
        self.met: Counter[Trap] = Counter()
        baits = {trap.message for trap in self._traps}
        if baits & {"Pages", "Copied", "Confirmed"}:
            self.world.ways = (Way.STAGED,)
        elif baits & {"Loaded", "Taken", "Prove", "Proven"}:
            self.world.ways = (Way.PROCESS_VM,)
        verify = seed % 3 == 1 or "Corrupt" in baits or "bit turns" in bait
        self.plan = Plan(1, "run", "sim", "http", verify=verify)
        self.house = self._open_house()
        self.checks = Checks(self.world, self.house)
        self.world.about = self._about
        files.copying = self._copying
        for kind in KINDS[seed % len(KINDS)]:
            self._start_engine(kind)
        self.calm_at = self.world.now + FAULTS_NS
        self.world.at(self.world.now + S, self._fault)
        deeds = [BAITS[message] for message in sorted(baits & BAITS.keys())]
        deeds += [(deed, BAIT_TIMES) for deed in bait.split(", ") if deed]
        for deed, times in deeds:
            for _ in range(times):
                when = self.world.now + self.world.between(S, FAULTS_NS - 4 * S)
                self.world.at(when, lambda deed=deed: self._do(deed))  # type: ignore[misc]

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
            self._until(world.now + REST_NS // 4)
            for engine in self.engines.values():
                assert engine.whole, f"{engine.kind.name} has not come up"
                engine.settle()
            self._until(world.now + REST_NS)
            for engine in self.engines.values():
                states = [client.machine.state for client in engine.procs.values()]
                assert engine.served, f"{engine.kind.name} is {states}"
            self.checks.end()
        except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as err:
            place = traceback.extract_tb(err.__traceback__)[-1]
            what = f"{str(err) or place.line} ({Path(place.filename).name}:{place.lineno})"
            where = f"seed {world.seed}, step {world.steps}: {what}"
            raise AssertionError(f"{world.story()}\n{where}") from err
        engines = len(self.engines)
        counts = dict(world.counts)
        return Result(world.trace, world.steps, self.books, counts, engines, self.met)

    def _until(self, when: int) -> None:
        while self.world.next_at <= when:
            self.world.turn()
            self.checks.step()

    def _open_house(self) -> House:
        """A service starts; when it ends, another one does."""
        house = House(self.world, self.files, self.plan, POOL)

        def ended() -> None:
            self.world.at(self.world.now + self.world.between(10 * MS, 800 * MS), self._reopen)

        house.watch(ended)
        return house

    def _reopen(self) -> None:
        self.house = self.checks.house = self._open_house()

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
        deeds = ("session stops in a copy", "engine dies in a copy", "rank leaves in a copy")
        deed, self._in_copy = self._in_copy or rng.choice(deeds), ""
        self.world.counts[deed] += 1
        if deed == "session stops in a copy":
            session.pause(rng.choice((20 * MS, 300 * MS, 1200 * MS, 2300 * MS)))
        elif deed == "rank leaves in a copy":
            client.input(lambda: client.do(client.unregister))
        else:
            for name, engine in self.engines.items():
                if client in engine.procs.values():
                    self._end_engine("engine crashes", name, client)

    def _about(self, proc: Proc, envelope: Envelope) -> str:
        """A process is about to hear this: spring the trap that waits for it, if there is one."""
        if not self.faulty:
            return ""
        name, kind = proc.address.name, type(envelope.message).__name__
        if self._deaf and (name, kind) == (INDEX, "Seal"):
            self._deaf = False
            self.world.counts["seal is not heard"] += 1
            proc.pause(self.world.rng.choice((300 * MS, 1200 * MS)))
            self.world.procs[envelope.sender].die("crashes with a Seal on its way")
            return "stops"
        for deed in sorted(self._armed):
            if name == SESSION and kind == GRANTS[deed][0]:
                self._armed.discard(deed)
                lose = partial(self._lose_granter, proc, GRANTS[deed][1])
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

    def _fault(self) -> None:
        world, rng = self.world, self.world.rng
        if not self.faulty:
            return
        world.at(world.now + world.between(100 * MS, 700 * MS), self._fault)
        deeds = {
            "engine crashes": 3,
            "engine leaves": 1,
            "engine stops": 2,
            "session crashes": 3,
            "session stops": 4,
            "session hangs": 1,
            "core stops": 1,
            "core hangs": 0.5,
            "core crashes": 2,
            "ledger tears": 2.5,
            "seal is not heard": 2,
            "index dies on leases": 1,
            "allocator dies on pages": 1,
            "supervisor stops": 1,
            "supervisor crashes": 0.6,
            "supervisor is told to stop": 0.4,
            "gateway crashes": 1,
            "link fills": 2,
            "bit turns": 6 if self.plan.verify else 0,
        }
        self._do(rng.choices(list(deeds), list(deeds.values()))[0])

    def _do(self, deed: str) -> None:
        if not self.faulty:
            return
        if deed in ("engine crashes", "engine leaves"):
            self._end_engine(deed, self.world.rng.choice(list(self.engines)))
        elif deed == "ledger tears":
            self._tear()
        elif deed == "link fills":
            self._fill_link()
        elif deed == "bit turns":
            self._turn_bit()
        elif deed in ("engine releases", "engine loads", "engine saves"):
            engine = self.engines[self.world.rng.choice(list(self.engines))]
            chief = engine.procs.get(engine.chief)
            acts = {"releases": (engine.look_up, engine.release), "saves": (engine.save,)}
            for act in acts.get(deed.split()[1], (engine.look_up, engine.load)) if chief else ():
                chief.input(lambda act=act: chief.do(act))  # type: ignore
        elif deed == "seal is not heard":
            self._deaf = True
        elif deed.endswith("in a copy"):
            self._in_copy = deed
        elif deed in GRANTS:
            self._armed.add(deed)
        elif deed == "session dies unfenced":
            for proc in self.world.living(INDEX):
                for link in (k for a, k in proc.links.items() if a.name == ALLOCATOR):
                    link.full_until = self.world.now + 300 * MS
            self._hit("session is killed")
        else:
            self._hit(deed)

    def _lose_granter(self, session: Proc, granter: str) -> None:
        """A session has just been granted something, and whoever has granted it dies."""
        rng = self.world.rng
        for client in self.world.living(CLIENT):
            if rng.random() < 0.3:
                client.pause(500 * MS)  # what it has it keeps
        if rng.random() < 0.5:  # and states it late
            session.pause(rng.choice((900 * MS, 2300 * MS)))
        self._hit(f"{granter} is killed")

    def _hit(self, deed: str) -> None:
        """Something happens to a process of a kind."""
        world, rng = self.world, self.world.rng
        kinds = {
            "engine": CLIENT,
            "session": SESSION,
            "index": INDEX,
            "allocator": ALLOCATOR,
            "core": rng.choice((INDEX, ALLOCATOR)),
            "gateway": GATEWAY,
            "supervisor": SUPERVISOR,
        }
        victims = world.living(kinds[deed.split()[0]])
        if not victims:
            return
        world.counts[deed] += 1
        busy = [v for v in victims if len(v.links) > 1 and self._serves(v)]
        victim = rng.choice(busy or victims)
        if deed.endswith("told to stop"):
            self.house.stop()
        elif deed.endswith("stops"):
            victim.pause(rng.choice((20 * MS, 300 * MS, 1200 * MS, 2300 * MS)))
        elif deed.endswith("lags"):
            victim.pause(rng.choice((1200 * MS, 2300 * MS)))
        elif deed.endswith("hangs"):
            victim.pause(rng.choice((3500 * MS, 5000 * MS)))
        elif deed.endswith("is killed") or rng.random() < 0.3:
            victim.die("crashes")
        else:
            victim.doomed = True

    def _tear(self) -> None:
        """The index dies between two words of the ledger."""
        for proc in self.world.living(INDEX):
            if isinstance(proc, ChildProc) and proc.ledger is not None:
                self.world.counts["ledger tears"] += 1
                proc.ledger.fuse = self.world.rng.randrange(10)

    def _fill_link(self) -> None:
        """A link between two of the group takes nothing for a while, but for the supervisor's:
        those are never so far behind."""
        procs = [*self.world.living(SESSION), *self.world.living(INDEX)]
        links = [k for p in procs for a, k in p.links.items() if a.name != SUPERVISOR]
        if links:
            self.world.counts["link fills"] += 1
            length = self.world.rng.choice((5 * MS, 100 * MS, 900 * MS))
            self.world.rng.choice(links).full_until = self.world.now + length

    def _turn_bit(self) -> None:
        """In a sealed page of which nobody has a lease: whoever has one has looked already."""
        checks, rng = self.checks, self.world.rng
        held = {p for s in checks.sessions().values() for x in s.leases.values() for p in x.pages}
        index = checks.index()
        pages = sorted(checks.sealed.keys() - held)
        if index is None or not pages:
            return
        for page in rng.sample(pages, min(4, len(pages))):
            block = index.blocks.by_page(page)
            if block is not None and not block.leases:
                self.world.counts["bit turns"] += 1
                checks.turn_bit(page)

    def _serves(self, proc: Proc) -> bool:
        actor = proc.actor if isinstance(proc, ChildProc) else None
        return isinstance(actor, Session) and actor.saves is not None

    def _end_engine(self, deed: str, name: str, first: Client | None = None) -> None:
        """An engine ends, and is started again a little later."""
        engine = self.engines[name]
        if name in self._ending or not engine.procs:
            return
        self.world.counts[deed] += 1
        self._ending.add(name)
        if deed == "engine leaves":
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
