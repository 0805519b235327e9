"""Stand-ins for the two neighbours of the tier: vLLM's tiering, and the client.

`Host` is what vLLM's tiering manager is to a tier: it has the memory, hands out chunks and calls in
the order in which vLLM does. `Pool` keeps blocks by namespace and key; a test can hold its answers
back, or break it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pegaflow.client import Done, Lease, LoadDone, LookupDone, SaveDone, Seen
from pegaflow.connectors.vllm import compat
from pegaflow.connectors.vllm.offload import contract
from pegaflow.connectors.vllm.offload.contract import JobResult, LookupResult
from pegaflow.connectors.vllm.offload.tier import PegaTier
from pegaflow.wire.identities import Incarnation, LeaseId
from pegaflow.wire.status import Status
from tests.connectors.vllm import fakes
from tests.procs.service import eventually

ROW = 4096
CHUNKS = 16
WINDOW = 1
"""The group of which only the end of a prompt is needed."""


_engines = count(1)


def key(number: int, group: int = 0) -> bytes:
    """As vLLM makes them: a hash, and the group."""
    return f"chunk {number}".encode().ljust(32) + group.to_bytes(4, "big")


@dataclass
class FullSpec:
    """A KV cache spec, as small as it may be."""

    block_size: int = 16
    head_size: int = 64


@dataclass
class WindowSpec:
    """Another kind with the same fields."""

    block_size: int = 16
    head_size: int = 64


@dataclass
class OffloadingConfig:
    """vLLM's, with the fields that the tier reads by name."""

    groups: Any
    engine_id: str
    model: Any
    parallel: Any
    worker_kv_bytes_per_block: int = ROW
    kv_cache_layout: str = "LBHNC"
    replicated_layout: bool = False


@dataclass
class OffloadingGroup:
    """vLLM's OffloadingGroupConfig."""

    group_id: int
    tokens_per_block: int = 16
    layer_names: tuple[str, ...] = ("a", "b")
    sliding_window_size_in_chunks: int | None = None


def offloading(**fields: Any) -> OffloadingConfig:
    """An OffloadingConfig of two groups."""
    ranks = dict.fromkeys("world_size tp_size pp_size pcp_size dcp_size".split(), 1)
    windows = OffloadingGroup(WINDOW, sliding_window_size_in_chunks=2)
    return OffloadingConfig(
        groups=fields.pop("groups", (OffloadingGroup(0), windows)),
        engine_id="engine",
        model=SimpleNamespace(dtype=fields.pop("dtype", "bfloat16")),
        parallel=SimpleNamespace(
            **{**ranks, "is_parallelism_agnostic": False, **fields.pop("ranks", {})}
        ),
        **fields,
    )


def tensors(blocks: int, layers: Sequence[str] = ("a", "b")) -> list[Any]:
    """KVCacheTensors of one allocation in which layers are outermost."""
    return [
        SimpleNamespace(
            size=2 * 64 * blocks,
            layers=list(layers),
            layer_stride=64 * blocks,
            block_stride=64,
            offset=0,
            host_resident=False,
        )
    ]


def caches(blocks: int = 32, specs: Sequence[Any] = (FullSpec(), WindowSpec()), **more: Any) -> Any:
    """A KVCacheConfig."""
    return SimpleNamespace(
        num_blocks=blocks,
        kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs],
        kv_cache_tensors=more.pop("placed", tensors(blocks)),
        hash_block_size=16,
        kv_tp_replicas=1,
        **more,
    )


def alike(patch: pytest.MonkeyPatch) -> None:
    """All engines run on devices of one kind, and hash alike."""
    patch.setattr(contract, "device", lambda: "a device")
    patch.setattr(compat, "first_parent", lambda algorithm: b"the first parent")


class Core:
    """vLLM's EngineCore: who makes the tier, and asks the workers for things."""

    def __init__(self) -> None:
        self.model_executor = None
        self.asked: list[Any] = []

    def make(self, maker: Any, given: dict[str, Any]) -> PegaTier:
        """The tier finds us among its callers."""
        made: PegaTier = maker(**given)
        return made

    def collective_rpc(self, method: Any, timeout: float | None = None) -> str:
        """Of the workers."""
        self.asked.append(method)
        return "done"


