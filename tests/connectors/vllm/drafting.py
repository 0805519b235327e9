"""A model with windows under speculative decoding: a step of an answer has drafted tokens too, of
which some are right. Those that are wrong are not computed when the step is over."""

from typing import Any

from .fakes import Store
from .hybrid import Asked, Hybrid


class Drafting(Hybrid):
    """One engine.

    Args:
        drafts: tokens that are drafted in each step of an answer.
        least: so many of them are right at least.
    """

    def __init__(
        self,
        store: Store | None,
        windows: list[int | None],
        *,
        drafts: int = 3,
        least: int = 0,
        **how: Any,
    ) -> None:
        super().__init__(store, windows, **how)
        self.drafts, self.least = drafts, least
        self.wrong: dict[str, int] = {}  # drafted tokens of the step that runs

    def _tokens(self, request: Asked, computed: int) -> int:
        tokens = super()._tokens(request, computed)
        answers = request.said and computed + tokens == request.num_tokens
        return tokens + self.drafts if answers else tokens

    def _compute(self, request: Asked, computed: int, tokens: int) -> None:
        ahead = max(0, computed + tokens - request.num_tokens)
        drawn = self.draw.randrange(self.least, ahead + 1) if ahead else 0
        right = min(drawn, len(request.output) - request.said)
        request.said += right
        self.wrong[request.request_id] = ahead - right
        super()._compute(request, computed, tokens - ahead + right)

    def _says(self, request: Asked) -> None:
        request.num_computed_tokens -= self.wrong.pop(request.request_id)
        super()._says(request)
