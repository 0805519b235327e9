"""From the engine's registered KV tensors to the layout that the session copies by.

Nothing is assumed about the order of axes. A tensor is its shape, strides and offset inside a
storage; one axis counts the blocks and every other axis lies inside a block. Sorted by stride and
merged where they touch, the inner axes become runs of contiguous bytes and at most a few outer
steps between them (keys and values in separate planes, heads outside of blocks); `LayerLayout`
holds one such step, and further steps become further entries. The page keeps the order of memory
within a block, and no other: where blocks and layers lie, and heads that are apart from each other,
is not seen in it. What of each layer is where in the page goes into the layout's name, which the
fingerprint covers: the axes from the outermost to the innermost, and what the elements are
(contents.py). So pages are shared by engines whose memory is in different orders, where these mean
the same bytes of a page (LBNHC and BLNHC; or LBHNC, LHBNC, BLHNC and BHLNC), and by no others.

Layers of different groups may lie on top of each other: a block belongs to one group at a time.
Where all keep the same, they are the same tensor. Recurrent layers keep something else: bytes
without a type, fewer than the page that vLLM pads them to; and blocks of more tokens than those of
another group have other shapes; or vLLM packs pages of several sizes into each block. So in such
models all tensors that overlap are one run of bytes, as long as the longest of them (`overlaid`).

In a model of one group no two layers overlap, and each may have a size and a dtype of its own: an
indexer's cache of bytes beside latent vectors.

An attention backend may cut the engine's blocks into smaller ones of its own, so that the tensor
counts k times as many. Where each of those k has its tokens behind those of the one before it, the
page is as if they were one; otherwise (heads within them) the page says that they are k.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import prod

from pegaflow.wire.layout import LayerLayout, Layout, fault
from pegaflow.wire.units import Count

MAX_ENTRIES: Count = 64
"""Entries one layer may take; a layout that needs more would copy crumbs and is refused."""


class Unrepresentable(ValueError):
    """The tensors cannot be described by a Layout; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One registered KV tensor, as plain numbers. Shape, strides and offset count elements."""

    layer: str  # the engine's name of the layer
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # of the first element, from the storage's start
    element: int  # bytes of one element
    dtype: str
    storage: int  # address of the storage
    storage_bytes: int
    axes: str = ""  # a letter for each, with N for tokens; '' where vLLM has no names for them
    content: str = ""  # what its elements are


@dataclass(frozen=True, slots=True)
class Plan:
    """What is registered with the service."""

    layout: Layout
    storages: tuple[int, ...]  # addresses; entry i is region i of the layout


def plan(
    tensors: Sequence[Tensor],
    blocks: int,
    name: str = "",
    *,
    overlaid: bool = False,
    mixed: bool = False,
) -> Plan:
    """The layout of all layers.

    Args:
        tensors: of every layer, as the engine registers them.
        blocks: how many the engine has.
        name: what else names the layout.
        overlaid: tensors may overlap that are not the same.
        mixed: they never do, so their dtypes may differ.

    Raises:
        Unrepresentable: a tensor's blocks are not where a `Layout` can say it.
    """
    if not tensors or blocks < 1:
        raise Unrepresentable(f"{len(tensors)} tensors and {blocks} blocks")
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) > 1 and not (overlaid or mixed):
        raise Unrepresentable(f"layers of different dtypes: {', '.join(dtypes)}")
    unique: dict[tuple[object, ...], Tensor] = {}
    for tensor in sorted(tensors, key=lambda one: _natural(one.layer)):
        place = (tensor.storage, tensor.offset, tensor.shape, tensor.stride)
        unique.setdefault(place, tensor)  # layers that share their KV register it twice
    storages = tuple(dict.fromkeys(tensor.storage for tensor in unique.values()))
    layers: list[LayerLayout] = []
    for tensor in unique.values():
        axis, split = block_axis(tensor.shape, blocks)
        layers += _entries(tensor, axis, split, storages.index(tensor.storage))
    layers = _joined(layers) if overlaid else layers
    meanings: list[str] = []
    for tensor in sorted(tensors, key=lambda one: _natural(one.layer)):
        kind = f"{tensor.dtype} " if len(dtypes) > 1 else ""
        at = _place(layers, storages.index(tensor.storage), tensor)
        axes = _meaning(tensor, *block_axis(tensor.shape, blocks))
        meanings.append(f"{tensor.layer} {kind}{axes} {tensor.content}@{at}")
    first = _meaning(tensors[0], *block_axis(tensors[0].shape, blocks))
    every = blake2b("\n".join(meanings).encode(), digest_size=8).hexdigest()
    label = f"vllm {first}{name} layers={len(unique)}:{every}"
    return Plan(Layout(blocks, tuple(layers), "/".join(dtypes), label), storages)


def sound_plan(
    tensors: Sequence[Tensor], blocks: int, name: str = "", overlaid: bool | None = None
) -> Plan:
    """`plan`, for one group or several, in which no two pieces overlap: where layers of groups that
    are not the same lie on each other, as pages of several sizes do, all that overlaps is one run.

    Args:
        overlaid: None: there is one group; False: layers of several groups may be the same tensor
            and nothing else; True: they may be others, and the layout says so.

    Raises:
        Unrepresentable: as `plan`, or in spite of all pieces would overlap.
    """
    alike = overlaid is None or (not overlaid and len({one.dtype for one in tensors}) == 1)
    made = plan(tensors, blocks, name, overlaid=not alike, mixed=overlaid is None)
    sizes = {tensor.storage: tensor.storage_bytes for tensor in tensors}
    why = fault(made.layout, [sizes[storage] for storage in made.storages])
    if not why:
        return made
    if overlaid is None or not alike:
        raise Unrepresentable(why)
    return sound_plan(tensors, blocks, name, overlaid=True)


def _joined(layers: Sequence[LayerLayout]) -> list[LayerLayout]:
    """One entry for all that overlap."""
    found: list[LayerLayout] = []
    for layer in sorted(layers, key=lambda one: (one.region, one.offset)):
        if layer.segments > 1:
            raise Unrepresentable("a block of a layer is not one run of bytes")
        before = found[-1] if found and found[-1].region == layer.region else None
        if before is not None and before.block_stride != layer.block_stride:
            raise Unrepresentable("blocks of some layers lie farther apart than those of others")
        end = before.offset + before.segment_bytes if before else 0
        if before is None or layer.offset >= end:
            found.append(layer)
            continue
        size = max(end, layer.offset + layer.segment_bytes) - before.offset
        found[-1] = replace(before, segment_bytes=size)
    return found


def block_axis(shape: Sequence[int], blocks: int) -> tuple[int, int]:
    """Which axis of a tensor counts blocks.

    Blocks come first, or second behind the split into keys and values.

    Args:
        blocks: how many the engine has.

    Returns:
        The axis, and how many of its entries make one block of the engine.

    Raises:
        Unrepresentable: none does, or both do.
    """
    exact = [axis for axis in (0, 1) if axis < len(shape) and shape[axis] == blocks]
    if len(exact) == 2:
        raise Unrepresentable(f"shape {list(shape)} has two axes of {blocks} blocks")
    if exact:
        return exact[0], 1
    for axis in (0, 1):
        if axis < len(shape) and shape[axis] > blocks and shape[axis] % blocks == 0:
            return axis, shape[axis] // blocks
    raise Unrepresentable(f"no axis of shape {list(shape)} counts {blocks} blocks")


def _entries(tensor: Tensor, axis: int, split: int, region: int) -> list[LayerLayout]:
    """The layer's entries, in the order of memory."""
    inner = [
        (stride * tensor.element, size)
        for index, (size, stride) in enumerate(zip(tensor.shape, tensor.stride, strict=True))
        if index != axis and size > 1
    ]
    step = tensor.stride[axis] * tensor.element
    if split > 1:
        inner.append((step, split))
    run = tensor.element
    outer: list[tuple[int, int]] = []  # (stride, count), the shortest stride first
    for stride, count in sorted(inner):
        if stride < run:
            raise Unrepresentable(f"layer {tensor.layer} has overlapping elements")
        if not outer and stride == run:
            run *= count
        elif outer and stride == outer[-1][0] * outer[-1][1]:
            outer[-1] = (outer[-1][0], outer[-1][1] * count)
        else:
            outer.append((stride, count))
    segment_stride, segments = outer[0] if outer else (0, 1)
    if prod(count for _, count in outer[1:]) > MAX_ENTRIES:
        raise Unrepresentable(f"layer {tensor.layer} is scattered: shape {list(tensor.shape)}")
    starts = [tensor.offset * tensor.element]
    for stride, count in outer[1:]:
        starts = [start + stride * index for index in range(count) for start in starts]
    return [
        LayerLayout(
            region=region,
            offset=start,
            block_stride=step * split,
            segment_bytes=run,
            segments=segments,
            segment_stride=segment_stride,
        )
        for start in starts
    ]


