"""Stand-ins for the two neighbours of the connector: vLLM's objects, and the client.

The objects of vLLM are as small as the connector lets them be. The client keeps its blocks in a
dictionary; a test can hold its answers back, or break it. It follows the service's rules of who
opens a generation, who joins it, and when a block of several ranks is published.
"""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import numpy as np

from pegaflow.client import Chain, Done, Lease, LoadDone, LookupDone, Seen
from pegaflow.wire.identities import Incarnation, Key, LeaseId
from pegaflow.wire.layout import Layout, pieces
from pegaflow.wire.status import Status

from .conversations import Conversation, Order, Part

BLOCK = 4
"""Tokens of a block."""


@dataclass
class Request:
    """vLLM's Request: so many tokens, whose hashes depend on `salt`."""

    request_id: str
    num_tokens: int
    salt: str = ""
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    kv_transfer_params: Any = None
    kv_hints: Any = None

    @property
    def num_prompt_tokens(self) -> int:
        """All of them."""
        return self.num_tokens

    @property
    def block_hashes(self) -> list[Key]:
        """One per full block."""
        blocks = range(self.num_tokens // BLOCK)
        return [Key(f"{self.salt}/{block}".encode().ljust(32)) for block in blocks]


class FullAttentionSpec:
    """The only kind that is supported; the connector goes by its name."""

    block_size = BLOCK


class VllmConfig(SimpleNamespace):
    """Of vLLM's configuration classes the connector goes by their names, and by their fields'."""


class ParallelConfig(SimpleNamespace):
    """See VllmConfig."""


class CacheConfig(SimpleNamespace):
    """See VllmConfig."""


class ModelConfig(SimpleNamespace):
    """See VllmConfig."""


class AttentionConfig(SimpleNamespace):
    """See VllmConfig."""


def config(
    mode: str = "read_write",
    extra: dict[str, Any] | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    life: str = "42",
    dtype: str = "auto",
    kv_role: str = "kv_both",
    data: int = 1,
    executor: str = "uni",
    policy: str = "recompute",
    decode: int = 1,
    pipeline: int = 1,
    name: str = "engine",
    **model: Any,
) -> Any:
    """A VllmConfig, as a process of that rank sees it; `data`: parallel ranks that the launcher
    counts in; `decode`: ranks among which a request's tokens are parted; `pipeline`: stages;
    `name`: the engine's."""
    return VllmConfig(
        instance_id=life,
        parallel_config=ParallelConfig(
            rank=rank,
            world_size=world * data,
            tensor_parallel_size=world // pipeline,
            pipeline_parallel_size=pipeline,
            decode_context_parallel_size=decode,
            distributed_executor_backend=executor,
        ),
        kv_transfer_config=SimpleNamespace(
            engine_id=name,
            kv_role=kv_role,
            kv_load_failure_policy=policy,
            kv_connector_extra_config={
                **({"pegaflow.mode": mode} if mode else {}),
                **(extra or {}),
            },
        ),
        cache_config=CacheConfig(prefix_caching_hash_algo="sha256", cache_dtype=dtype),
        model_config=ModelConfig(model=__file__, **model),
    )


def kv_cache_config(blocks: int = 64, kinds: Sequence[type] = (FullAttentionSpec,)) -> Any:
    """A KVCacheConfig with a group of each kind."""
    groups = [SimpleNamespace(kv_cache_spec=kind()) for kind in kinds]
    return SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups, hash_block_size=BLOCK)


def role(name: str) -> Any:
    """A KVConnectorRole."""
    return SimpleNamespace(name=name)


