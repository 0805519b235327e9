"""Control: every process and its supervisor; and an engine at the front desk.

A child dials the supervisor's socket with its own address as routing id.

    child → supervisor   Hello          once, first: who I am and where my neighbours may dial me
    supervisor → child   Welcome        once: where the pool is and how it is cut
    supervisor → index, allocator  Members  once, after Welcome: which holders live, and which
                                        have died
    supervisor → child   Neighbour      a process of the group is up and may be dialled
    supervisor → child   Gone           a process is proven dead (its pidfd fired)
    index → allocator    Fenced         after its last ledger write for a dead session; to a new
                                        allocator for all that died before, too
    child → supervisor   Beat           every BEAT_NS; silence of SILENT_NS is death by SIGKILL
    supervisor → session Serve → Serving  a spare gets its engine; only then the engine may dial it
    session → supervisor UsesGpu        an engine is served on this GPU: see gpu.py, also for
    supervisor → session Warm           be ready for engines on this GPU, you are a spare
    session → supervisor Warmed         it is, or cannot be
    supervisor → child   BindAgain      your socket was removed: make another one at its path
    supervisor → child   LogTo          how to log from now on, whenever an operator changes it; to
                                        a child that says Hello after that, too
    supervisor → child   Drain          finish what you have, say Bye and exit
    child → supervisor   Bye

    client → supervisor  OpenSession  → SessionAt | Refused     over a socket of the host, or TCP
    client, gateway → supervisor  Inspect → Report

Death at each point.  A child that dies before Hello, or at any time later, is seen by its pidfd;
its successor has a higher incarnation and is spawned only after that, and nobody else is taken
down.  The supervisor's death kills every child (PDEATHSIG); orphans that outlived it are killed by
the next one before it adopts the pool.  An engine whose OpenSession is unanswered asks again with
the same generation and gets the same session, so a lost answer costs no second spare.  The new
session of an engine whose old one is being killed is named only once the old one is proven dead.

Who opens.  One client of an engine opens a generation (in vLLM the scheduler's); the others join
it (`opens` False) and wait at the desk, up to their deadline, until it is open.  A joiner never
makes a session, so the ranks of an engine whose opener is gone stay outside for good, and cannot
keep its successor of the same id out.  A joiner of another generation than the one in service is
refused (SUPERSEDED).  An opener of another generation is refused (DUPLICATE) while the session of
the generation in service lives; this session ends when the process of its opener or of any of its
ranks ends.

Adoption.  A new index or allocator begins with the pool that it finds, be it left by its
predecessor or by an earlier service.  Members names the holders, who may hold something of the
pool: sessions and the flusher that have said Hello and are not proven dead.  Each of them is told
Neighbour and states what it holds; until the last has stated or is gone, nothing is evicted
(index.py) and nothing is granted (allocator.py).  Members also names the holders that have died:
the index says Fenced for them, in case its predecessor did not live to say it.  Who joins later
holds nothing from before.

Files that vanish.  The supervisor looks every TICK at the names by which others find the service:
the run directory, its lock and sockets, pool and ledger.  A name is not the thing: links that stand
and files that are mapped go on, and Welcome says which files are meant (device and inode), so a
child that starts later maps these or none.  What is missing is made anew (a directory, the lock,
the front desk's socket by the supervisor; a child's by the child, at BindAgain); what another
service has taken, or a pool whose name is gone, is said in Report.faults for as long as it is so.
BindAgain has no answer: a socket that is still missing at the next look is asked for again, and a
child that dies meanwhile has a successor with a socket of its own.

The gateway is Welcomed before there is a pool (its Welcome names none): it answers while the others
are started.  It asks Inspect again and again, each time with a deadline and never twice at once;
while nobody answers it shows the last Report and how old that is.

Numbers.  A Beat's counters only grow within one life; the supervisor adds the last ones of every
dead life to those of the living (Report.kinds), so the sums never go backwards.  What a process
counted after its last Beat dies with it.  Gauges describe the present and are not summed over
lives.  A number may have labels behind its name, and a histogram is a set of such counters
(series.py); a ProcessRow leaves its labelled counters out, since KindRow has their sums.

Remarks are for what a number cannot say, such as why a directory is not used: each stands as long
as it is true, and those who show the state (status, /readyz) show it as it is.

Seats.  An engine's id may be drawn anew at each of its starts, so nothing that is kept for long is
named after it.  While it is served it has a seat, the least number from 1 on that no other has;
the ProcessRow of its session has both, the seat among its numbers (engine_seat).
"""

