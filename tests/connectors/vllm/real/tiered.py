"""vLLM's tiering manager with our tier below its host memory, of configurations as small as they
may be, and called as the scheduler's half of its connector does."""

import itertools
from typing import Any

import numpy as np

from tests.procs.service import Service, eventually

LAYERS = ("a", "b")
BLOCK_TOKENS, HEADS, HEAD = 16, 2, 64
BLOCK_BYTES = len(LAYERS) * 2 * BLOCK_TOKENS * HEADS * HEAD * 4
CHUNKS = 16
NAMES = itertools.count(1)


class Offloading:
    """vLLM's manager with our tier below its host memory."""

    def __init__(self, service: Service, dtype: str = "float32", **tier: Any) -> None:
        from vllm.v1.kv_offload.base import ReqContext, ScheduleEndContext, make_offload_key

        self._spec, self.manager = build(service, dtype, tier)
        self._make_key, self._context, self._end = make_offload_key, ReqContext, ScheduleEndContext
        self.memory = np.asarray(self.manager.primary_tier.get_kv_memoryview())
        eventually("the tier is attached", lambda: self.tier._carrier.attached)

    @property
    def tier(self) -> Any:
        (tier,) = self.manager.secondary_tiers
        return tier

    def keys(self, *numbers: int) -> list[bytes]:
        return [self._make_key(f"block {n}".encode().ljust(32), 0) for n in numbers]

    def request(self, name: str) -> Any:
        context = self._context(name)
        with self.manager.lock:
            self.manager.on_new_request(context)
        return context

    def end(self, context: Any) -> None:
        with self.manager.lock:
            self.manager.on_request_finished(context)

    def step(self, *scheduled: str) -> None:
        with self.manager.lock:
            self.manager.on_schedule_end(self._end(scheduled, ()))

    def settle(self) -> None:
        def idle() -> bool:
            self.step()
            return not self.manager.has_pending_work()

        eventually("all jobs have ended", idle)

    def compute(self, context: Any, keys: list[bytes], seed: int = 0) -> list[bytes]:
        """What a worker does: fill the chunks that vLLM gives; their bytes."""
        with self.manager.lock:
            given = self.manager.prepare_store(keys, context)
            assert given is not None and list(given.keys_to_store) == keys
            made = []
            for number, chunk in enumerate(given.store_spec.chunk_ids):
                draw = np.random.default_rng([seed, number])
                self.memory[chunk] = draw.integers(-128, 128, self.memory.shape[1], np.int8)
                made.append(self.memory[chunk].tobytes())
            self.manager.complete_store(keys, context)
        return made

    def found(self, context: Any, keys: list[bytes]) -> list[bool]:
        """vLLM's lookups, step after step, until none is to be asked again; hits are promoted."""
        from vllm.v1.kv_offload.base import LookupResult

        said: list[Any] = []

        def known() -> bool:
            with self.manager.lock:
                said[:] = [self.manager.lookup(key, context) for key in keys]
            self.step()
            return not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(said)

        eventually("every key has its answer", known)
        return [one is LookupResult.HIT for one in said]

    def read(self, context: Any, keys: list[bytes]) -> list[bytes]:
        """What a worker would copy into the KV cache."""
        with self.manager.lock:
            chunks = self.manager.prepare_load(keys, context).chunk_ids
            read = [self.memory[chunk].tobytes() for chunk in chunks]
            self.manager.complete_load(keys, context)
        return read

    def close(self) -> None:
        del self.memory
        self.manager.shutdown()


def kv_cache_config(blocks: int) -> Any:
    """Two layers of full attention, one after the other."""
    import torch
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        KVCacheTensor,
    )

    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=HEADS, head_size=HEAD, dtype=torch.float32
    )
    page = BLOCK_BYTES // len(LAYERS)
    placed = KVCacheTensor(
        size=blocks * BLOCK_BYTES,
        layers=list(LAYERS),
        layer_stride=blocks * page,
        block_stride=page,
    )
    return KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[placed],
        kv_cache_groups=[KVCacheGroupSpec(list(LAYERS), spec)],
        kv_cache_layout="LBHNC",
        hash_block_size=BLOCK_TOKENS,
    )


def build(service: Service, dtype: str, tier: dict[str, Any]) -> tuple[Any, Any]:
    """vLLM's spec and manager, of configurations as small as they may be."""
    from vllm.config import VllmConfig
    from vllm.v1.kv_offload import config as offload
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory

    ranks = dict.fromkeys("world_size tp_size pp_size pcp_size dcp_size".split(), 1)
    ours = {"type": "PegaTier", "module_path": "pegaflow.tier", "endpoint": service.endpoint}
    made = OffloadingSpecFactory.create_spec(
        offload.OffloadingConfig(
            groups=(offload.OffloadingGroupConfig(BLOCK_TOKENS, LAYERS, 0),),
            worker_kv_bytes_per_block=BLOCK_BYTES,
            enable_kv_cache_events="enable_kv_events" in tier,
            extra_config={
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": CHUNKS * BLOCK_BYTES,
                "secondary_tiers": [{**ours, "timeout_ms": 20_000, **tier}],
            },
            engine_id=f"test-{service.pid}-{next(NAMES)}",
            model=offload.OffloadingModelConfig("a model", dtype),
            cache=offload.OffloadingCacheConfig(BLOCK_TOKENS, 1),
            parallel=offload.OffloadingParallelConfig(
                rank=0,
                **ranks,
                data_parallel_index=0,
                data_parallel_size=1,
                data_parallel_rank_local=None,
                is_parallelism_agnostic=True,
            ),
            kv_cache_layout="LBHNC",
        )
    )
    return made, _manager(made, vllm_config=VllmConfig(), kv_cache_config=kv_cache_config(8))


def _manager(made: Any, *, vllm_config: Any, kv_cache_config: Any) -> Any:
    """The tier finds both among its callers, as in the scheduler's half of vLLM's connector."""
    return made.get_manager()
