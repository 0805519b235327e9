"""What the client's machine knows of its process, and what it wants its shell to do."""

from dataclasses import dataclass, replace

from pegaflow.wire.control import OpenSession
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.gpu import NO_GPU, GpuMemory
from pegaflow.wire.identities import EngineNamespace
from pegaflow.wire.layout import Layout
from pegaflow.wire.session import Attach, Attached, Way
from pegaflow.wire.values import Address, U64s

from .results import Done


@dataclass(frozen=True, slots=True)
class Memory:
    """What a rank registers."""

    rank: int
    layout: Layout
    region_bytes: tuple[int, ...]
    way: Way = Way.STAGED  # what we wish
    bases: tuple[int, ...] = ()  # addresses of the regions
    scratch: int = 0  # address of PROOF_BYTES of ours
    replicas: int = 1  # ranks that hold the same bytes
    gpu: GpuMemory = NO_GPU  # where the regions are, if not in the host's memory


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this client is."""

    address: Address
    engine: str
    generation: bytes
    namespace: EngineNamespace
    probe: bytes
    world: int
    pid: int
    started_ticks: int
    opens: bool = True  # False: join a generation that another client opens
    pid_namespace: int = 0  # that `pid` is of

    def opening(self) -> OpenSession:
        """What it says at the front desk."""
        return OpenSession(
            engine=self.engine,
            generation=self.generation,
            pid=self.pid,
            started_ticks=self.started_ticks,
            namespace=self.namespace,
            probe=self.probe,
            opens=self.opens,
            pid_namespace=self.pid_namespace,
        )

    def attaching(self, memory: Memory, visible: bool) -> Attach:
        """What the client says to its session.

        Args:
            visible: whether it has a pidfd of the session: without that proof of death it asks for
                no process_vm, and names no GPU memory.
        """
        ask = Attach(
            pid=self.pid,
            started_ticks=self.started_ticks,
            rank=memory.rank,
            world=self.world,
            layout=memory.layout,
            region_bytes=memory.region_bytes,
            replicas=memory.replicas,
        )
        if not visible or memory.way is Way.STAGED:
            return ask
        named = replace(ask, way=memory.way, bases=memory.bases, scratch=memory.scratch)
        return replace(named, gpu=memory.gpu)


@dataclass(frozen=True, slots=True)
class ToDesk:
    """Send this to the front desk."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class ToSession:
    """Send this to the session."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class DialSession:
    """Open the link to a session and watch its process; tell `dialled`."""

    address: Address
    endpoint: str
    pid: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the link to the session."""


@dataclass(frozen=True, slots=True)
class KillSession:
    """SIGKILL the session's process; its death comes as `session_died`."""


@dataclass(frozen=True, slots=True)
class WriteProof:
    """Write these bytes into our scratch memory, at once."""

    proof: bytes


@dataclass(frozen=True, slots=True)
class MapFiles:
    """Map what the ways need: pool (read-only), bounce file; tell `mapped`."""

    attached: Attached


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Copy pool offsets into the engine's blocks until the deadline; tell `copied_in`."""

    ticket: int
    blocks: tuple[int, ...]
    offsets: U64s
    deadline: int


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Copy the engine's blocks into bounce slots until the deadline; tell `copied_out`."""

    ticket: int
    batch: int
    blocks: tuple[int, ...]
    slots: U64s
    deadline: int


@dataclass(frozen=True, slots=True)
class Finish:
    """An operation is over."""

    done: Done


Effect = (
    ToDesk
    | ToSession
    | DialSession
    | HangUp
    | KillSession
    | WriteProof
    | MapFiles
    | CopyIn
    | CopyOut
    | Finish
)
