"""What the supervisor knows of one life of one child."""

from dataclasses import dataclass

from pegaflow.wire.control import Counter, Neighbour, OpenSession
from pegaflow.wire.values import Address


@dataclass(slots=True)
class Kid:
    """One life of one child, from its spawn to its proven death."""

    address: Address
    state: str = "starting"  # starting, up, spare, assigned, serving, draining
    pid: int = 0
    endpoint: str = ""  # empty until it has said Hello
    port: int = 0  # sessions: on TCP, if they listen there
    born: int = 0
    heard: int = 0  # last sign of life
    owes: int = 0  # while assigned: since when it owes us its Serving
    starved: bool = False  # it is late since it gets no core
    killed: bool = False  # SIGKILL is on its way; nothing more is asked of it
    engine: str = ""  # sessions
    seat: int = 0  # of the engine; 0: none
    opener: OpenSession | None = None  # sessions: what it was opened with
    foreign: bool = False  # sessions: by an engine that sees other pids than we do
    counters: tuple[Counter, ...] = ()  # as of its last beat
    gauges: tuple[Counter, ...] = ()  # likewise
    remarks: tuple[str, ...] = ()  # likewise


def who(kid: Kid) -> tuple[tuple[str, str | int], ...]:
    """A child in a line of the log."""
    facts: tuple[tuple[str, str | int], ...] = (("child", str(kid.address)), ("pid", kid.pid))
    return (*facts, ("engine", kid.engine)) if kid.engine else facts


def neighbour(kid: Kid) -> Neighbour:
    """What others are told of it."""
    return Neighbour(kid.address, kid.endpoint, kid.pid)
