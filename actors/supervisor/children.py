"""What the supervisor knows of its children: one record for each life that is not proven dead."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from pegaflow.actors.runtime.contract import Do, Effect, Part
from pegaflow.wire.control import Beat, Neighbour, OpenSession, ProcessState
from pegaflow.wire.jobs import Kill
from pegaflow.wire.values import SESSION, Address


class ChildState(Enum):
    """How far a life is; the values are shown to people."""

    STARTING = ProcessState.STARTING
    UP = ProcessState.UP  # it has said Hello, and is no session
    SPARE = ProcessState.SPARE
    ASSIGNED = ProcessState.ASSIGNED
    SERVING = ProcessState.SERVING
    DRAINING = ProcessState.DRAINING  # it said Bye, was told Drain, or has ended cleanly


@dataclass(slots=True)
class Assignment:
    """The engine of a session."""

    opener: OpenSession  # what it was opened with
    seat: int  # of the engine, from 1 on
    foreign: bool  # it was opened by an engine that sees other pids than we do
    since_ns: int  # when the session was told of it: until it says Serving it owes us that


@dataclass(slots=True)
class ChildRecord:
    """One life of one child, from its spawn to its proven death."""

    address: Address
    state: ChildState = ChildState.STARTING
    pid: int = 0
    endpoint: str = ""  # empty until it has said Hello
    port: int = 0  # sessions: on TCP, if they listen there
    born_ns: int = 0
    heard_ns: int = 0  # last sign of life
    starved: bool = False  # it is late since it gets no core
    said_bye: bool = False  # it does nothing more, though its process may still live
    killed: bool = False  # SIGKILL is on its way; nothing more is asked of it
    assignment: Assignment | None = None  # sessions
    beat: Beat = field(default_factory=lambda: Beat(()))  # the last one
    uses: set[str] = field(default_factory=set)  # GPUs that its engine is served on
    warm: dict[str, str | None] = field(default_factory=dict)
    """GPUs by the name that it was told to be ready for, as it has found them; empty: it cannot;
    None: it is at it."""

    @property
    def engine(self) -> str:
        """The id of the engine that it has; empty: none."""
        return self.assignment.opener.engine if self.assignment is not None else ""

    @property
    def seat(self) -> int:
        """Of that engine; 0: none."""
        return self.assignment.seat if self.assignment is not None else 0

    @property
    def has_gpu(self) -> bool:
        """Whether it may have a GPU's context, with which the pool is registered."""
        return bool(self.uses) or any(found != "" for found in self.warm.values())

    @property
    def gives_back(self) -> bool:
        """Whether it has ended but for what the driver gives back, page by page, for seconds."""
        return self.said_bye and self.has_gpu and not self.killed

    @property
    def warming(self) -> str | None:
        """The name of the GPU that it is busy with: it makes one context after the other, as it was
        told."""
        return next((name for name, found in self.warm.items() if found is None), None)

    def shown(self) -> ProcessState:
        """The state for people."""
        return ProcessState.KILLED if self.killed else self.state.value


def who(child: ChildRecord) -> tuple[tuple[str, str | int], ...]:
    """A child in a line of the log."""
    facts: tuple[tuple[str, str | int], ...] = (("child", str(child.address)), ("pid", child.pid))
    return (*facts, ("engine", child.engine)) if child.engine else facts


def neighbour(child: ChildRecord) -> Neighbour:
    """What others are told of it."""
    return Neighbour(child.address, child.endpoint, child.pid)


class Children(Part):
    """The records of all children, in the order of their birth."""

    def __init__(self) -> None:
        self._records: dict[Address, ChildRecord] = {}

    def add(self, child: ChildRecord) -> None:
        """It is about to be spawned."""
        self._records[child.address] = child

    def remove(self, address: Address) -> ChildRecord | None:
        """It is proven dead; None if it is none of ours."""
        return self._records.pop(address, None)

    def get(self, address: Address) -> ChildRecord | None:
        """The record of this life; None if it is none of ours."""
        return self._records.get(address)

    def named(self, name: str) -> list[ChildRecord]:
        """Those of one kind."""
        return [child for child in self if child.address.name == name]

    def heard_of(self) -> list[ChildRecord]:
        """Those that have said Hello."""
        return [child for child in self if child.endpoint]

    def spares(self) -> list[ChildRecord]:
        """Sessions that may be given an engine."""
        return [c for c in self if c.state is ChildState.SPARE and not c.killed]

    def of_engine(self, engine: str) -> ChildRecord | None:
        """The session that this engine has; None: none yet, or none any more."""
        return next((child for child in self if child.engine == engine), None)

    def kill(self, child: ChildRecord) -> list[Effect]:
        """End a child that has been spawned; what it leaves comes with its proven death."""
        if child.killed:
            return []
        child.killed = True
        return [Do(Kill(child.address), lambda done, now: [])]

    def check(self) -> None:
        """One living process per name, but for sessions."""
        names = [child.address.name for child in self if child.address.name != SESSION]
        assert len(names) == len(set(names)), names

    def __getitem__(self, address: Address) -> ChildRecord:
        return self._records[address]

    def __contains__(self, address: Address) -> bool:
        return address in self._records

    def __iter__(self) -> Iterator[ChildRecord]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)
