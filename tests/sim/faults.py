"""The faults of a run: which there are, how likely each is, and how it is done."""

from pegaflow.actors.session.actor import Session
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.wire.allocator import Reserved
from pegaflow.wire.identities import PageId
from pegaflow.wire.index import Claimed, Held
from pegaflow.wire.values import ALLOCATOR, CLIENT, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR

from .checks import Checks
from .client import Client
from .disk import MODES
from .engine import Engine
from .files import Files
from .memory import ChildProc, House
from .world import MS, US, Proc, World

GRANTS: dict[str, tuple[type[Held | Claimed | Reserved], str]] = {
    "index dies on leases": (Held, INDEX),
    "index dies on claims": (Claimed, INDEX),
    "allocator dies on pages": (Reserved, ALLOCATOR),
}
"""Deaths of a granter right after a grant: what it says with that, and who it is.  Number 0 is no
grant."""


class Faults:
    """What a run does to itself."""

    world: World
    files: Files
    plan: Plan
    house: House
    checks: Checks
    engines: dict[str, Engine]  # the present life of each
    _in_copy = ""  # what happens in one of the next copies
    _deaf = False  # the index does not hear the next Seal in time
    _orphan = False  # the session whose lookup needs the next Fetch dies

    def __init__(self) -> None:
        self._armed: set[str] = set()  # faults of GRANTS that wait for their grant

    @property
    def faulty(self) -> bool:
        """Whether faults may still begin."""
        raise NotImplementedError

    def _end_engine(self, fault: str, name: str, first: Client | None = None) -> None:
        raise NotImplementedError

    def _fault(self) -> None:
        world, rng = self.world, self.world.rng
        if not self.faulty:
            return
        world.at(world.now + world.between(100 * MS, 700 * MS), self._fault)
        faults = {
            "engine crashes": 3,
            "engine leaves": 1,
            "engine stops": 2,
            "session crashes": 3,
            "session stops": 4,
            "session hangs": 1,
            "core stops": 1,
            "core hangs": 0.5,
            "core crashes": 2,
            "child starves": 2,
            "ledger tears": 1.5,
            "block is halved": 1,
            "seal is not heard": 2,
            "index dies on leases": 1,
            "allocator dies on pages": 1,
            "supervisor stops": 1,
            "supervisor crashes": 0.6,
            "supervisor is told to stop": 0.4,
            "gateway crashes": 1,
            "link fills": 2,
            "bit turns": 6 if self.plan.told["verify"] else 0,
        }
        if self.plan.ssd:
            faults |= {
                "flusher crashes": 2,
                "flusher stops": 1,
                "flusher hangs": 0.5,
                "session dies in a wait": 1,
                "disk fails": 2,
                "disk rots": 8,
                "host goes down": 2,
            }
        if self.world.gpus:
            faults |= {"GPU hangs": 3, "GPU drags": 3}
        self._do(rng.choices(list(faults), list(faults.values()))[0])

    def _do(self, fault: str) -> None:
        if not self.faulty:
            return
        if fault in ("engine crashes", "engine leaves"):
            self._end_engine(fault, self.world.rng.choice(list(self.engines)))
        elif fault in ("ledger tears", "block is halved"):
            self._tear(fault)
        elif fault == "link fills":
            self._fill_link()
        elif fault == "GPU hangs":
            self._hang_gpu()
        elif fault == "GPU drags":
            self.world.drags += 1
        elif fault == "bit turns":
            self._turn_bit()
        elif fault in ("disk fails", "disk drags"):
            self._fail_disk("slow" if fault == "disk drags" else "")
        elif fault == "disk rots":
            medium = self.world.rng.choice(list(self.files.media.values()))
            self.world.counts["a bit of a disk turns"] += medium.rot()
        elif fault == "host goes down":
            self.files.wrote = self._soon_down
        elif fault in ("engine releases", "engine loads", "engine saves"):
            engine = self.engines[self.world.rng.choice(list(self.engines))]
            chief = engine.procs.get(engine.chief)
            acts = {"releases": (engine.look_up, engine.release), "saves": (engine.save,)}
            for act in acts.get(fault.split()[1], (engine.look_up, engine.load)) if chief else ():
                chief.input(lambda act=act: chief.do(act))  # type: ignore
        elif fault == "seal is not heard":
            self._deaf = True
        elif fault == "session dies in a wait":
            self._orphan = True
        elif fault.endswith("in a copy"):
            self._in_copy = fault
        elif fault in GRANTS:
            self._armed.add(fault)
        elif fault == "session dies unfenced":
            for proc in self.world.living(INDEX):
                for link in (k for a, k in proc.links.items() if a.name == ALLOCATOR):
                    link.full_until = self.world.now + 300 * MS
            self._hit("session is killed")
        else:
            self._hit(fault)

    def _lose_granter(self, session: Proc, granter: str) -> None:
        """A session has just been granted something, and whoever has granted it dies."""
        world, rng = self.world, self.world.rng
        for client in world.living(CLIENT):
            if rng.random() < 0.3:
                client.pause(500 * MS)  # what it has it keeps
        if rng.random() < 0.5:  # and states it late
            session.pause(rng.choice((900 * MS, 2300 * MS)))
        for _ in range(12):  # while others want room
            at = world.now + world.between(100 * MS, 2300 * MS)
            world.at(at, lambda: self._do("engine saves"))
        self._hit(f"{granter} is killed")

    def _hit(self, fault: str) -> None:
        """Something happens to a process of a kind."""
        world, rng = self.world, self.world.rng
        kinds = {
            "engine": CLIENT,
            "session": SESSION,
            "index": INDEX,
            "allocator": ALLOCATOR,
            "core": rng.choice((INDEX, ALLOCATOR)),
            "child": rng.choice((INDEX, ALLOCATOR, SESSION, SESSION, FLUSHER, GATEWAY)),
            "gateway": GATEWAY,
            "flusher": FLUSHER,
            "supervisor": SUPERVISOR,
        }
        victims = world.living(kinds[fault.split()[0]])
        if not victims:
            return
        world.counts[fault] += 1
        busy = [v for v in victims if len(v.links) > 1 and self._serves(v)]
        victim = rng.choice(busy or victims)
        if fault.endswith("told to stop"):
            self.house.stop()
        elif fault.endswith("stops"):
            victim.pause(rng.choice((20 * MS, 300 * MS, 1200 * MS, 2300 * MS)))
        elif fault.endswith("lags"):
            victim.pause(rng.choice((1200 * MS, 2300 * MS)))
        elif fault.endswith("starves"):
            victim.starve(rng.choice((1200 * MS, 3500 * MS, 5000 * MS, 9000 * MS)))
        elif fault.endswith("hangs"):
            victim.pause(rng.choice((3500 * MS, 5000 * MS)))
        elif fault.endswith("is killed") or rng.random() < 0.3:
            victim.die("crashes")
        else:
            victim.doomed = True

    def _tear(self, fault: str) -> None:
        """The index dies between two words of the ledger, or between two pages of a block."""
        for proc in self.world.living(INDEX):
            if isinstance(proc, ChildProc) and proc.memory.ledger is not None:
                self.world.counts[fault] += 1
                if fault == "block is halved":
                    proc.memory.ledger.halves = True
                else:
                    proc.memory.ledger.fuse = self.world.rng.randrange(10)

    def _fill_link(self) -> None:
        """A link between two of the group takes nothing for a while, but for the supervisor's:
        those are never so far behind."""
        procs = [p for name in (SESSION, INDEX, FLUSHER) for p in self.world.living(name)]
        links = [k for p in procs for a, k in p.links.items() if a.name != SUPERVISOR]
        if links:
            self.world.counts["link fills"] += 1
            length = self.world.rng.choice((5 * MS, 100 * MS, 900 * MS))
            self.world.rng.choice(links).full_until = self.world.now + length

    def _hang_gpu(self) -> None:
        """Kernels of an engine do not end for a while, which may be longer than anybody waits."""
        ranks = [client for engine in self.engines.values() for client in engine.procs.values()]
        ranks = [client for client in ranks if client.alive and client.kernels is not None]
        if ranks:
            self.world.counts["GPU hangs"] += 1
            victim, chips = self.world.rng.choice(ranks), self.world.chips
            assert victim.kernels is not None
            victim.kernels.hang(chips.choice((30 * MS, 700 * MS, 3000 * MS, 7000 * MS)))

    def _turn_bit(self) -> None:
        """In a sealed page of which nobody has a lease: whoever has one has looked already."""
        checks, rng = self.checks, self.world.rng
        held = {p for s in checks.sessions().values() for _, x in s.leases.items() for p in x.pages}
        index = checks.index()
        pages = sorted(checks.sealed.keys() - held)
        if index is None or not pages:
            return
        for page in rng.sample(pages, min(4, len(pages))):
            block = index.residency.blocks.by_page(PageId(page))
            if block is not None and not block.leases:
                self.world.counts["bit turns"] += 1
                checks.turn_bit(page)

    def _fail_disk(self, mode: str) -> None:
        """A disk is broken for a while; '' in some way."""
        rng = self.world.rng
        path, medium = rng.choice(list(self.files.media.items()))
        medium.mode = mode or rng.choice(list(MODES))
        if medium.mode == "replaced" and self.files.known.get(path) is None:
            medium.mode = "gone"  # nobody can miss what was never there
        self.world.note("--", f"a disk is broken: {medium.mode}")
        medium.replace()

        def mend() -> None:
            assert medium.decoy is None or not medium.decoy.files, "written to a wrong directory"
            medium.mode = ""

        length = rng.choice((5 * MS, 100 * MS, 900 * MS))
        self.world.at(self.world.now + length, mend)

    def _soon_down(self) -> None:
        """Something is on its way to a disk, or has just arrived: the worst moments."""
        self.files.wrote = lambda: None
        if self.faulty:
            latest = self.world.rng.choice((40 * US, 40 * US, 2 * MS))
            self.world.at(self.world.now + self.world.between(0, latest), self._go_down)

    def _go_down(self) -> None:
        """The host: all processes die at once, memory is lost, disks keep what they like."""
        world = self.world
        world.counts["host goes down"] += 1
        world.note("--", "the host goes down")
        for name in list(self.engines):
            self._end_engine("engine crashes", name)
        for proc in world.living(CLIENT):
            proc.die("the host goes down")
        self.checks.durable()
        self.files.incarnation = self.house.incarnation
        self.house.die("the host goes down")
        for proc in list(world.lingering):
            proc.over()
        world.lingers_until = 0
        for medium in self.files.media.values():
            medium.crash()
        self.files.named.clear()
        self.files.paths = None
        self.files.flipped.clear()
        self.files.written.clear()
        self.checks.memory_lost()

    def _serves(self, proc: Proc) -> bool:
        actor = proc.actor if isinstance(proc, ChildProc) else None
        return isinstance(actor, Session) and actor.engine.space is not None
