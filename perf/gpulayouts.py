"""The layouts that engines have on a GPU, small, and whether each byte of them comes back.

Sizes are those of real models, or odd where a copy could take them for even: MLA's 576 elements, an
indexer's 132 bytes a token, a page of a hybrid model that is longer than what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pegaflow.core.errors import UserError
from pegaflow.wire.layout import LayerLayout, Layout, page_bytes, pieces
from perf.gpucard import Card, Engine, Memory, content, new_keys
from perf.machine import Bytes

BLOCKS = 24
MOVED = 8  # blocks of them that are saved, and so many others that are loaded
LAYERS = 6
KEYS = 4096  # bytes of a layer's keys in a block
LATENT = 16 * 576 * 2
INDEXER = 16 * 132
STATE, PADDED = 12_345, 20_480  # of a recurrent layer: what is in a page, and the page
HEADS = 4


@dataclass(frozen=True)
class Case:
    """A layout and the size of each of its regions."""

    name: str
    layers: tuple[LayerLayout, ...]
    region_bytes: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        return Layout(BLOCKS, self.layers, "uint8", self.name)


def cases() -> list[Case]:
    """All of them."""
    plane = BLOCKS * KEYS
    page = 2 * KEYS
    return [
        Case(
            "keys first",
            tuple(
                LayerLayout(n, 0, KEYS, KEYS, segments=2, segment_stride=plane)
                for n in range(LAYERS)
            ),
            (2 * plane,) * LAYERS,
        ),
        Case(
            "keys first, one storage",
            tuple(
                LayerLayout(0, n * 2 * plane, KEYS, KEYS, segments=2, segment_stride=plane)
                for n in range(LAYERS)
            ),
            (2 * plane * LAYERS,),
        ),
        Case(
            "blocks first",
            tuple(LayerLayout(n, 0, page, page) for n in range(LAYERS)),
            (BLOCKS * page,) * LAYERS,
        ),
        Case(
            "heads apart",
            tuple(
                LayerLayout(0, n * 2 * plane, KEYS // 4, 512, segments=8, segment_stride=plane // 4)
                for n in range(LAYERS)
            ),
            (2 * plane * LAYERS,),
        ),
        Case(
            "cross-layer",
            tuple(LayerLayout(0, n * page, LAYERS * page, page) for n in range(LAYERS)),
            (BLOCKS * LAYERS * page,),
        ),
        Case(
            "MLA",
            tuple(LayerLayout(n, 0, LATENT, LATENT) for n in range(LAYERS)),
            (BLOCKS * LATENT,) * LAYERS,
        ),
        Case(
            "MLA with an indexer",
            (
                *(LayerLayout(n, 0, LATENT, LATENT) for n in range(LAYERS)),
                *(LayerLayout(LAYERS + n, 0, INDEXER, INDEXER) for n in range(LAYERS)),
            ),
            (BLOCKS * LATENT,) * LAYERS + (BLOCKS * INDEXER,) * LAYERS,
        ),
        Case(
            "hybrid, padded",
            (
                *(LayerLayout(n, 0, PADDED, STATE, segments=1) for n in range(2)),
                LayerLayout(2, 0, PADDED, KEYS, segments=2, segment_stride=PADDED // 2),
            ),
            (BLOCKS * PADDED,) * 3,
        ),
    ]


def verify(card: Card, engine: Engine, case: Case, method: str, turn: int) -> int:
    """Save blocks, load them into others, and compare every byte of all regions, those between the
    blocks included.

    Args:
        engine: that has this memory from now on.
        turn: of its keys.

    Returns:
        Bytes that were loaded.

    Raises:
        UserError: some of them are wrong.
    """
    layout = case.layout
    regions = [Memory(card, size) for size in case.region_bytes]
    wanted = [content(size, turn * 100 + n) for n, size in enumerate(case.region_bytes)]
    for region, bytes_ in zip(regions, wanted, strict=True):
        region.write(bytes_)
    order = np.random.default_rng(7).permutation(BLOCKS).tolist()
    saved, loaded = order[:MOVED], order[MOVED : 2 * MOVED]
    engine.renew(layout, regions, method=method)
    keys = new_keys(MOVED, turn)
    engine.save(keys, saved)
    engine.load(keys, loaded)
    for source, target in zip(saved, loaded, strict=True):
        _copy(layout, wanted, source, target)
    for number, (region, bytes_) in enumerate(zip(regions, wanted, strict=True)):
        wrong = np.flatnonzero(region.read() != bytes_)
        if len(wrong):
            where = f"{len(wrong)} bytes of region {number}, the first at {wrong[0]}"
            raise UserError(f"{case.name}, by {method}: wrong are {where}")
    return page_bytes(layout) * MOVED


def _copy(layout: Layout, regions: list[Bytes], source: int, target: int) -> None:
    """What a save of one block and a load into another one make of the memory."""
    for (region, at, size), (other, to, _) in zip(
        _runs(layout, source), _runs(layout, target), strict=True
    ):
        regions[other][to : to + size] = regions[region][at : at + size]


def _runs(layout: Layout, block: int) -> Iterator[tuple[int, int, int]]:
    for region, at, size, _ in pieces(layout, block):
        yield region, at, size
