"""A model with recurrent layers beside others: vLLM's manager of their states (`align`) in small.

A state stands behind all tokens so far and lies in the block that the last of them belongs to. A
step goes on from there: it copies the state if its last token belongs to another block, and changes
it in place otherwise. So a block holds a whole state, one that stands behind its last token, only
if a step has ended there, and steps of a prompt are cut accordingly; the table has none (0) for the
other blocks. vLLM says of each block that will hold a whole state once the step has run where it
is; of decoded tokens it may say so a step later, for it knows their hashes only then.
"""

from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import numpy as np

from .fakes import BLOCK, Store
from .hybrid import SHAPE, Asked, Hybrid

Row = tuple[Asked, int, int]


class Recurrent(Hybrid):
    """One engine.

    Args:
        lags: whether it says one step late what a decoded token completes.
    """

    def __init__(
        self, store: Store | None, windows: list[int | None], *, lags: bool = False, **how: Any
    ) -> None:
        super().__init__(store, windows, **how)
        self.lags = lags
        self.offers: dict[str, list[tuple[int, int, int]]] = {}  # for the next step
        self.late: dict[str, list[tuple[int, int, int]]] = {}  # for the next one of the request

    def _tokens(self, request: Asked, computed: int) -> int:
        end = computed + super()._tokens(request, computed)
        prompt = max(request.num_prompt_tokens, request.num_tokens - 1)
        if computed >= prompt:
            return end - computed
        whole = end // BLOCK * BLOCK
        if end < prompt and (whole > computed or self.chunk >= BLOCK):
            end = whole
        stops = [(request.num_tokens - 1) // BLOCK * BLOCK]
        if computed % BLOCK:
            stops.append((computed // BLOCK + 1) * BLOCK)
        return min([stop for stop in stops if computed < stop < end], default=end) - computed

    def _more(self, group: int, number: int) -> list[int]:
        if group not in self.recurrent or not number:
            return self._take(number)
        return [0] * (number - 1) + self._take(1)

    def _schedule(self) -> tuple[Any, list[Row]]:
        out, rows = super()._schedule()
        offers, self.offers = self.offers, {}
        for request, computed, tokens in rows:
            name, end = request.request_id, computed + tokens
            offers.setdefault(name, []).extend(self.late.pop(name, []))
            later = self.lags and computed >= request.num_prompt_tokens
            told = self.late.setdefault(name, []) if later else offers[name]
            told += self._whole(request, range(computed // BLOCK, end // BLOCK))
        for name in out.preempted_req_ids:
            self._forget(name, offers)
        out.kv_connector_block_state = SimpleNamespace(boundary_state_offloads=offers)
        return out, rows

    def _whole(self, request: Asked, blocks: range) -> list[tuple[int, int, int]]:
        """States of these blocks, as vLLM says it."""
        return [
            (group, request.tables[group][block], (block + 1) * BLOCK)
            for block in blocks
            for group in sorted(self.recurrent)
            if request.tables[group][block]
        ]

    def _forget(self, name: str, offers: dict[str, Any]) -> None:
        offers.pop(name, None)
        self.late.pop(name, None)

    def _compute(self, request: Asked, computed: int, tokens: int) -> None:
        if computed % BLOCK:
            for group in self.recurrent:
                here = self.memory[:, request.tables[group][computed // BLOCK]]
                assert (here == part(group, request.all_token_ids[:computed])).all(), computed
        super()._compute(request, computed, tokens)
        end = computed + tokens
        if end % BLOCK:
            for group in self.recurrent:
                block = request.tables[group][end // BLOCK]
                self.memory[:, block] = part(group, request.all_token_ids[:end])

    def _received(self, results: Any) -> None:
        super()._received(results)
        for name in results.finished_recving - results.failed_recving:
            request = self.requests.get(name)
            if request is not None:  # vLLM says of what was loaded, too, that it is there
                place = request.num_computed_tokens // BLOCK
                self.offers.setdefault(name, []).extend(
                    self._whole(request, range(place - 1, place))
                )

    def _end(self, request: Asked) -> None:
        self._forget(request.request_id, self.offers)
        super()._end(request)


def part(group: int, tokens: list[int]) -> Any:
    """What a block of a state holds whose last token is not there yet."""
    content = b"%d part" % group + repr(tokens).encode()
    held = blake2b(content, digest_size=SHAPE[0] * SHAPE[1]).digest()
    return np.frombuffer(held, np.uint8).reshape(SHAPE)