def output(
    new: Sequence[tuple[str, list[int], int, int]] = (),
    cached: Sequence[tuple[str, list[int] | None, int, int]] = (),
    resumed: Collection[str] = (),
    preempted: Collection[str] = (),
) -> Any:
    """A SchedulerOutput from (request, its new blocks, tokens computed, tokens scheduled)."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=r, block_ids=(b,), num_computed_tokens=c) for r, b, c, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[r for r, _, _, _ in cached],
            new_block_ids=[None if b is None else (b,) for _, b, _, _ in cached],
            num_computed_tokens=[c for _, _, c, _ in cached],
            resumed_req_ids=resumed,
        ),
        num_scheduled_tokens={r: n for r, _, _, n in [*new, *cached]},
        preempted_req_ids=preempted,
    )


def blocks(ids: list[int]) -> Any:
    """A KVCacheBlocks."""
    return SimpleNamespace(get_block_ids=lambda: (ids,))


def worker_output(
    received: set[str] | None = None,
    bad: Collection[int] = (),
    meta: Any = None,
    sent: Collection[str] = (),
) -> Any:
    """A KVConnectorOutput."""
    return SimpleNamespace(
        finished_recving=received,
        finished_sending=sent,
        failed_recving=set(),
        invalid_block_ids=bad,
        kv_connector_worker_meta=meta,
    )


@dataclass
class Store:
    """The service behind all fake clients of a test."""

    pages: dict[bytes, list[bytes]] = field(default_factory=dict)  # by name and hash: rank's parts
    leases: dict[int, list[bytes]] = field(default_factory=dict)
    loaded: dict[int, set[int]] = field(default_factory=dict)  # lease -> ranks that have used it
    orders: dict[Order, dict[int, list[bytes]]] = field(default_factory=dict)  # parts by rank
    given_up: set[Order] = field(default_factory=set)
    committed: set[Order] = field(default_factory=set)
    on_disk: Collection[bytes] = ()  # hashes that a lookup has to read from SSD
    elsewhere: Collection[bytes] = ()  # hashes that a lookup has to bring from other hosts
    finds: bool = False  # clients look into it by themselves
    private: set[int] = field(default_factory=set)  # leases that nobody else may load from
    holding: bool = False  # answers are kept back
    failing: int = 0  # of each load, so many last blocks fail
    failing_ranks: Collection[int] = (0,)  # where they do
    broken: bool = False  # every call raises
    gathers: bool = True  # a save may bring several chains
    conversations: list[int] = field(default_factory=list)  # chains of each save
    clients: list["FakeClient"] = field(default_factory=list)
    number: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def has(self, request: Request) -> bool:
        """Whether any block of the request is there, in any namespace."""
        with self.lock:
            return any(key.endswith(block) for key in self.pages for block in request.block_hashes)

    def let_go(self) -> None:
        """Give the answers that were held back."""
        self.holding = False
        self.wake_all()

    def wake_all(self) -> None:
        """Something has changed for everybody."""
        for client in self.clients:
            client.wake()

    def make(self, *args: Any, **kwargs: Any) -> "FakeClient":
        """To be put where the connector finds `Client`."""
        made = FakeClient(self, *args, **kwargs)
        with self.lock:
            self.clients.append(made)
        return made

    def space(self, namespace: bytes, generation: bytes) -> bytes:
        """What an engine says of itself, and the name of each rank's memory."""
        with self.lock:
            mine = [c for c in self.clients if c.generation == generation and not c.closed]
            names = sorted((c.rank, c.layout.name) for c in mine if c.rank is not None)
        return namespace + repr(names).encode()

    def serves(self, generation: bytes) -> set[int]:
        """The attached ranks of a generation; none while it is not open."""
        with self.lock:
            mine = [c for c in self.clients if c.generation == generation and not c.closed]
            opened = any(c.opens for c in mine)
            return {c.rank for c in mine if c.rank is not None} if opened else set()