import enum
from collections.abc import Mapping

from .identities import EngineNamespace
from .message import Message, message
from .status import Status
from .units import Count, Nanoseconds
from .values import Address, U64s

BEAT_NS: Nanoseconds = 500_000_000
"""How often a child says it is alive: six chances within SILENT_NS."""

SILENT_NS: Nanoseconds = 3_000_000_000
"""Silence after which a child is killed: longer than any pause of a loaded machine we have seen."""


SAME_HOST = "tcp://*:"
"""What stands before the port of a session for a client that came over TCP: only the client knows
by which of our names or addresses it reaches us."""


@message(1)
class Hello(Message):
    """A child is up; neighbours may dial `endpoint`."""

    pid: int
    started_ticks: int  # its start in clock ticks since boot: a pid is not an identity
    endpoint: str
    port: int = 0  # a session that listens on TCP as well: where; else 0


@message(2)
class Welcome(Message):
    """Where the memory is: paths of pool and ledger, sizes in bytes."""

    pool_path: str
    ledger_path: str
    pool_bytes: int
    extent_bytes: int
    run_dir: str
    http_addr: str = ""  # where the gateway listens
    copy_threads: int = 1  # of each session
    verify: bool = False  # pages are checked against their checksums on every load
    ssd: bool = False  # there is a flusher, or will be
    pool_file: U64s = ()  # device and inode of the pool's file
    ledger_file: U64s = ()  # and of the ledger's
    max_pinned_bytes: int = 0  # bytes of the pool that one engine's leases may hold; 0: any number
    numa: bool = False  # the pool is to lie beside GPUs,
    gpus: tuple[str, ...] = ()  # these, as gpu.device_name; empty: all of the host


@message(22)
class BindAgain(Message):
    """The file of your socket is gone: listen at the same path again."""


DEAD_MAX: Count = 1024
"""Dead holders that Members names, and who hears of them remembers: hours of an engine that
crashes again and again.  A new index lacks those of its predecessor's last seconds."""


@message(21)
class Members(Message):
    """Sessions and flusher: those that live, and those that have died, the newest last."""

    living: tuple[Address, ...]
    dead: tuple[Address, ...]


@message(3)
class Neighbour(Message):
    """A process of the group that may be dialled."""

    address: Address
    endpoint: str
    pid: int


@message(4)
class Gone(Message):
    """A process is proven dead: nothing of it may be honoured any more."""

    address: Address


@message(5)
class Fenced(Message):
    """Index to allocator: nothing of this dead process reaches the ledger any more."""

    address: Address


@message(6)
class Counter(Message):
    """A named number; `name` is stable."""

    name: str
    value: int


def listed(numbers: Mapping[str, int]) -> tuple[Counter, ...]:
    """Named numbers in the order of their names."""
    return tuple(Counter(name, value) for name, value in sorted(numbers.items()))


@message(7)
class Beat(Message):
    """I am alive, and this is what I counted and how I am."""

    counters: tuple[Counter, ...]  # what happened so far in this life: they only grow
    gauges: tuple[Counter, ...] = ()  # how things are now
    remarks: tuple[str, ...] = ()  # what is not as it should be, one line for people each


@message(8)
class Drain(Message):
    """Finish, say Bye, exit."""


@message(9)
class Bye(Message):
    """I exit now, on purpose."""


