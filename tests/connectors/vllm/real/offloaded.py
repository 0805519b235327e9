"""vLLM's own tiered offloading without a GPU: named as `spec_module_path`.

vLLM's class refuses every platform but CUDA's and XPU's, for its worker copies by their streams.
All else is vLLM's own here: the scheduler's half, the tiering manager, its host memory, the tiers.
Only the worker that copies between the KV cache and that memory is another one, which copies at
once, by vLLM's arithmetic of what lies where.
"""

import ctypes
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.gpu_worker import compute_sub_block_ptrs
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostSpec(TieringOffloadingSpec):  # type: ignore[misc]
    """TieringOffloadingSpec for an engine on the CPU."""

    def get_worker(self, kv_caches: Any) -> Any:
        """The worker's half."""
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return HostWorker(kv_caches, region, self.blocks_per_chunk)


class HostWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies by memmove."""

    def __init__(self, caches: Any, region: Any, blocks_per_chunk: int) -> None:
        self._caches, self._region, self._per_chunk = caches, region, blocks_per_chunk
        self._rows = [
            region.create_next_worker_view(one.page_size_bytes * blocks_per_chunk)
            for one in caches.tensors
        ]
        self._done: list[Any] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the KV cache to a chunk."""
        return self._copy(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(
        self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False
    ) -> bool:
        """From a chunk to the KV cache."""
        return self._copy(job_id, dst_spec, src_spec, to_host=False)

    def _copy(self, job_id: int, device: Any, host: Any, to_host: bool) -> bool:
        taken_blocks = taken_chunks = moved = 0
        for group, (size, first) in enumerate(
            zip(device.group_sizes, device.block_indices, strict=True)
        ):
            if not size:
                continue
            skip = first % self._per_chunk
            chunks = -(-(size + skip) // self._per_chunk)
            blocks = device.block_ids[taken_blocks : taken_blocks + size]
            rows = host.block_ids[taken_chunks : taken_chunks + chunks]
            taken_blocks, taken_chunks = taken_blocks + size, taken_chunks + chunks
            for ref in self._caches.group_data_refs[group]:
                cache = self._caches.tensors[ref.tensor_idx].tensor
                ours, theirs = np.empty(size, np.uint64), np.empty(size, np.uint64)
                compute_sub_block_ptrs(blocks, 1, ours, cache)
                compute_sub_block_ptrs(
                    rows, self._per_chunk, theirs, self._rows[ref.tensor_idx], skip
                )
                for here, there in zip(ours.tolist(), theirs.tolist(), strict=True):
                    source, target = (here, there) if to_host else (there, here)
                    ctypes.memmove(target, source, ref.page_size_bytes)
                moved += size * ref.page_size_bytes
        self._done.append(TransferResult(job_id, True, moved, 1e-6))
        return True

    def get_finished(self) -> list[Any]:
        """All that was submitted."""
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """It is done."""

    def shutdown(self) -> None:
        """The memory is let go."""
        self._rows.clear()
        self._region.cleanup()
