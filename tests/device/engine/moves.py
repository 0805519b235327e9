"""What strided copies of a block move, byte by byte, and what they are meant to."""

from pegaflow.device.engine.strides import pieces
from pegaflow.wire import layout as layouts
from pegaflow.wire.layout import Layout


def touched(cut: Layout, block: int) -> list[tuple[int, int, int]]:
    """(region, byte there, byte in the page) of all bytes that the strided copies move."""
    return [
        (
            p.region,
            p.offset + block * p.block_stride + r * p.pitch + i,
            p.page_at + r * p.page_pitch + i,
        )
        for p in pieces(cut)
        for r in range(p.rows)
        for i in range(p.width)
    ]


def meant(cut: Layout, block: int) -> list[tuple[int, int, int]]:
    return [
        (region, offset + i, at + i)
        for region, offset, length, at in layouts.pieces(cut, block)
        for i in range(length)
    ]
