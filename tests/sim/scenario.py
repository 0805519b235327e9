"""One run from a seed: a group, its engines, some seconds of faults, then rest and the last checks.

Time of faults: engines crash, leave, stop for a while; sessions crash, stop for less and for more
than the watchdog's patience; now and then the index, the allocator or the supervisor stops, and
rarely one of the first two dies, which restarts the group on a new pool.  The gateway dies at any
time, that included.
"""

import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pegaflow.actors import ranks, saves, session, stock
from pegaflow.actors.session import Session
from pegaflow.actors.supervisor import Plan
from pegaflow.wire.values import ALLOCATOR, CLIENT, GATEWAY, INDEX, SESSION, SUPERVISOR

from .books import Books
from .checks import Checks
from .client import Client
from .engine import Engine, Kind
from .files import Files
from .memory import ChildProc, House
from .world import MS, Proc, S, World

EXTENT = 256 * 1024
POOL = 4 * EXTENT
FAULTS_NS = 8 * S
REST_NS = 16 * S
"""Longer than any deadline, back-off and retry together."""

SCALE = (
    (saves, "BATCH_BLOCKS", 4),
    (saves, "ORDER_NS", 2 * S),
    (stock, "STOCK_PAGES_MAX", 6),
    (ranks, "SLOTS_MAX", 10),
    (session, "LEASE_IDLE_NS", 7 * S),
)
"""Numbers of the product made as small as the pool: several batches to a save, slots that run out,
leases that go idle within the run."""

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


class Scenario:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        files = Files()
        self.files = files
        self.books = Books()
        self.engines: dict[str, Engine] = {}  # the present life of each
        self._ending: set[str] = set()  # have been told to end, and are not started again yet
        self.house = House(self.world, files, Plan(POOL, EXTENT, 1, "run", "sim", "http"))
        self.checks = Checks(self.world, self.house)
        files.copying = self._copying
        for kind in KINDS[seed % len(KINDS)]:
            self._start_engine(kind)
        self.calm_at = self.world.now + FAULTS_NS
        self.world.at(self.world.now + S, self._fault)

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
        return Result(world.trace, world.steps, self.books, dict(world.counts), engines)

    def _until(self, when: int) -> None:
        while self.world.next_at <= when:
            self.world.turn()
            self.checks.step()

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
        if not self.faulty or rng.random() > (0.03 if writes else 0.01):
            return
        deed = rng.choice(("session stops in a copy", "engine dies in a copy", "rank leaves in it"))
        self.world.counts[deed] += 1
        if deed == "session stops in a copy":
            session.pause(rng.choice((20 * MS, 300 * MS, 1200 * MS, 2300 * MS)))
        elif deed == "rank leaves in it":
            client.input(lambda: client.do(client.unregister))
        else:
            for name, engine in self.engines.items():
                if client in engine.procs.values():
                    self._end_engine("engine crashes", name, client)

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
            "session stops": 5,
            "session hangs": 2,
            "core stops": 1,
            "supervisor stops": 1,
            "core crashes": 0.3,
            "gateway crashes": 1,
        }
        deed = rng.choices(list(deeds), list(deeds.values()))[0]
        core = rng.choice((INDEX, ALLOCATOR))
        who = {"e": CLIENT, "s": SESSION, "c": core, "g": GATEWAY}[deed[0]]
        if deed in ("engine crashes", "engine leaves"):
            self._end_engine(deed, rng.choice(list(self.engines)))
            return
        victims = world.living(SUPERVISOR if deed == "supervisor stops" else who)
        if not victims:
            return
        world.counts[deed] += 1
        busy = [v for v in victims if len(v.links) > 1 and self._serves(v)]
        victim = rng.choice(busy or victims)
        if deed.endswith("stops"):
            victim.pause(rng.choice((20 * MS, 300 * MS, 1200 * MS, 2300 * MS)))
        elif deed.endswith("hangs"):
            victim.pause(rng.choice((3500 * MS, 5000 * MS)))
        else:
            victim.doomed = True

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


def run(seed: int) -> Result:
    """One run from this seed."""
    return Scenario(seed).run()