class Host:
    """vLLM's side: see the module."""

    skipped = 0
    """Chunks of the memory that the tier is not shown."""
    publishes = True
    """Whether vLLM publishes KV events."""

    def __init__(
        self,
        *,
        options: dict[str, Any] | None = None,
        config: Any = None,
        spec: Any = None,
        cached: Any = None,
        **extra: Any,
    ) -> None:
        self.memory: Any = np.zeros((CHUNKS, ROW), np.int8)
        self._numbers = count(1)
        self._contexts: dict[str, Any] = {}
        self.results: dict[int, Any] = {}
        self.told: list[Any] = []  # vLLM's events
        self.core = Core()
        known = config or fakes.config("", extra)
        known.kv_transfer_config.engine_id = f"engine {next(_engines)}"
        given = {
            "vllm_config": known,
            "kv_cache_config": cached or caches(),
            "spec": spec or offloading(),
            "options": {"timeout_ms": 20_000, **(options or {})},
        }
        self.tier = self.core.make(self._make, given)

    def _make(
        self, *, vllm_config: Any, kv_cache_config: Any, spec: Any, options: dict[str, Any]
    ) -> PegaTier:
        """The tier finds the first two among the names of its callers."""
        return PegaTier(
            offloading_spec=SimpleNamespace(
                config=spec, kv_events_config=SimpleNamespace(enable_kv_cache_events=self.publishes)
            ),
            primary_kv_view=memoryview(self.memory)[self.skipped :],
            tier_type="PegaTier",
            **options,
        )

    @property
    def serves(self) -> bool:
        """Whether a session serves the tier."""
        carrier = self.tier._carrier
        return carrier is not None and carrier.attached

    def ready(self) -> "Host":
        """Once it does."""
        eventually("the tier is attached", lambda: self.serves)
        return self

    def context(
        self, request: str, places: dict[bytes, int] | None = None, params: Any = None
    ) -> Any:
        """A ReqContext."""
        if request not in self._contexts:
            made = SimpleNamespace(req_id=request, kv_transfer_params=params, kv_hints=None)
            known = places or {}
            made.get_offload_key_position = known.get
            self._contexts[request] = made
            self.tier.on_new_request(made)
        return self._contexts[request]

    def asked(self, request: str, keys: Sequence[bytes]) -> list[Any]:
        """What one step's lookups say, all keys in a row."""
        return [self.tier.lookup(one, self.context(request)) for one in keys]

    def found(self, request: str, keys: Sequence[bytes]) -> list[bool]:
        """The answers, after as many steps as they take."""
        answers: list[Any] = []

        def settled() -> bool:
            answers[:] = self.asked(request, keys)
            self.step()
            return LookupResult.RETRY not in answers

        eventually("every key has its answer", settled)
        return [answer is LookupResult.HIT for answer in answers]

    def step(self, *scheduled: str, preempted: Sequence[str] = ()) -> None:
        """The end of a step in which these requests were scheduled for the first time."""
        self.tier.on_schedule_end(
            SimpleNamespace(new_req_ids=scheduled, preempted_req_ids=preempted)
        )
        for result in self.tier.get_finished_jobs():
            assert result.job_id not in self.results, "a job is reported once"
            self.results[result.job_id] = result
        self.told += self.tier.take_events()

    def _job(self, request: str, keys: Sequence[bytes], chunks: Sequence[int]) -> Any:
        return SimpleNamespace(
            job_id=next(self._numbers),
            keys=keys,
            chunk_ids=np.array(chunks, np.int32),
            req_context=self.context(request),
        )

    def store(self, request: str, keys: Sequence[bytes], chunks: Sequence[int]) -> int:
        """Submit a store; its number."""
        job = self._job(request, keys, chunks)
        self.tier.submit_store(job)
        return int(job.job_id)

    def load(self, request: str, keys: Sequence[bytes], chunks: Sequence[int]) -> int:
        """Submit a load; its number."""
        job = self._job(request, keys, chunks)
        self.tier.submit_load(job)
        return int(job.job_id)

    def result(self, number: int) -> JobResult:
        """How it ended."""

        def there() -> bool:
            self.step()
            return number in self.results

        eventually(f"job {number} is reported", there)
        return self.results[number]

    def fill(self, *chunks: int, salt: int = 0) -> None:
        """Write bytes into chunks that no other chunk has."""
        for chunk in chunks:
            self.memory[chunk] = np.random.default_rng([chunk, salt]).integers(
                -128, 128, ROW, np.int8
            )

    def close(self) -> None:
        """The engine stops."""
        self.tier.shutdown()


@dataclass
class Pool:
    """The service behind all clients of a test."""

    blocks: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)  # by namespace and key
    leases: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    asked: list[list[bytes]] = field(default_factory=list)  # the keys of each lookup
    away: bool = False  # nobody is served
    holding: bool = False  # answers are kept back
    broken: bool = False  # every call raises
    clings: bool = False  # the memory is not given up
    clung: int = 0  # how often that was asked for meanwhile
    on_disk: set[bytes] = field(default_factory=set)  # keys that a tier has, too
    failing: set[bytes] = field(default_factory=set)  # keys whose load fails
    clients: list["PoolClient"] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))
    lock: threading.RLock = field(default_factory=threading.RLock)

    def client(self, *args: Any, **kwargs: Any) -> "PoolClient":
        """To be put where the tier finds `Client`."""
        made = PoolClient(self, *args, **kwargs)
        self.clients.append(made)
        return made

    def wake_all(self) -> None:
        """Something has changed for everybody."""
        for one in self.clients:
            one.wake()


