"""A connector beside ours that claims to have blocks of every prompt and then fails to load them.

It loads within the step, as vLLM allows: the step computes on top of garbage, and vLLM, told of the
failure, takes the step back.
"""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base

CLAIMED_BLOCKS = 3


@dataclass
class Garbage(base.KVConnectorMetadata):  # type: ignore[misc]
    """Blocks that this step is to fail to load."""

    blocks: tuple[int, ...] = ()


class Connector(base.KVConnectorBase_V1, base.SupportsHMA):  # type: ignore[misc]
    """See the module."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._asked: set[str] = set()
        self._local: dict[str, int] = {}
        self._next: list[int] = []
        self._caches: dict[str, Any] = {}
        self._failed: set[int] = set()

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int, bool]:
        """A few blocks, once: who offers what has failed is asked for ever."""
        self._local[request.request_id] = computed
        if request.request_id in self._asked:
            return 0, False
        size = self._vllm_config.cache_config.block_size
        return min(CLAIMED_BLOCKS, (request.num_tokens - 1 - computed) // size) * size, False

    def update_state_after_alloc(self, request: Any, blocks: Any, tokens: int) -> None:
        """These are to be loaded."""
        self._asked.add(request.request_id)
        size = self._vllm_config.cache_config.block_size
        first = self._local[request.request_id] // size
        self._next += blocks.get_block_ids()[0][first : first + tokens // size]

    def build_connector_meta(self, scheduler_output: Any) -> Garbage:
        """What the worker has to do."""
        found, self._next = Garbage(tuple(self._next)), []
        return found

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        """The next request of this name is another."""
        self._asked.discard(request.request_id)
        return False, None

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        """As above."""
        return self.request_finished_all_groups(request, (block_ids,))

    def register_kv_caches(self, kv_caches: Any) -> None:
        """The engine's KV memory."""
        self._caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write garbage, and remember to say so."""
        assert isinstance(self._connector_metadata, Garbage)
        for block in self._connector_metadata.blocks:
            self._failed.add(block)
            for cache in self._caches.values():
                cache[block] = 3.0

    def get_block_ids_with_load_errors(self) -> set[int]:
        """All of them."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loaded already."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""