class LogLevel(enum.StrEnum):
    """How much a line of the log matters, or the least that a line must to be written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@message(24)
class LogTo(Message):
    """Log at this level, into this file anew (it may have been moved away); empty: as it is."""

    level: str  # a LogLevel
    file: str = ""


@message(10)
class OpenSession(Message):
    """An engine asks for its session.  The same (engine, generation) gets the same session."""

    engine: str
    generation: bytes  # 16 bytes, drawn anew for each life of the engine
    pid: int
    started_ticks: int
    namespace: EngineNamespace
    probe: bytes = b""  # the engine's hash of a fixed block; differs if its hash seed differs
    opens: bool = True  # False: join the generation once its opener has opened it
    pid_namespace: int = 0  # inode of the one that `pid` is of; 0: not said


@message(16)
class Serve(Message):
    """Supervisor to a spare session: this engine is yours."""

    engine: str
    generation: bytes
    pid: int
    started_ticks: int
    namespace: EngineNamespace
    probe: bytes = b""
    remote: bool = False  # its pid means nothing here: it came over TCP, or is `foreign`
    foreign: bool = False  # it is in another pid namespace of this host, with all its clients


@message(17)
class Serving(Message):
    """It is: the engine may dial."""


@message(25)
class UsesGpu(Message):
    """Session to supervisor: an engine of ours is served on this GPU."""

    gpu: str  # as gpu.spelled


@message(26)
class Warm(Message):
    """Supervisor to a spare session: have a context on this GPU, and the pool registered."""

    gpu: str  # as gpu.device_name or gpu.spelled


@message(27)
class Warmed(Message):
    """Session to supervisor: how that has ended."""

    gpu: str  # as it was asked
    found: str = ""  # as gpu.spelled; empty: there is no context
    why: str = ""  # for people; empty: there is one, or it was not begun
    number: int = 0  # of the device, from 1 on in the order of the bus; 0: not known


@message(11)
class SessionAt(Message):
    """Dial this."""

    address: Address
    endpoint: str  # a socket's path; for who came over TCP, SAME_HOST and a port
    pid: int  # 0 for who came over TCP: its pids may be others
    advice: str = ""  # a line for the engine's log, if something will not work as it may hope


@message(12)
class Refused(Message):
    """No, and why in one line for the engine's log."""

    status: Status
    why: str


@message(13)
class Inspect(Message):
    """What is the state of the group?"""


class ProcessState(enum.StrEnum):
    """How far a process is.  `ProcessRow.state` has its value as a string, since another minor may
    know more of them."""

    STARTING = "starting"  # it has not said Hello
    UP = "up"
    SPARE = "spare"  # a session without an engine
    ASSIGNED = "assigned"  # a session that is told of its engine and has not said Serving
    SERVING = "serving"  # a session that has
    DRAINING = "draining"
    KILLED = "killed"  # its death is not proven yet
    RECOVERING = "recovering"  # the service, while index or allocator is being replaced
    KILLING = "killing"  # the service, which does not wait for a drain any more


@message(14)
class ProcessRow(Message):
    """One process of the group."""

    address: Address
    pid: int
    state: str  # a ProcessState
    restarts: int
    engine: str  # sessions: the engine served, else empty
    counters: tuple[Counter, ...]  # counters and gauges of its last Beat; a session's engine_seat


class KindState(enum.StrEnum):
    """Whether a kind of process may be started.  `KindRow.state` has its value as a string, since
    another minor may know more of them."""

    OK = "ok"
    WAITING = "waiting"  # for its back-off
    BROKEN = "broken"  # failed too often; rests until `retry_at_ns`


@message(20)
class KindRow(Message):
    """All lives of one kind of process taken together."""

    name: str
    state: str  # a KindState
    retry_at_ns: int  # CLOCK_MONOTONIC ns at which it may start again; in the past if it is ok
    restarts: int
    counters: tuple[Counter, ...]  # sums over all lives so far: they never go backwards


@message(23)
class Remark(Message):
    """What a process has said in its last Beat that is not as it should be."""

    address: Address
    text: str


@message(15)
class Report(Message):
    """The state of the group."""

    pool_path: str
    ledger_path: str
    pool_bytes: int
    extent_bytes: int
    started_ns: int  # CLOCK_MONOTONIC ns at which the service started
    version: str
    processes: tuple[ProcessRow, ...]  # the supervisor first; its state is the service's
    http_addr: str = ""  # where the gateway is to listen; empty: there is none
    at: int = 0  # CLOCK_MONOTONIC ns at which this was written
    kinds: tuple[KindRow, ...] = ()  # the supervisor and every row of the roster
    faults: tuple[str, ...] = ()  # files that are gone or somebody else's, a line each
    remarks: tuple[Remark, ...] = ()  # of all processes
