"""The blocks that vLLM names: those of a request are a list, or with several KV cache groups a list
for each of them (a *table*)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .compat import attribute


class Tables:
    """Reads what vLLM says of requests' blocks.

    Args:
        group_tokens: of a block of each group.
        several: whether tables are wanted, of all groups; otherwise it is the list of the only one.
    """

    def __init__(self, group_tokens: Sequence[int], several: bool) -> None:
        self._group_tokens = group_tokens
        self._several = several
        # Of requests that vLLM has asked about since the last step, tokens that it has itself.
        self.local: dict[str, int] = {}

    def of(self, blocks: Any) -> list[Any]:
        """Those of a KVCacheBlocks, or of a tuple of lists as step outputs have it; None: none."""
        if blocks is None:
            return []
        groups = blocks.get_block_ids() if hasattr(blocks, "get_block_ids") else blocks
        if self._several:
            return [list(group) for group in groups]
        return list(groups[0]) if groups else []

    def ids(self, tables: Sequence[Any], tokens: int = 0) -> list[int]:
        """All blocks behind so many tokens, and those that these end in; 0 is none, but stands for
        one that was taken away."""
        if not self._several:
            return list(tables[tokens // self._group_tokens[0] :])
        pairs = zip(tables, self._group_tokens, strict=False)  # there may be no tables
        return [block for table, size in pairs for block in table[tokens // size :] if block]

    def rows(self, output: Any) -> Iterator[tuple[str, list[Any], bool, int]]:
        """Of each scheduled request: its new blocks, whether they are all it has, and its tokens
        that are computed."""
        for new in output.scheduled_new_reqs:
            yield new.req_id, self.of(new.block_ids), True, new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
        for name, blocks, computed in rows:
            yield name, self.of(blocks), name in cached.resumed_req_ids, computed

    def states(self, output: Any) -> Mapping[str, Sequence[tuple[int, int, int]]]:
        """States of recurrent layers that are whole once a step has run: by request, vLLM's number
        of the group, the block, and the tokens that it stands behind."""
        found = attribute(output, "kv_connector_block_state.boundary_state_offloads", {})
        return found if isinstance(found, Mapping) else {}

    def given(self, output: Any, allocated: Mapping[str, list[int]]) -> list[int]:
        """Blocks that a step, or a load that it starts, may write: all that their owner has not
        had before, but for those that it found in vLLM's own cache. What is computed without being
        there is loaded in the step itself, by another connector. And vLLM zeroes blocks that it has
        given to a request of low priority and taken back from it in the same step.

        Args:
            allocated: blocks given to requests since the last step.
        """
        found = list(attribute(output, "new_block_ids_to_zero", []))
        for name, tables, replaced, computed in self.rows(output):
            there = min(computed, self.local.get(name, computed)) if replaced else 0
            found += self.ids(tables, there)
        for name, blocks in allocated.items():
            if name not in output.num_scheduled_tokens:
                found += blocks
        return found
