"""Extents: the memory of the pool is asked of the host one extent after the other."""

from collections import Counter
from typing import Protocol

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part
from pegaflow.wire.control import LogLevel
from pegaflow.wire.jobs import Done, GrowExtent
from pegaflow.wire.status import Status

from .pages import Pages


class RoomListener(Protocol):
    """Who waits for room."""

    def serve(self, now: int) -> list[Effect]:
        """There may be some now, or nothing grows any more."""


class Growth(Part):
    """Grows the pool, once it is known what of it is there."""

    def __init__(self, pages: Pages, counts: Counter[str]) -> None:
        self.growing = False  # an extent is asked for
        self.listener: RoomListener | None = None  # set once, by the actor's constructor
        self._pages = pages
        self._counts = counts

    def grow(self, extent: int = 0) -> list[Effect]:
        """Ask for the next extent that is not there.

        Args:
            extent: the first to look at.
        """
        slab = self._pages.slab
        assert slab is not None
        while extent < slab.geometry.extents and not slab.is_absent(extent):
            extent += 1  # adopted: it is there
        self.growing = extent < slab.geometry.extents
        if not self.growing:
            return [Note("pool_ready", (("bytes", slab.geometry.pool_bytes),))]

        def grown(done: Done, now: int) -> list[Effect]:
            assert self.listener is not None
            if done.status is not Status.OK:
                self.growing = False
                extents = slab.geometry.extents
                self._counts["extents_not_grown"] += extents - extent
                facts = (("extents", extent), ("of", extents), ("why", done.note))
                return [Note("pool_short", facts, LogLevel.WARNING), *self.listener.serve(now)]
            slab.grow(extent)
            return _said(done.note) + self.grow(extent + 1) + self.listener.serve(now)

        return [Do(GrowExtent(extent), grown)]


def _said(why: str) -> list[Effect]:
    """That an extent is not on the node that it was meant for, if it is not."""
    facts = (("why", why), ("then", "the kernel chooses the NUMA node"))
    return [Note("pool_not_placed", facts, LogLevel.WARNING)] if why else []
