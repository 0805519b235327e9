"""Stand-ins for the two neighbours of the connector: vLLM's objects, and the client.

The objects of vLLM are as small as the connector lets them be. The client keeps its blocks in a
dictionary; a test can hold its answers back, or break it.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from pegaflow.client import Done, Lease, LoadDone, LookupDone, SaveDone
from pegaflow.wire.layout import Layout, pieces
from pegaflow.wire.status import Status

BLOCK = 4
"""Tokens of a block."""


@dataclass
class Request:
    """vLLM's Request: so many tokens, whose hashes depend on `salt`."""

    request_id: str
    num_tokens: int
    salt: str = ""

    @property
    def block_hashes(self) -> list[bytes]:
        """One per full block."""
        return [f"{self.salt}/{i}".encode().ljust(32) for i in range(self.num_tokens // BLOCK)]


class FullAttentionSpec:
    """The only kind that is supported; the connector goes by its name."""

    block_size = BLOCK


def config(mode: str = "read_write", extra: dict[str, Any] | None = None) -> Any:
    """A VllmConfig."""
    return SimpleNamespace(
        instance_id="42",
        kv_transfer_config=SimpleNamespace(
            engine_id="engine",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"pegaflow.mode": mode, **(extra or {})},
        ),
        cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
    )


def kv_cache_config(blocks: int = 64, groups: int = 1) -> Any:
    """A KVCacheConfig."""
    group = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
    return SimpleNamespace(
        num_blocks=blocks, kv_cache_groups=[group] * groups, hash_block_size=BLOCK
    )


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
    received: set[str] | None = None, bad: Collection[int] = (), meta: Any = None
) -> Any:
    """A KVConnectorOutput."""
    return SimpleNamespace(
        finished_recving=received, invalid_block_ids=bad, kv_connector_worker_meta=meta
    )


@dataclass
class Store:
    """The service behind all fake clients of a test."""

    pages: dict[bytes, bytes] = field(default_factory=dict)
    leases: dict[int, list[bytes]] = field(default_factory=dict)
    holding: bool = False  # answers are kept back
    failing: int = 0  # of each load, so many last blocks fail
    broken: bool = False  # every call raises
    clients: list["FakeClient"] = field(default_factory=list)
    number: int = 0

    def let_go(self) -> None:
        """Give the answers that were held back."""
        self.holding = False
        for client in self.clients:
            client.wake()

    def make(self, *args: Any, **kwargs: Any) -> "FakeClient":
        """To be put where the connector finds `Client`."""
        made = FakeClient(self, *args, **kwargs)
        self.clients.append(made)
        return made


class FakeClient:
    """`pegaflow.client.Client` over a Store."""

    def __init__(self, store: Store, engine: str, namespace: bytes, **how: Any) -> None:
        self.store = store
        self.identity = (engine, namespace, how["generation"])
        self.attached = True
        self.refusal = ""
        self.advice = ""
        self.closed = False
        self.woken = threading.Event()
        self.done: list[Done] = []
        self.saves: list[tuple[int, Sequence[bytes], Sequence[int], Callable[[], bool]]] = []

    def _ticket(self) -> int:
        if self.store.broken:
            raise RuntimeError("broken on purpose")
        self.store.number += 1
        return self.store.number

    def register(self, layout: Layout, buffers: Sequence[Any], *, rank: int = 0) -> None:
        """Remember the memory."""
        self.layout, self.buffers = layout, [np.asarray(b) for b in buffers]

    def connect(self, timeout: float) -> bool:
        """There it is."""
        return True

    def start_lookup(self, keys: Sequence[bytes], *, timeout: float) -> int:
        """The longest prefix."""
        ticket = self._ticket()
        held = []
        for key in keys:
            if key not in self.store.pages:
                break
            held.append(key)
        if held:
            self.store.leases[ticket] = held
        lease = Lease(1, ticket, len(held)) if held else None
        self.done.append(LookupDone(ticket, Status.OK, lease, len(held)))
        return ticket

    def start_load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float
    ) -> int:
        """Copies at once; the last `failing` blocks fail."""
        ticket = self._ticket()
        keys = self.store.leases.pop(lease.number)[first : first + len(blocks)]
        good = len(blocks) - self.store.failing
        for key, block in list(zip(keys, blocks, strict=True))[:good]:
            for region, offset, length, at in pieces(self.layout, block):
                page = np.frombuffer(self.store.pages[key], np.uint8)
                self.buffers[region][offset : offset + length] = page[at : at + length]
        status = Status.COPY_FAILED if self.store.failing else Status.OK
        self.done.append(LoadDone(ticket, status, tuple(blocks[good:])))
        return ticket

    def start_save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        timeout: float,
        parent: bytes = b"",
        valid: Callable[[], bool] = lambda: True,
    ) -> int:
        """Copied by `poll`."""
        ticket = self._ticket()
        self.saves.append((ticket, keys, blocks, valid))
        return ticket

    def release(self, lease: Lease) -> None:
        """Given back."""
        self.store.leases.pop(lease.number, None)

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Everything, unless answers are held back."""
        if self.store.broken:
            raise RuntimeError("broken on purpose")
        if self.store.holding or not (self.saves or self.done):
            self.woken.wait(timeout)
            self.woken.clear()
        if self.store.holding:
            return []
        for ticket, keys, blocks, valid in self.saves:
            if valid():
                for key, block in zip(keys, blocks, strict=True):
                    parts = [
                        self.buffers[r][o : o + n] for r, o, n, _ in pieces(self.layout, block)
                    ]
                    self.store.pages[key] = b"".join(p.tobytes() for p in parts)
            self.done.append(SaveDone(ticket, Status.OK, len(keys), 0))
        self.saves = []
        done, self.done = self.done, []
        return done

    def wake(self) -> None:
        """End a poll that waits."""
        self.woken.set()

    def close(self) -> None:
        """Gone."""
        self.closed = True