class PoolClient:
    """`pegaflow.client.Client` over a Pool."""

    def __init__(self, pool: Pool, engine: str, namespace: bytes, **said: Any) -> None:
        self.pool, self.engine, self.said = pool, engine, said
        self.space = namespace + said["probe"]
        self.refusal = self.advice = ""
        self.ways = ("staged", "staged", "")
        self.done: list[Done] = []
        self.saves: list[tuple[int, Any]] = []  # copied by `poll`
        self.woken = threading.Event()
        self.closed = False

    @property
    def attached(self) -> bool:
        """Whether a session serves it."""
        return not self.pool.away and not self.closed

    def see(self, keys: Sequence[bytes]) -> Seen | None:
        """Where they are."""
        if not self.attached:
            return None
        here = tuple((self.space, one) in self.pool.blocks for one in keys)
        return Seen(here, tuple(one in self.pool.on_disk for one in keys))

    def _ticket(self) -> int:
        if self.pool.broken:
            raise RuntimeError("broken on purpose")
        return int(next(self.pool.numbers))

    def register(self, layout: Any, buffers: Sequence[Any]) -> None:
        """Remember the memory."""
        self.rows = buffers[0].reshape(layout.blocks, layout.layers[0].segment_bytes)

    def unregister(self, timeout: float) -> bool:
        """The memory is left alone."""
        if self.pool.clings:
            self.pool.clung += 1
            self.woken.wait(timeout)
        return not self.pool.clings

    def start_lookup(self, keys: Sequence[bytes], *, timeout: float) -> int:
        """The longest prefix."""
        ticket = self._ticket()
        self.pool.asked.append(list(keys))
        named = [(self.space, one) for one in keys]
        held = list(takewhile(self.pool.blocks.__contains__, named))
        lease = Lease(Incarnation(1), LeaseId(ticket), len(held)) if held else None
        if held:
            self.pool.leases[ticket] = held
        self.done.append(LookupDone(ticket, Status.OK, lease, len(held)))
        return ticket

    def start_load(self, lease: Lease, blocks: Sequence[int], *, timeout: float) -> int:
        """Copied at once; uses the lease up."""
        ticket = self._ticket()
        failed = []
        for name, block in zip(self.pool.leases.pop(lease.number), blocks, strict=True):
            if name[1] in self.pool.failing:
                failed.append(block)
            else:
                self.rows[block] = np.frombuffer(self.pool.blocks[name], self.rows.dtype)
        status = Status.COPY_FAILED if failed else Status.OK
        self.done.append(LoadDone(ticket, status, tuple(failed)))
        return ticket

    def start_save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        timeout: float,
        parent: bytes,
        valid: Any,
    ) -> int:
        """Copied by `poll`."""
        ticket = self._ticket()
        self.saves.append((ticket, (keys, blocks, valid)))
        return ticket

    def drop_save(self, ticket: int) -> None:
        """Given up."""
        self.saves = [save for save in self.saves if save[0] != ticket]
        self.done.append(SaveDone(ticket, Status.DROPPED, 0, 0))

    def release(self, lease: Lease) -> None:
        """Given back."""
        self.pool.leases.pop(lease.number, None)

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """What has ended."""
        if self.pool.broken:
            raise RuntimeError("broken on purpose")
        dropped: list[Done] = [one for one in self.done if isinstance(one, SaveDone)]
        if not dropped and (self.pool.holding or not (self.done or self.saves)):
            self.woken.wait(timeout)
            self.woken.clear()
        for ticket, (keys, blocks, valid) in [] if self.pool.holding else list(self.saves):
            self.saves.remove((ticket, (keys, blocks, valid)))
            if valid():
                new = {
                    (self.space, k): self.rows[b].tobytes()
                    for k, b in zip(keys, blocks, strict=True)
                }
                known = len(new.keys() & self.pool.blocks.keys())
                self.pool.blocks.update(new)
                self.done.append(SaveDone(ticket, Status.OK, len(new) - known, known))
            else:
                self.done.append(SaveDone(ticket, Status.DROPPED, 0, 0))
        if self.pool.holding:
            self.done = [one for one in self.done if one not in dropped]
            return dropped
        done, self.done = self.done, []
        return done

    def wake(self) -> None:
        """End a poll that waits."""
        self.woken.set()

    def close(self) -> None:
        """Gone."""
        self.closed = True
