"""An engine as the connector sees it: a scheduler's connector and one of each rank, called in
vLLM's order, over fake clients.

The ranks' threads are real; a step that needs their results is repeated, as an idle engine does.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest

import pegaflow.connectors.vllm.worker
from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm.layout import Tensor
from pegaflow.connectors.vllm.mover import Mover
from pegaflow.connectors.vllm.orders import StepOrders

from .fakes import Request, Store, blocks, config, kv_cache_config, output, role, worker_output
from .grouping import wrapped
from .latent import MLAAttentionSpec, cache_config

BLOCKS = 64
PATIENCE_S = 10.0
SCHEDULER = -1
"""Stands for the scheduler in the order in which an engine's processes come up."""

_lives = count()


def plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take numpy arrays where vLLM has tensors."""

    def numbers(caches: dict[str, Any]) -> list[Tensor]:
        arrays = {name: a.__array_interface__["data"][0] for name, a in caches.items()}
        return [
            Tensor(
                n,
                a.shape,
                a.strides,
                0,
                element=1,
                dtype=str(a.dtype),
                storage=arrays[n],
                storage_bytes=a.nbytes,
            )
            for n, a in caches.items()
        ]

    def flat(caches: dict[str, Any], addresses: Sequence[int]) -> list[Any]:
        by_address = {a.__array_interface__["data"][0]: a for a in caches.values()}
        return [by_address[address].reshape(-1).view(np.uint8) for address in addresses]

    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "tensors", numbers)
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "buffers", flat)


class Pair:
    """One engine: a scheduler's connector, one of each rank, and their KV memory."""

    def __init__(
        self,
        mode: str = "read_write",
        extra: dict[str, Any] | None = None,
        *,
        memory: Any = None,
        world: int = 1,
        latent: bool = False,
        indexed: int = 0,
        stages: Sequence[int] = (),
        decode: int = 1,
        name: str = "engine",
        dtype: str = "auto",
        order: Sequence[int] = (),
        kv_role: str = "kv_both",
        policy: str = "recompute",
        early: Request | None = None,
        waits: bool = True,
    ) -> None:
        """Build it.

        Args:
            latent: its model has latent attention: all ranks hold the same.
            indexed: bytes of a block in the cache of each layer's indexer.
            stages: layers of each rank, which is a pipeline stage; empty: each has both layers.
            decode: ranks among which a request's tokens are parted.
            order: in which its processes come up.
            early: a request that is there as soon as the scheduler is.
            waits: whether to wait until its ranks are served.
        """
        self.world, self._apart = world, 0 if latent else 64
        cache = cache_config(BLOCKS, replicas=world) if latent else kv_cache_config(BLOCKS)
        if indexed:
            cache.kv_cache_groups[0].kv_cache_spec = wrapped(*[MLAAttentionSpec()] * 2)
        life = f"{os.getpid()}.{next(_lives)}"
        shape = world, max(stages, default=2), BLOCKS, 16
        self.memories = np.zeros(shape, np.uint8) if memory is None else memory[None]
        self.indexes = np.zeros((*shape[:3], indexed), np.int8)
        self._layers = list(stages) or [self.memories.shape[1]] * world
        ranks: dict[int, PegaKVConnector] = {}
        for one in order or [*range(world), SCHEDULER]:
            seen = config(
                mode,
                extra,
                rank=max(one, 0),
                world=world,
                life=life,
                dtype=dtype,
                kv_role=kv_role,
                policy=policy,
                decode=decode,
                pipeline=len(stages) or 1,
                name=name,
            )
            made = PegaKVConnector(seen, role("SCHEDULER" if one < 0 else "WORKER"), cache)
            if one == SCHEDULER:
                self.scheduler = made
                if early is not None:
                    made.on_new_request(early)
                    made.get_num_new_matched_tokens(early, 0)
            else:
                ranks[one] = made
                before, mine = sum(stages[:one]), self.memories[one, : self._layers[one]]
                caches = {f"layers.{before + i}": a for i, a in enumerate(mine)}
                if indexed:
                    caches |= {f"layers.{i}.indexer": a for i, a in enumerate(self.indexes[one])}
                made.register_kv_caches(caches)
        self.workers = [ranks[rank] for rank in range(world)]
        self.orders = StepOrders()  # of a step that a test has scheduled and not yet executed
        self.sent: list[str] = []
        self.received: list[str] = []
        self.errors: set[int] = set()
        self.told: list[Any] = []  # KV events, since the start
        self.counted = PegaKVConnector.build_kv_connector_stats()  # by all, since the start
        self._sending: Counter[str] = Counter()
        self._receiving: Counter[str] = Counter()
        self._flying: deque[list[tuple[Request, int]]] = deque()  # of the steps under way
        if waits:
            self._attach()

    def _attach(self) -> None:
        """Wait for the ranks that have memory to offer."""
        end = time.monotonic() + PATIENCE_S
        for mover in self.movers:
            while mover._client is None or not mover._client.attached:
                assert time.monotonic() < end
                self.step()  # the scheduler's client has no thread

    @property
    def worker(self) -> PegaKVConnector:
        """The connector of rank 0."""
        return self.workers[0]

    @property
    def memory(self) -> Any:
        """The KV memory of rank 0."""
        return self.memories[0]

    @property
    def movers(self) -> list[Mover]:
        """The ranks' threads."""
        halves = [worker._worker for worker in self.workers]
        return [half._mover for half in halves if half is not None and half._mover is not None]

    @property
    def mover(self) -> Mover:
        """The thread of rank 0."""
        return self.movers[0]

    def step(self, out: Any = None, finished: Collection[str] = ()) -> StepOrders:
        """One engine step; the ranks' reports are put together as vLLM does it."""
        orders = self.schedule(out)
        self.execute(orders, finished)
        return orders

    def schedule(self, out: Any = None) -> StepOrders:
        """The first half of a step: vLLM counts its tokens as computed, and as in flight."""
        out = out or output()
        orders = self.scheduler.build_connector_meta(out)
        assert isinstance(orders, StepOrders)
        half = self.scheduler._scheduler
        tracked = half._requests.tracked if half else {}
        entries = [(new.req_id, new.num_computed_tokens) for new in out.scheduled_new_reqs]
        cached = out.scheduled_cached_reqs
        entries += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        flying: list[tuple[Request, int]] = []
        for name, computed in entries:
            source: Any = tracked[name].source if name in tracked else None
            if source is not None:
                source.num_computed_tokens = computed + out.num_scheduled_tokens[name]
                source.num_in_flight_tokens += out.num_scheduled_tokens[name]
                flying.append((source, out.num_scheduled_tokens[name]))
        self._flying.append(flying)
        return orders

    def execute(
        self, orders: StepOrders, finished: Collection[str] = (), bad: Collection[int] = ()
    ) -> None:
        """The rest: run it, and take its output in; `bad`: blocks another connector failed to
        load."""
        sent: set[str] = set()
        received: set[str] = set()
        errors: set[int] = set()
        meta = None
        for worker in self.workers:
            worker.handle_preemptions(orders)
            worker.bind_connector_metadata(orders)
            worker.wait_for_layer_load("layers.0")
            worker.save_kv_layer("layers.0", None, None)
            worker.start_load_kv(None)
            worker.wait_for_save()
            reports = worker.get_finished(set(finished))
            errors |= worker.get_block_ids_with_load_errors()
            done = worker.build_connector_worker_meta()
            self.counted.aggregate(worker.get_kv_connector_stats())
            worker.clear_connector_metadata()
            sent |= self._by_all(self._sending, reports[0])
            received |= self._by_all(self._receiving, reports[1])
            meta = meta.aggregate(done) if meta and done else meta or done
        for request, tokens in self._flying.popleft():
            request.num_in_flight_tokens -= tokens
        named = errors | set(bad)
        self.scheduler.update_connector_output(worker_output(received, named, meta, sent))
        self.counted.aggregate(self.scheduler.get_kv_connector_stats())
        self.told += self.scheduler.take_events()
        self.sent += sent
        self.received += received
        self.errors |= errors

    def _by_all(self, counts: Counter[str], names: set[str] | None) -> set[str]:
        """Requests that the last rank has reported now."""
        counts.update(names or ())
        assert all(count <= self.world for count in counts.values())
        full = {name for name, count in counts.items() if count == self.world}
        for name in full:
            del counts[name]
        return full

    def until(self, check: Callable[[], bool]) -> None:
        """Idle steps until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not check():
            assert time.monotonic() < end
            self.step()

    def compute(self, request: Request, ids: list[int], done: int = 0) -> StepOrders:
        """Schedule a whole request in one step; its KV is its block ids, plus 64 per rank unless
        the ranks hold the same."""
        for rank, block in ((r, b) for r in range(self.world) for b in ids):
            self.memories[rank, :, block] = block + self._apart * rank
            self.indexes[rank, :, block] = -block
        return self.step(output(new=[(request.request_id, ids, done, request.num_tokens - done)]))

    def holds(self, ids: Sequence[int], of: Sequence[int]) -> bool:
        """Whether each rank's blocks are what `compute` puts into these others."""
        return all(
            (self.memories[rank, :layers, block] == source + self._apart * rank).all()
            and (self.indexes[rank, :, block] == -source).all()
            for rank, layers in enumerate(self._layers)
            for block, source in zip(ids, of, strict=True)
        )

    def finish(self, request: Request) -> bool:
        """The request ends."""
        held, params = self.scheduler.request_finished(request, [])
        assert params is None
        return bool(held)

    def end(self, request: Request) -> None:
        """The request ends, and its blocks are free."""
        if self.finish(request):
            self.until(lambda: request.request_id in self.sent)

    def load(self, request: Request, ids: list[int]) -> int:
        """Ask, as often as vLLM would, and allocate; the tokens to be loaded."""
        self.scheduler.on_new_request(request)
        answers: list[tuple[int | None, bool]] = []

        def asked() -> bool:
            answers.append(self.scheduler.get_num_new_matched_tokens(request, 0))
            return answers[-1][0] is not None

        self.until(asked)
        tokens, late = answers[-1]
        assert tokens is not None and late == bool(tokens)
        self.scheduler.update_state_after_alloc(request, blocks(ids), tokens)
        return tokens

    def save(self, store: Store, request: Request, ids: list[int]) -> None:
        """The request is computed, saved and gone."""
        before = len(store.pages)
        self.scheduler.on_new_request(request)
        assert self.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
        self.scheduler.update_state_after_alloc(request, blocks(ids), 0)
        self.compute(request, ids)
        self.until(lambda: len(store.pages) == before + len(request.block_hashes))
        self.end(request)

    def idle(self) -> bool:
        """Whether no rank has anything to do, and the scheduler has heard that its saves are over:
        what a mover begins is for a moment in neither of its lists."""
        half = self.scheduler._scheduler
        open_ = half is not None and half._requests._open
        return not open_ and not any(mover._open or mover._jobs for mover in self.movers)

    def close(self) -> None:
        """The engine stops."""
        self.scheduler.shutdown()
        for worker in self.workers:
            worker.shutdown()
