"""Which piece of a layout is moved by which method, and by how many calls."""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.engine import cuda
from pegaflow.device.engine.methods import PIECES_MAX, PITCH_MAX, TABLE, Copies, Name, plan
from pegaflow.device.engine.strides import Rows
from pegaflow.wire.gpu import Backend


def piece(width: int, rows: int = 2) -> tuple[int, Rows]:
    return 0, Rows(
        0, 0, width, page_at=0, width=width, rows=rows, pitch=2 * width, page_pitch=width
    )


WIDTHS = st.lists(st.integers(1, 4 << 20).map(piece), min_size=1, max_size=9)


def test_the_table_begins_with_the_shortest_and_ascends() -> None:
    widths = [one.width for one in TABLE]
    assert widths[0] == 0 and widths == sorted(set(widths))
    assert {one.method for one in TABLE} == set(Name)


def test_the_length_of_a_row_decides() -> None:
    for number, one in enumerate(TABLE):
        ((name, _),) = plan([piece(max(1, one.width))], Backend.AUTO, with_kernel=True)
        assert name is one.method
        if number:
            ((name, _),) = plan([piece(one.width - 1)], Backend.AUTO, with_kernel=True)
            assert name is TABLE[number - 1].method


@pytest.mark.parametrize("kind", [cuda.HOST_TO_DEVICE, cuda.DEVICE_TO_HOST])
def test_rows_too_far_apart_for_one_copy_are_copied_one_by_one(kind: int) -> None:
    calls: list[tuple[int, ...]] = []

    class Recorder:
        """Of a runtime what Copies calls."""

        def memcpyAsync(self, *told: int) -> None:
            calls.append(told[:3])

        def memcpy2DAsync(self, *told: int) -> None:
            calls.append(told[:6])

    def moved(pitch: int) -> list[tuple[int, ...]]:
        calls.clear()
        rows = Rows(0, 0, 1 << 20, page_at=64, width=16, rows=3, pitch=pitch, page_pitch=16)
        copies = Copies(cast(cuda.Runtime, Recorder()), 7, kind, strided=True)
        copies.move([(4096, rows)], [1], [1 << 50])
        return calls

    there, here = 4096 + (1 << 20), (1 << 50) + 64
    inward = kind == cuda.DEVICE_TO_HOST
    near = (here, 16, there, PITCH_MAX) if inward else (there, PITCH_MAX, here, 16)
    assert moved(PITCH_MAX) == [(*near, 16, 3)]
    pairs = [(here + n * 16, there + n * (PITCH_MAX + 1)) for n in range(3)]
    assert moved(PITCH_MAX + 1) == [(*(p if inward else p[::-1]), 16) for p in pairs]


def test_a_layout_of_too_many_pieces_is_copied() -> None:
    for count, name in ((PIECES_MAX, Name.KERNEL), (PIECES_MAX + 1, Name.STRIDED)):
        ((found, _),) = plan([piece(9)] * count, Backend.KERNEL, with_kernel=True)
        assert found is name


@given(WIDTHS, st.sampled_from(list(Backend)), st.booleans())
def test_every_piece_is_moved_once(
    pieces: list[tuple[int, Rows]], backend: Backend, with_kernel: bool
) -> None:
    made = plan(pieces, backend, with_kernel=with_kernel)
    names = [name for name, _ in made]
    assert len(set(names)) == len(names)
    assert sorted(map(str, pieces)) == sorted(str(one) for _, mine in made for one in mine)
    if backend is Backend.DIRECT or not with_kernel:
        assert Name.KERNEL not in names
    elif backend is Backend.KERNEL:
        assert names == [Name.KERNEL]
