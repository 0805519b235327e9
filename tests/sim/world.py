"""The simulated host: a clock that jumps, processes that die and stop, links between them.

One seed decides everything.  `World` holds the clock, a heap of events and the only random numbers.
A `Proc` is one life of one process: what happens to it while it is stopped waits, what happens to
it once it is dead is lost.  A `Link` is one dialled connection: frames on it keep their order in
each direction, and nothing else does; a link that is hung up or loses its owner may lose what is
under way.  What was queued for a dead process is lost or reaches the next process of that name.

A link may be full: what is sent on it meanwhile is dropped, as by a socket at its high-water mark.

Everything that happens goes into the trace (a hash, to compare two runs) and, for people, into a
story.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from hashlib import blake2b
from typing import TYPE_CHECKING

from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import WHOEVER, Key
from pegaflow.wire.message import Message
from pegaflow.wire.session import Way
from pegaflow.wire.values import FRONT_DESK, SUPERVISOR, Address, Packed

if TYPE_CHECKING:
    from .client import Client

WAYS = (Way.STAGED, Way.AUTO, Way.PROCESS_VM, Way.PROCESS_VM)
"""What a client's process may wish."""

US = 1_000
MS = 1_000_000
S = 1_000_000_000

STORY_LINES = 400
"""Events remembered for the story: a second or two of a busy host."""

Call = Callable[[], None]


CLEAN_END = "clean end"


class Died(Exception):
    """The process ends in the middle of what it does."""


class Link:
    """A connection that `owner` dialled to `target`."""

    def __init__(self, owner: "Proc", target: Address) -> None:
        self.owner = owner
        self.target = target
        self.open = True  # False: hung up; nothing comes back any more
        self.cut = False  # what was under way to the target is lost
        self.slow = owner.world.rng.random() < 0.3  # so that others overtake it
        self.held_until = 0  # the target reads what a dead owner had sent only then
        self.full_until = 0  # nothing more goes in, in either direction
        self.last = [0, 0]  # arrival of the newest frame to the target, and to the owner

    def close(self) -> None:
        """Hang up."""
        self.open = False
        self.cut = self.cut or self.owner.world.rng.random() < 0.5


