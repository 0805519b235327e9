"""The KV memory that vLLM makes on a GPU, moved: which bytes, by how many calls, into which page.

Where nothing else is said, the paths are those of vLLM 0.33, and 0.30 and 0.32 have the same: one
allocation for all layers, in one of the six orders of KVCacheLayout (v1/kv_cache_layout.py), viewed
by create_kv_cache_views (v1/kv_cache_interface.py) as [B, H, N, C] for each layer.  0.28 has an
allocation for each layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.connectors.vllm.layout import Tensor, sound_plan
from pegaflow.device.engine import methods
from pegaflow.device.engine.methods import Choice, Name
from pegaflow.device.engine.strides import pieces
from pegaflow.wire import layout as layouts
from pegaflow.wire.gpu import Backend
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status
from tests.connectors.vllm.views import ORDERS, Shape, views
from tests.fakes import cuda
from tests.fakes.engines import Foreign

from .moves import meant, touched
from .session import Session


def registered(tensors: Sequence[Tensor], blocks: int, overlaid: bool | None = None) -> Layout:
    """The layout that the connector registers."""
    return sound_plan(tensors, blocks, overlaid=overlaid).layout


def kv_first(layers: int, blocks: int, run: int) -> Layout:
    """[2, B, N, H, C] in an allocation for each layer: keys before values, as backends of earlier
    versions have it (v1/attention/backends/flash_attn.py, get_kv_cache_shape)."""
    made = []
    for layer in range(layers):
        shape, stride = (2, blocks, run), (blocks * run, run, 1)
        made.append(
            Tensor(
                f"layers.{layer}",
                shape,
                stride,
                0,
                element=1,
                dtype="int8",
                storage=layer,
                storage_bytes=1 << 30,
            )
        )
    return registered(made, blocks)


def each(order: str, shape: Shape) -> Layout:
    """0.28: an allocation for each layer."""
    made = [views(order, replace(shape, layers=1), storage=n)[0] for n in range(shape.layers)]
    named = [replace(one, layer=f"layers.{n}") for n, one in enumerate(made)]
    return registered(named, shape.blocks)


def indexed(latent: Shape, index: Shape) -> Layout:
    """Latent vectors and an indexer's keys in one block: pages of two sizes (v1/attention/backends/
    mla/indexer.py, supported_kv_cache_layouts: the layers inside of the block)."""
    block = latent.layers * latent.page + index.layers * index.page
    one = views("BLHNC", latent, block_stride=block)
    other = views("BLHNC", index, offset=latent.layers * latent.page, block_stride=block)
    other = [replace(two, layer=f"{two.layer}.indexer") for two in other]
    return registered([*one, *other], latent.blocks)


def hybrid(attention: Shape, state: int) -> Layout:
    """Recurrent layers over attention: states in a page of attention's size (MambaSpec in
    v1/kv_cache_interface.py, page_size_padded), each on top of a layer of attention."""
    keys = views("LBHNC", attention)
    kept = Shape(
        attention.layers, attention.blocks, 1, 1, content=state, padding=attention.page - state
    )
    states = [replace(one, layer=f"{one.layer}.mixer") for one in views("LBHNC", kept)]
    return registered([*keys, *states], attention.blocks, overlaid=True)


LLAMA = Shape(
    32, 4, 8, 16, content=512
)  # keys and values of a head beside each other: C is 2 * 128 of 2
MLA = Shape(61, 4, 1, 64, content=1152)
SPARSE = Shape(61, 4, 1, 64, content=656)  # bytes: 512 of 8 bits, their scales, 64 of 16 bits
INDEX = Shape(61, 4, 1, 64, content=132)

CASES: dict[str, tuple[Layout, int]] = {
    "LBHNC": (registered(views("LBHNC", LLAMA), 4), 1),
    "LBNHC": (registered(views("LBNHC", LLAMA), 4), 1),
    "heads outside of blocks": (registered(views("LHBNC", LLAMA), 4), 1),
    "cross-layer": (registered(views("BLHNC", LLAMA), 4), 1),
    "cross-layer, tokens first": (registered(views("BLNHC", LLAMA), 4), 1),
    "heads outside of layers": (registered(views("BHLNC", LLAMA), 4), 8),
    "kernel blocks": (registered(views("LBNHC", replace(LLAMA, kernel_blocks=2)), 4), 1),
    "padded pages": (registered(views("LBNHC", replace(LLAMA, padding=4096)), 4), 1),
    "latent": (registered(views("LBHNC", MLA), 4), 1),
    "latent, with an indexer in the block": (indexed(SPARSE, INDEX), 2),
    "states over attention": (hybrid(LLAMA, 60_000), 1),
    "0.28": (each("LBNHC", LLAMA), 32),
    "0.28, latent": (each("LBHNC", MLA), 61),
    "keys before values": (kv_first(32, 4, 16 * 8 * 256), 32),
}
"""Layouts, and by how many calls a block of each is moved."""


@pytest.mark.parametrize("name", CASES)
def test_a_block_takes_so_many_calls_and_no_more(name: str) -> None:
    layout, calls = CASES[name]
    assert len(pieces(layout)) == calls


@st.composite
def some_shape(draw: st.DrawFn) -> tuple[str, Shape]:
    order = draw(st.sampled_from(sorted(ORDERS)))
    layers, blocks, heads = (draw(st.integers(low, 4)) for low in (1, 2, 1))
    shape = Shape(
        layers, blocks, heads, draw(st.sampled_from((2, 6))), content=draw(st.integers(1, 5))
    )
    if order in {"LBHNC", "LBNHC", "BLHNC", "BLNHC"}:
        shape = replace(shape, padding=draw(st.integers(0, 3)))
    if order in {"LBHNC", "LBNHC"} and not shape.padding:
        shape = replace(shape, kernel_blocks=draw(st.sampled_from((1, 2))))
    return order, shape


@given(some_shape(), st.booleans())
def test_every_byte_of_a_block_is_moved_once(drawn: tuple[str, Shape], apart: bool) -> None:
    order, shape = drawn
    if shape.heads == shape.blocks:  # which axis counts blocks is told by its length alone
        shape = replace(shape, blocks=5)
    layout = each(order, shape) if apart else registered(views(order, shape), shape.blocks)
    for block in range(shape.blocks):
        moved = sorted(touched(layout, block))
        assert moved == sorted(meant(layout, block))
    content = prod((shape.layers, shape.heads, shape.tokens, shape.content))
    assert layouts.page_bytes(layout) == content


@given(st.integers(1, 4), st.integers(2, 5), st.integers(6, 9), st.integers(1, 6))
def test_engines_whose_heads_come_before_tokens_cut_one_page(
    layers: int, blocks: int, heads: int, content: int
) -> None:
    """Wherever blocks and layers lie: the page is in the order of layers, heads and tokens."""
    shape = Shape(layers, blocks, heads, 2, content=content)
    values = np.arange(shape.bytes).reshape(layers, blocks, heads, 2, content)
    pages = []
    for order in ("LBHNC", "LHBNC", "BLHNC", "BHLNC"):
        memory = values.transpose(ORDERS[order]).ravel()
        found = touched(registered(views(order, shape), blocks), blocks - 1)
        pages.append([memory[at] for _, at, _ in sorted(found, key=lambda one: one[2])])
    assert all(page == values[:, blocks - 1].ravel().tolist() for page in pages)


SMALL = Shape(3, 4, 5, 4, content=48)
MOVED = {
    **{order: registered(views(order, SMALL), 4) for order in ORDERS},
    "0.28": kv_first(1, 4, 80),
    "kernel blocks": registered(views("LBNHC", replace(SMALL, kernel_blocks=2)), 4),
    "padded": registered(views("BLHNC", replace(SMALL, padding=7)), 4),
    "indexer": indexed(Shape(3, 4, 1, 4, content=41), Shape(3, 4, 1, 4, content=33)),
    "hybrid": hybrid(SMALL, 300),
}


@pytest.mark.parametrize("method", list(Name))
@pytest.mark.parametrize("name", MOVED)
def test_all_methods_move_the_same_bytes(
    session: Session, monkeypatch: pytest.MonkeyPatch, name: str, method: Name
) -> None:
    """Out of the block into its page, and into another block, of which nothing else changes."""
    monkeypatch.setattr(methods, "TABLE", (Choice(0, method, ""),))
    layout, size = MOVED[name], layouts.page_size(MOVED[name])
    ends = [
        one.offset + 3 * one.block_stride + (one.segments - 1) * one.segment_stride
        for one in layout.layers
    ]
    length = max(map(sum, zip(ends, [one.segment_bytes for one in layout.layers], strict=True)))
    engine = Foreign(length)
    engine.bytes[:] = np.random.default_rng(1).integers(0, 256, length, np.uint8)
    before = engine.bytes.copy()
    opened = session.open(engine, layout, Backend.AUTO)
    session.pin()
    blocks, pages = np.array([2, 0], np.uint64), np.array([0, 2 * size], np.uint64)
    opened.read(blocks, pages, 1 << 62, session.ends.put)
    assert session.ended() == Done(Status.OK)
    for block, page in zip((2, 0), (0, 2 * size), strict=True):
        for _, at, width, place in layouts.pieces(layout, block):
            here = session.pool[page + place :][:width]
            assert (here == before[at : at + width]).all()
    opened.write(blocks[::-1] + np.uint64(1), pages, 1 << 62, session.ends.put, check=lambda: None)
    assert session.ended() == Done(Status.OK)
    for source, block in ((2, 1), (0, 3)):
        for (_, at, width, _), (_, to, _, _) in zip(
            layouts.pieces(layout, source), layouts.pieces(layout, block), strict=True
        ):
            before[to : to + width] = before[at : at + width]
    assert (engine.bytes == before).all()
    kinds = {"memcpyAsync", "launch"} if method is Name.KERNEL else {"memcpyAsync", "memcpy2DAsync"}
    assert set(cuda.machine().calls) <= kinds
    calls = {
        Name.LOOP: 2 * 2 * sum(p.rows for p in pieces(layout)),
        Name.STRIDED: 2 * 2 * len(pieces(layout)),
        Name.KERNEL: 2 * 2,
    }
    assert len(cuda.machine().calls) == calls[method]
