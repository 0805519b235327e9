"""Blocks of which a page is not what was sealed: no hit any more, their pages nobody's."""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Effect, Note, On, Part, Sender, on
from pegaflow.wire.control import LogLevel
from pegaflow.wire.index import Corrupt
from pegaflow.wire.values import SESSION

from .residency import Residency
from .tiers import Tiers


class Integrity(Part):
    """Hears of corrupt blocks from whoever compares checksums."""

    def __init__(self, residency: Residency, tiers: Tiers, counts: Counter[str]) -> None:
        self._residency, self._tiers, self._counts = residency, tiers, counts

    def handlers(self) -> Iterable[On]:
        """Whoever copies compares."""
        return (on(Corrupt, self._on_corrupt, SESSION, *self._tiers.actors),)

    def _on_corrupt(self, sender: Sender, msg: Corrupt, now: int) -> list[Effect]:
        here = self._residency
        effects: list[Effect] = []
        for page in msg.pages:
            block = here.blocks.by_page(page) if page < here.ledger.records else None
            if block is None:
                continue
            here.quarantine(block, now)
            self._tiers.removed(block)
            self._counts["blocks_corrupt"] += 1
            facts = (("page", page), ("depth", block.depth), ("found_by", str(sender.address)))
            effects.append(Note("block_corrupt", facts, LogLevel.ERROR, "block_corrupt"))
        return effects