class World:
    """Clock, events, processes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.entropy = random.Random(~seed)  # what processes draw: it moves no event
        self.chips = random.Random(f"GPUs of {seed}")  # see gpu.py
        self.now = 5 * S
        self.ways: tuple[Way, ...] = WAYS
        self.gpus = 0.0  # share of the engines that are on GPUs
        self.drags = 0  # so many copies of GPUs are to be slow
        self.handles: dict[bytes, Client] = {}  # by whom GPU memory was named
        self.lingering: set[Proc] = set()  # dead, and their devices go on
        self.lingers_until = 0  # no longer than this
        self.rough = True  # False: faults are over, links are quick
        self.procs: dict[Address, Proc] = {}  # every life that ever was
        self.by_pid: dict[int, Proc] = {}  # the newest with this pid
        self.openers: dict[bytes, tuple[int, int]] = {}  # generation -> its opener's pid and start
        self.stepped: list[Proc] = []  # processes that did something in this event
        self.about: Callable[[Proc, Envelope], str] = lambda proc, envelope: ""  # see Proc.frames
        # Others may run in the middle of a lookup of these keys.
        self.meanwhile: Callable[[Sequence[Key]], None] = lambda keys: None
        self.steps = 0  # inputs that processes have had
        self.counts: Counter[str] = Counter()
        self._events: list[tuple[int, int, Call]] = []
        self._living: dict[str, dict[Address, Proc]] = {}  # by name
        self._buried: deque[Proc] = deque()  # dead, with a pid that nobody else has
        self._serial = 0
        self._hash = blake2b(digest_size=16)
        self._story: deque[tuple[int, str, object]] = deque(maxlen=STORY_LINES)

    def at(self, when: int, call: Call) -> None:
        """Do this then."""
        self._serial += 1
        heapq.heappush(self._events, (max(when, self.now), self._serial, call))

    def turn(self) -> None:
        """The next event."""
        when, _, call = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.stepped.clear()
        call()

    @property
    def next_at(self) -> int:
        """When the next event is."""
        return self._events[0][0]

    def between(self, low: int, high: int) -> int:
        """A random number."""
        return self.rng.randrange(low, high)

    def delay(self) -> int:
        """How long a frame or a notice is under way: mostly short, sometimes very long."""
        dice = self.rng.random()
        if dice < 0.85 or not self.rough:
            return self.between(20 * US, 200 * US)
        return self.between(MS, 10 * MS) if dice < 0.985 else self.between(50 * MS, 300 * MS)

    def note(self, who: object, what: object, data: bytes = b"") -> None:
        """One line of the story, and of the trace."""
        self._story.append((self.now, str(who), what))
        self._hash.update(f"{self.now} {who} ".encode() + data)
        if isinstance(what, str):
            self._hash.update(what.encode())

    def story(self) -> str:
        """The last lines."""
        return "\n".join(f"{at / 1e6:12.3f} ms  {who:12} {show(w)}" for at, who, w in self._story)

    @property
    def trace(self) -> str:
        """One number for all that has happened."""
        return self._hash.hexdigest()

    def new_pid(self, proc: "Proc") -> int:
        """A process number: a new one, or that of a process that died some time ago."""
        if self._buried and self._buried[0].died_at < self.now - 50 * MS:
            if self.rng.random() < 0.3:
                pid = self._buried.popleft().pid
                self.by_pid[pid] = proc
                self.counts["pid reused"] += 1
                return pid
        pid = 100 + len(self.by_pid)
        self.by_pid[pid] = proc
        return pid

    def born(self, proc: "Proc") -> None:
        """A process begins."""
        self.procs[proc.address] = proc
        self._living.setdefault(proc.address.name, {})[proc.address] = proc

    def bury(self, proc: "Proc") -> None:
        """A process has ended, and its pid is free."""
        del self._living[proc.address.name][proc.address]
        self._buried.append(proc)

    def living(self, name: str) -> list["Proc"]:
        """Living processes of this name, stopped ones included."""
        return list(self._living.get(name, {}).values())

    def alive(self) -> list["Proc"]:
        """All living processes."""
        return [proc for procs in self._living.values() for proc in procs.values()]

    def send(self, source: "Proc", envelope: Envelope, link: Link | None = None) -> None:
        """Put an envelope on the link that joins the two, whoever dialled it."""
        source.sent = True
        link = link or source.links.get(envelope.receiver)
        if link is not None:
            self._post(link, 0, pack(envelope))
            return
        other = self.procs.get(envelope.receiver)
        links = other.links if other is not None else {}
        desk = Address(source.address.name, WHOEVER)
        back = links.get(source.address) or links.get(desk)
        if back is None or not back.open:
            self.counts["unsent"] += 1
            return
        self._post(back, 1, pack(envelope))

    def _post(self, link: Link, way: int, frames: list[bytes]) -> None:
        if self.now < link.full_until:
            self.counts["dropped by a full link"] += 1
            self.note(link.owner.address, f"the link with {link.target} is full")
            return
        delay = self.delay()
        if link.slow and self.rough:
            delay += self.between(0, 20 * MS)
        arrival = link.last[way] = max(link.last[way] + 1, self.now + delay)
        self.at(arrival, lambda: self._arrive(link, way, frames))

    def _arrive(self, link: Link, way: int, frames: list[bytes]) -> None:
        receiver: Proc | None = link.owner
        if (way and not link.open) or (not way and link.cut):
            self.counts["lost"] += 1
            return
        if not way and self.now < link.held_until:
            self.at(link.held_until, lambda: self._arrive(link, way, frames))
            return
        if not way:
            receiver = self._listener(link.target)
        if receiver is not None:
            proc = receiver
            proc.input(lambda: proc.frames(frames))

    def _listener(self, target: Address) -> "Proc | None":
        """Who reads what was sent there: perhaps the successor of the one that was meant."""
        if target == FRONT_DESK:
            return next(iter(self.living(SUPERVISOR)), None)
        proc = self.procs.get(target)
        if proc is not None and proc.alive:
            return proc
        heirs = self.living(target.name)
        if heirs and self.rng.random() < 0.5:
            self.counts["inherited"] += 1
            return self.rng.choice(heirs)
        return None


class Proc:
    """One life of one process."""

    def __init__(self, world: World, address: Address) -> None:
        self.world = world
        self.address = address
        self.alive = True
        self.paused = False
        self.stopped_at = 0  # the last pause began
        self.starved: list[tuple[int, int]] = []  # from when to when it was ready and had no core
        self.died_at = 0
        self.exit_code = 1  # of a dead one
        self.doomed = False  # crashes as soon as it has sent something
        self.sent = False  # in the present input
        self.links: dict[Address, Link] = {}  # that we dialled
        self.pid = world.new_pid(self)
        self.started_ticks = world.now // (10 * MS)
        self._inbox: deque[Call] = deque()  # what came while we were stopped
        self._frozen: list[Call] = []  # our own threads' work, stopped with us
        self._watchers: list[Call] = []  # who wants to know of our death
        self._halted: list[Call] = []  # who wants to know when no thread of ours can run
        self._tick_at: int | None = None  # when the next look at our timers is due
        world.born(self)

    def frames(self, frames: list[bytes]) -> None:
        """A message has come."""
        envelope = unpack(frames)
        self.world.note(self.address, envelope, b"".join(frames))
        fate = self.world.about(self, envelope)
        if fate == "dies before":
            self.die("crashes before it hears this")
            return
        if fate == "stops":
            self._inbox.appendleft(lambda: self.on_envelope(envelope, frames))
            return
        self.doomed = self.doomed or fate == "dies after"
        self.on_envelope(envelope, frames)
        if fate == "dies after" and self.alive:
            self.die("crashes right after that")

    def on_envelope(self, envelope: Envelope, frames: list[bytes]) -> None:
        """Subclass: handle a message."""
        raise NotImplementedError

    def wake_at(self) -> int | None:
        """Subclass: when `wake` wants to be called."""
        raise NotImplementedError

    def wake(self) -> None:
        """Subclass: look at the time."""
        raise NotImplementedError

    def input(self, call: Call) -> None:
        """Something comes from outside: now, after the pause, or never."""
        if not self.alive:
            return
        if self.paused:
            self._inbox.append(call)
            return
        self._do(call)

    def after(self, delay: int, call: Call) -> None:
        """Our own thread goes on so much later, unless we are stopped or dead by then."""
        self.world.at(self.world.now + delay, lambda: self._go_on(call))

    def dial(self, target: Address) -> Link:
        """A new link; an older one to the same target is hung up."""
        self.hang_up(target)
        link = self.links[target] = Link(self, target)
        return link

    def hang_up(self, target: Address) -> None:
        """Close the link, if there is one."""
        link = self.links.pop(target, None)
        if link is not None:
            link.close()

    def pause(self, length: int) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        if self.alive and not self.paused:
            self.world.note(self.address, f"is stopped for {length / 1e6:.0f} ms")
            self.paused = True
            self.stopped_at = self.world.now
            self.world.at(self.world.now + length, self.resume)

    def starve(self, length: int) -> None:
        """Be ready to run, and get no core for so long."""
        if self.alive and not self.paused:
            self.pause(length)
            self.starved.append((self.world.now, self.world.now + length))

    @property
    def has_no_core(self) -> bool:
        """Whether it would run now if it could."""
        return self.paused and bool(self.starved) and self.world.now < self.starved[-1][1]

    def waited(self, since: int) -> int:
        """How long it got no core since then."""
        now = self.world.now
        return sum(max(0, min(end, now) - max(begin, since)) for begin, end in self.starved)

    def die(self, why: str) -> None:
        """The process ends here, by itself or by a signal."""
        if not self.alive:
            return
        self.world.note(self.address, f"DIES: {why}")
        self.alive = self.paused = False
        lasts = self.lasts()
        self.died_at = self.world.now + lasts
        self.exit_code = int(why != CLEAN_END)
        self.world.bury(self)
        for link in self.links.values():
            link.close()
            if self.world.rng.random() < 0.5:
                link.held_until = self.world.now + self.world.between(0, 100 * MS)
        self._inbox.clear()
        self._frozen.clear()
        for call in self._watchers:
            self.world.at(self.died_at + self.world.delay(), call)
        if lasts:
            self.world.lingering.add(self)
            self.world.lingers_until = max(self.world.lingers_until, self.died_at)
            self.world.at(self.died_at, self.over)
            for call in self._halted:
                self.world.at(self.world.now + self.world.chips.randrange(MS), call)

    def lasts(self) -> int:
        """Subclass: how long devices go on when the process dies."""
        return 0

    def over(self) -> None:
        """Its devices have stopped."""
        self.world.lingering.discard(self)

    def watch(self, call: Call) -> None:
        """Somebody holds a pidfd on us."""
        self._watchers.append(call)

    def watch_threads(self, call: Call) -> None:
        """Somebody looks whether any thread of ours can run, and we have devices."""
        self._halted.append(call)

    def resume(self) -> None:
        """The pause is over."""
        if not self.alive:
            return
        self.world.note(self.address, "goes on")
        self.paused = False
        for call in self._frozen:
            self.after(self.world.between(0, MS), call)
        self._frozen.clear()
        while self._inbox and self.alive and not self.paused:
            self._do(self._inbox.popleft())
        self._tick_at = None
        self._plan_tick()

    def _go_on(self, call: Call) -> None:
        if self.alive and self.paused:
            self._frozen.append(call)
        elif self.alive:
            self._do(call)

    def _do(self, call: Call) -> None:
        assert self.alive and not self.paused, f"{self.address} acts while dead or stopped"
        self.world.steps += 1
        self.world.stepped.append(self)
        self.sent = False
        try:
            call()
        except Died as why:
            self.die(str(why))
        if self.doomed and self.sent:
            self.die("crashes after sending")
        self._plan_tick()

    def _plan_tick(self) -> None:
        at = self.wake_at() if self.alive else None
        if at is None or (self._tick_at is not None and self._tick_at <= at):
            return
        at = self._tick_at = max(at, self.world.now)
        self.world.at(at + self.world.between(0, MS), lambda: self._tick(at))

    def _tick(self, planned: int) -> None:
        if self._tick_at != planned or not self.alive or self.paused:
            return
        self._tick_at = None
        at = self.wake_at()
        if at is not None and at <= self.world.now:
            self.world.note(self.address, "wakes")
            self._do(self.wake)
        else:
            self._plan_tick()


def show(what: object) -> str:
    """A message or a line, short enough to read."""
    if not isinstance(what, Envelope):
        return str(what)
    e = what
    kind = f" answers {e.answer}" if e.answer else f" asks {e.question}" if e.question else ""
    return f"<- {e.sender}{kind}: {_brief(e.message)}"


def _brief(msg: Message) -> str:
    words = []
    for field in fields(msg):  # type: ignore[arg-type]
        name, value = field.name, getattr(msg, field.name)
        if isinstance(value, bytes):
            value = value[:3].hex()
        elif isinstance(value, tuple | Packed) and not isinstance(value, Address):
            items = [v[:3].hex() if isinstance(v, bytes) else str(v) for v in value[:6]]
            value = f"[{' '.join(items)}{' ..' if len(value) > 6 else ''}]"
        words.append(f"{name}={value}")
    return f"{type(msg).__name__}({', '.join(words)})"[:240]