def _place(layers: Sequence[LayerLayout], region: int, tensor: Tensor) -> int:
    """Where in a page the first byte of a tensor's block is."""
    start, at = tensor.offset * tensor.element, 0
    for layer in layers:
        if layer.region == region and 0 <= start - layer.offset < layer.segment_bytes:
            return at + start - layer.offset
        at += layer.segments * layer.segment_bytes
    raise Unrepresentable(f"layer {tensor.layer} is in no page")


def _meaning(tensor: Tensor, axis: int, split: int) -> str:
    """How many axes there are, which of them counts blocks, and those inside of a block with their
    lengths, from the outermost of the page to the innermost; those of length 1 say nothing."""
    names = list(tensor.axes) or [f"{index}:" for index in range(len(tensor.shape))]
    every = list(zip(names, tensor.shape, tensor.stride, strict=True))
    blocks, _, step = every.pop(axis)
    inner = [(-stride, name, size) for name, size, stride in every if size > 1]
    one_each = any(name == "N" and size == 1 for name, size, _ in every)
    if split > 1:
        inner.append((-step, "N" if one_each else blocks, split))
    said: list[tuple[str, int]] = []
    for _, name, size in sorted(inner):
        if name == "N" and said and said[-1][0] == blocks:
            size *= said.pop()[1]
        said.append((name, size))
    listed = ",".join(f"{name}{size}" for name, size in said)
    return f"{tensor.axes or len(names)}/{blocks}[{listed}]"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer 10 behind layer 2."""
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]