class FakeClient:
    """`pegaflow.client.Client` over a Store."""

    def __init__(
        self,
        store: Store,
        engine: str,
        namespace: bytes,
        *,
        probe: bytes,
        world: int,
        generation: bytes,
        endpoint: str | None,
        curve: str | None,
        owner: int | None = None,
        opens: bool,
        way: str = "auto",
    ) -> None:
        self.store = store
        self.identity = (engine, namespace, generation)
        self.generation = generation
        self.world = world
        self.opens = opens
        self.rank: int | None = None  # of the registered memory
        self.refusal = ""
        self.advice = self.by_message = ""
        self.ways = ("staged", "staged", "")
        self.closed = False
        self.woken = threading.Event()
        self.done: list[Done] = []
        self.saves: list[Part] = []  # not ended yet

    @property
    def attached(self) -> bool:
        """Whether a session serves this client."""
        return self.opens or self.rank in self.store.serves(self.generation)

    refused = property(lambda self: not self.attached and bool(self.refusal))
    gathers = property(lambda self: self.store.gathers)

    @property
    def complete(self) -> bool:
        """Whether all ranks are attached."""
        return len(self.store.serves(self.generation)) == self.world

    def _named(self, keys: Sequence[bytes]) -> list[bytes]:
        return [self.store.space(self.identity[1], self.generation) + key for key in keys]

    def _ticket(self) -> int:
        if self.store.broken:
            raise RuntimeError("broken on purpose")
        with self.store.lock:
            self.store.number += 1
            return self.store.number

    def register(self, layout: Layout, buffers: Sequence[Any], *, rank: int = 0, **_: int) -> None:
        """Remember the memory."""
        self.layout, self.buffers = layout, [np.asarray(b) for b in buffers]
        self.rank = rank

    def unregister(self, timeout: float) -> bool:
        """The memory is left alone."""
        self.rank = None
        return True

    def connect(self, timeout: float) -> bool:
        """There it is."""
        return True

    def find(self, keys: Sequence[bytes]) -> LookupDone | None:
        """The longest prefix at once, where the store is one that a client looks into."""
        if not (self.store.finds and self.attached and self.complete):
            return None
        done = self._look_up(keys, self._ticket())
        self.store.private |= {done.lease.number} if done.lease else set()
        return done

    def see(self, keys: Sequence[bytes]) -> Seen | None:
        """Which are there, where the store is one that a client looks into."""
        if not (self.store.finds and self.attached and self.complete):
            return None
        return Seen(tuple(key in self.store.pages for key in self._named(keys)), None)

    def share(self, lease: Lease) -> None:
        """Others may load from it."""
        self.store.private.discard(lease.number)

    def start_lookup(self, keys: Sequence[bytes], *, timeout: float, first_find: bool) -> int:
        """The longest prefix."""
        assert not first_find, "it was tried"
        ticket = self._ticket()
        ready = self.attached and self.complete
        why = Status.NOT_ATTACHED if self.attached else Status.DISCONNECTED
        missed = LookupDone(ticket, why, None, 0)
        self.done.append(self._look_up(keys, ticket) if ready else missed)
        return ticket

    def _look_up(self, keys: Sequence[bytes], ticket: int) -> LookupDone:
        held = list(takewhile(self.store.pages.__contains__, self._named(keys)))
        if held:
            self.store.leases[ticket] = held
        lease = Lease(Incarnation(1), LeaseId(ticket), len(held)) if held else None
        tiers, found = (self.store.on_disk, self.store.elsewhere), keys[: len(held)]
        disk, peers = [tuple(n for n, key in enumerate(found) if key in tier) for tier in tiers]
        return LookupDone(ticket, Status.OK, lease, len(held), disk=disk, peers=peers)

    def start_load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float
    ) -> int:
        """Copies at once; the last `failing` blocks fail. The last rank uses the lease up."""
        ticket = self._ticket()
        assert self.rank is not None and lease.number not in self.store.private
        with self.store.lock:
            keys = self.store.leases[lease.number][first : first + len(blocks)]
            ranks = self.store.loaded.setdefault(lease.number, set())
            assert self.rank not in ranks
            ranks.add(self.rank)
            if len(ranks) == self.world:
                del self.store.leases[lease.number]
        failing = self.store.failing if self.rank in self.store.failing_ranks else 0
        good = len(blocks) - failing
        for key, block in list(zip(keys, blocks, strict=True))[:good]:
            page = np.frombuffer(self.store.pages[key][self.rank], np.uint8)
            for region, offset, length, at in pieces(self.layout, block):
                self.buffers[region][offset : offset + length] = page[at : at + length]
        status = Status.COPY_FAILED if failing else Status.OK
        self.done.append(LoadDone(ticket, status, tuple(blocks[good:])))
        return ticket

    def start_save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        timeout: float,
        commits: bool,
        more: Sequence[Chain],
        **first: Any,
    ) -> int:
        """Copied by `poll`."""
        assert commits and (self.gathers or not more)
        save = Conversation(self._ticket())
        self.saves += save.parts(self.generation, (Chain(keys, blocks, **first), *more))
        self.store.conversations.append(save.open)
        return save.ticket

    def skip_save(self, order: int) -> None:
        """No rank's part of it is published."""
        with self.store.lock:
            self.store.given_up.add((self.generation, order))
        self.store.wake_all()

    def commit(self, orders: Sequence[int]) -> None:
        """What all ranks have of them is published."""
        with self.store.lock:
            self.store.committed |= {(self.generation, order) for order in orders}
        self.store.wake_all()

    def release(self, lease: Lease) -> None:
        """Given back."""
        self.store.leases.pop(lease.number, None)

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Everything that has ended, unless answers are held back."""
        if self.store.broken:
            raise RuntimeError("broken on purpose")
        if not self.store.holding:
            self._save()
        if self.store.holding or not self.done:
            self.woken.wait(timeout)
            self.woken.clear()
        if self.store.holding:
            return []
        self._save()
        done, self.done = self.done, []
        return done

    def _save(self) -> None:
        """Copy, publish with the last rank, and end what was published or given up."""
        with self.store.lock:
            for save in list(self.saves):
                parts = self.store.orders.setdefault(save.order, {})
                assert self.rank is not None
                if not save.chain.valid():
                    self.skip_save(save.order[1])
                elif self.rank not in parts:
                    parts[self.rank] = [self._block(block) for block in save.chain.blocks]
                if save.order in self.store.given_up:
                    self._end(save, Status.DROPPED)
                elif len(parts) == self.world and save.order in self.store.committed:
                    pages = zip(*(parts[rank] for rank in range(self.world)), strict=True)
                    named = self._named(save.chain.keys)
                    self.store.pages.update(zip(named, map(list, pages), strict=True))
                    self._end(save, Status.OK)

    def _end(self, save: Part, status: Status) -> None:
        self.saves.remove(save)
        self.done += save.save.end(save, status)
        self.store.wake_all()

    def _block(self, block: int) -> bytes:
        cut = [self.buffers[r][o : o + n] for r, o, n, _ in pieces(self.layout, block)]
        return b"".join(piece.tobytes() for piece in cut)

    def wake(self) -> None:
        """End a poll that waits."""
        self.woken.set()

    def close(self) -> None:
        """Gone, with its parts of what is not published."""
        with self.store.lock:
            self.closed = True
            self.store.given_up |= {save.order for save in self.saves}
