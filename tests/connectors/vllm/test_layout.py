"""Tensors of every known shape become layouts whose pages hold exactly a block's bytes."""

from dataclasses import replace

import numpy as np
import pytest

from pegaflow.connectors.vllm.layout import (
    Tensor,
    Unrepresentable,
    block_axis,
    plan,
    sound_plan,
)
from pegaflow.wire.layout import fault, fingerprint, page_bytes, pieces

BLOCKS = 6


def tensor(name: str, array: np.ndarray, base: np.ndarray) -> Tensor:
    """A numpy view as the numbers that a torch tensor has."""
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return Tensor(
        name,
        array.shape,
        tuple(s // array.itemsize for s in array.strides),
        start // array.itemsize,
        element=array.itemsize,
        dtype=str(array.dtype),
        storage=base.__array_interface__["data"][0],
        storage_bytes=base.nbytes,
    )


def shapes() -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape in memory, order of axes that vLLM shows); blocks are named by their size."""
    return [
        ("blocks, heads, tokens, 2d", (BLOCKS, 2, 4, 16), (0, 1, 2, 3)),
        ("tokens before heads in memory", (BLOCKS, 4, 2, 16), (0, 2, 1, 3)),
        ("keys and values apart", (2, BLOCKS, 4, 2, 8), (0, 1, 2, 3, 4)),
        ("blocks shown first, apart in memory", (2, BLOCKS, 4, 2, 8), (1, 0, 2, 3, 4)),
        ("heads outside of blocks", (2, BLOCKS, 4, 8), (1, 0, 2, 3)),
        ("heads outside, then keys and values", (3, 2, BLOCKS, 4, 8), (1, 2, 0, 3, 4)),
        ("kernel blocks of half the size", (2 * BLOCKS, 2, 2, 16), (0, 1, 2, 3)),
        ("kernel blocks, keys and values apart", (2, 2 * BLOCKS, 2, 8), (0, 1, 2, 3)),
        ("one latent vector per token", (BLOCKS, 1, 4, 24), (0, 1, 2, 3)),
    ]


@pytest.mark.parametrize(("name", "memory", "order"), shapes())
def test_a_page_holds_the_bytes_of_its_block(
    name: str, memory: tuple[int, ...], order: tuple[int, ...]
) -> None:
    count = int(np.prod(memory))
    base = np.arange(100 + 2 * count, dtype=np.uint16)
    views = [
        base[start : start + count].reshape(memory).transpose(order) for start in (100 + count, 100)
    ]
    made = plan([tensor(f"layer.{i}", v, base) for i, v in enumerate(views)], BLOCKS)
    assert made.storages == (base.__array_interface__["data"][0],)
    assert fault(made.layout, [base.nbytes]) == ""
    assert page_bytes(made.layout) == 2 * 2 * count // BLOCKS
    raw = base.view(np.uint8)
    for block in range(BLOCKS):
        axis, split = block_axis(views[0].shape, BLOCKS)
        place = [slice(None)] * len(order)
        place[axis] = slice(block * split, (block + 1) * split)
        expected = np.concatenate([np.sort(v[tuple(place)].ravel()) for v in views])
        page = np.concatenate([raw[o : o + n] for _, o, n, _ in pieces(made.layout, block)])
        assert page.view(np.uint16).tolist() == expected.tolist(), "the order of memory"


def test_layers_in_one_storage_or_in_many_cut_the_same_page() -> None:
    whole = np.zeros((3, BLOCKS, 2, 4, 16), np.uint16)
    packed = np.zeros((BLOCKS, 3, 2, 4, 16), np.uint16)
    apart = [np.zeros((BLOCKS, 2, 4, 16), np.uint16) for _ in range(3)]
    one = plan([tensor(f"layers.{i}", whole[i], whole) for i in range(3)], BLOCKS)
    inside = plan([tensor(f"layers.{i}", packed[:, i], packed) for i in range(3)], BLOCKS)
    many = plan([tensor(f"layers.{i}", a, a) for i, a in enumerate(apart)], BLOCKS)
    assert [len(p.storages) for p in (one, inside, many)] == [1, 1, 3]
    assert len({fingerprint(p.layout) for p in (one, inside, many)}) == 1


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    whole = np.zeros((12, BLOCKS, 2, 4), np.uint16)
    names = [f"layers.{i}.attn" for i in range(12)]
    given = [tensor(n, whole[i], whole) for i, n in enumerate(names)]
    shuffled = sorted(given, key=lambda t: t.layer)
    assert [t.layer for t in shuffled][2] == "layers.10.attn"
    assert plan(shuffled, BLOCKS).layout == plan(given, BLOCKS).layout


def test_an_indexer_s_cache_of_bytes_lies_beside_latent_vectors() -> None:
    latent = np.arange(BLOCKS * 4 * 24, dtype=np.uint16).reshape(BLOCKS, 1, 4, 24)
    index = np.arange(BLOCKS * 4 * 13, dtype=np.uint8).reshape(BLOCKS, 1, 4, 13)
    both = [tensor("layers.0.attn", latent, latent), tensor("layers.0.indexer", index, index)]
    with pytest.raises(Unrepresentable):
        plan(both, BLOCKS)
    made = plan(both, BLOCKS, mixed=True)
    assert made.layout.dtype == "uint16/uint8" and len(made.storages) == 2
    assert fault(made.layout, [latent.nbytes, index.nbytes]) == ""
    raw = [latent.reshape(-1).view(np.uint8), index.reshape(-1)]
    page = np.concatenate([raw[r][o : o + n] for r, o, n, _ in pieces(made.layout, 3)])
    assert page.tobytes() == latent[3].tobytes() + index[3].tobytes()
    swapped = [replace(both[0], dtype="uint8"), replace(both[1], dtype="uint16")]
    assert fingerprint(plan(swapped, BLOCKS, mixed=True).layout) != fingerprint(made.layout)


def test_layers_that_share_their_memory_are_copied_once() -> None:
    array = np.zeros((BLOCKS, 2, 4), np.uint16)
    assert len(plan([tensor(n, array, array) for n in ("a", "b")], BLOCKS).layout.layers) == 1


def overlaid(state: int, page: int) -> list[Tensor]:
    """Two layers of attention, and on top of each a state of so many bytes in a page."""
    base = np.zeros((2, BLOCKS, page), np.int8)
    typed = base.view(np.float32).reshape(2, BLOCKS, 2, page // 8)
    attention = [tensor(f"layers.{2 * i}.attn", typed[i], base) for i in range(2)]
    return attention + [
        tensor(f"layers.{2 * i + 1}.mixer", base[i, :, :state].reshape(BLOCKS, 1, 1, state), base)
        for i in range(2)
    ]


def test_a_page_of_states_is_as_long_as_one_of_attention() -> None:
    made = plan(overlaid(40, 64), BLOCKS, overlaid=True)
    assert [(one.offset, one.segment_bytes) for one in made.layout.layers] == [
        (0, 64),
        (BLOCKS * 64, 64),
    ]
    assert fault(made.layout, [2 * BLOCKS * 64]) == ""
    other = plan(overlaid(48, 64), BLOCKS, overlaid=True)
    assert fingerprint(made.layout) != fingerprint(other.layout)
    with pytest.raises(Unrepresentable, match="dtypes"):
        plan(overlaid(40, 64), BLOCKS)


def test_states_longer_than_what_they_lie_on_are_saved_whole() -> None:
    (attention, _, state, _), base = overlaid(64, 64), np.zeros((BLOCKS, 64), np.int8)
    short = tensor("layers.0.attn", base[:, :40].reshape(BLOCKS, 1, 1, 40), base)
    whole = tensor("layers.1.mixer", base.reshape(BLOCKS, 1, 1, 64), base)
    for order in ([short, whole], [whole, short]):
        (one,) = plan(order, BLOCKS, overlaid=True).layout.layers
        assert (one.offset, one.segment_bytes, one.block_stride) == (0, 64, 64)
    assert attention.dtype != state.dtype


def test_blocks_of_other_lengths_on_each_other_are_one_page() -> None:
    """Two heads of four tokens, and one head of eight; two layers each."""
    base = np.zeros((2, BLOCKS, 64), np.uint16)
    short, long = (base.reshape(2, BLOCKS, *shape) for shape in ((2, 4, 8), (1, 8, 8)))
    given = [tensor(f"layers.{2 * i}", short[i], base) for i in range(2)]
    given += [tensor(f"layers.{2 * i + 1}", long[i], base) for i in range(2)]
    made = plan(given, BLOCKS, overlaid=True)
    assert [one.segment_bytes for one in made.layout.layers] == [128, 128]
    assert page_bytes(made.layout) == base.nbytes // BLOCKS
    assert page_bytes(plan(given, BLOCKS).layout) == 2 * page_bytes(made.layout)


def test_pages_of_several_sizes_in_each_block_are_one_run() -> None:
    """One group packs 24 and 16 bytes into each block, another 16 and 32, and pads them."""
    base = np.zeros((BLOCKS, 64), np.uint8)
    cuts = {"a": (0, 24), "b": (24, 40), "c": (0, 16), "d": (16, 48)}
    given = [
        tensor(name, base[:, low:high].reshape(BLOCKS, 1, 1, -1), base)
        for name, (low, high) in cuts.items()
    ]
    made = plan(given, BLOCKS, overlaid=True)
    assert page_bytes(made.layout) == 48 and fault(made.layout, [base.nbytes]) == ""
    assert list(pieces(made.layout, 2)) == [(0, 2 * 64, 48, 0)]


def test_pages_of_groups_are_one_run_only_where_they_are_not_the_same() -> None:
    base = np.zeros((BLOCKS, 64), np.uint8)

    def page(name: str, low: int, high: int) -> Tensor:
        return tensor(name, base[:, low:high].reshape(BLOCKS, 1, 1, -1), base)

    alike = [page("a", 0, 32), page("b", 0, 32), page("c", 32, 64), page("d", 32, 64)]
    assert sound_plan(alike, BLOCKS, overlaid=False) == plan(alike, BLOCKS)
    assert sound_plan(alike, BLOCKS, overlaid=True) == plan(alike, BLOCKS, overlaid=True)
    apart = [page("a", 0, 24), page("b", 24, 40), page("c", 0, 16), page("d", 16, 48)]
    made = sound_plan(apart, BLOCKS, overlaid=False)
    assert page_bytes(made.layout) == 48 and fault(made.layout, [base.nbytes]) == ""
    typed = [page("a", 0, 32), replace(page("b", 0, 32), dtype="float8")]
    assert page_bytes(sound_plan(typed, BLOCKS, overlaid=False).layout) == 32
    with pytest.raises(Unrepresentable, match="overlap"):
        sound_plan(apart, BLOCKS)


def test_where_each_layer_is_in_a_page_is_part_of_the_fingerprint() -> None:
    base = np.zeros((BLOCKS, 64), np.uint8)
    halves = [base[:, :32].reshape(BLOCKS, 1, 1, -1), base[:, 32:].reshape(BLOCKS, 1, 1, -1)]

    def named(*layers: str) -> list[bytes]:
        made = [tensor(name, halves[i // 2], base) for i, name in enumerate(layers)]
        planned = [sound_plan(made, BLOCKS, overlaid=overlaid) for overlaid in (False, True)]
        return [fingerprint(one.layout) for one in planned]

    for one, other in zip(named("a", "b", "c", "d"), named("a", "d", "c", "b"), strict=True):
        assert one != other


def test_pages_that_cannot_lie_on_each_other_are_refused() -> None:
    base = np.zeros((BLOCKS, 128), np.int8)
    near = tensor("layers.0", base.reshape(2 * BLOCKS, 64)[:BLOCKS], base)
    far = tensor("layers.1", base, base)
    with pytest.raises(Unrepresentable, match="farther apart"):
        plan([near, far], BLOCKS, overlaid=True)
    apart = np.zeros((2, BLOCKS, 4, 8), np.int8)
    with pytest.raises(Unrepresentable, match="one run"):
        plan([tensor("layers.0", apart.transpose(1, 0, 2, 3), apart)], BLOCKS, overlaid=True)


def test_the_meaning_of_axes_is_part_of_the_fingerprint() -> None:
    memory = np.zeros((BLOCKS, 4, 4, 16), np.uint16)
    plain = plan([tensor("l", memory, memory)], BLOCKS, "LBHNC")
    swapped = plan([tensor("l", memory.transpose(0, 2, 1, 3), memory)], BLOCKS, "LBHNC")
    named = plan([tensor("l", memory, memory)], BLOCKS, "LBNHC")
    assert len({fingerprint(p.layout) for p in (plain, swapped, named)}) == 3


@pytest.mark.parametrize(
    ("shape", "blocks"), [((2, 2, 4, 8), 2), ((5, 7, 4), 6), ((), 6), ((3, 4, 6), 6)]
)
def test_a_shape_without_one_block_axis_is_refused(shape: tuple[int, ...], blocks: int) -> None:
    array = np.zeros(shape, np.uint16)
    with pytest.raises(Unrepresentable):
        plan([tensor("l", array, array)], blocks)


def test_what_cannot_be_copied_in_runs_is_refused() -> None:
    array = np.zeros((BLOCKS, 4, 8), np.uint16)
    good = tensor("l", array, array)
    bad = Tensor(
        "l",
        (BLOCKS, 2, 8),
        (16, 4, 1),
        0,
        element=2,
        dtype="uint16",
        storage=good.storage,
        storage_bytes=good.storage_bytes,
    )
    crumbs = np.zeros((3, 70, BLOCKS, 2, 2), np.uint16)[:, :, :, :, 0].transpose(2, 0, 1, 3)
    for given in ([bad], [], [good, tensor("m", np.zeros((BLOCKS, 2)), array)]):
        with pytest.raises(Unrepresentable):
            plan(given, BLOCKS)
    with pytest.raises(Unrepresentable, match="scattered"):
        plan([tensor("l", crumbs[:, :, ::2], array)], BLOCKS)
