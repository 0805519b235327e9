"""Which piece of a layout is moved by which method, and by how many calls."""

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.engine.methods import PIECES_MAX, TABLE, Name, plan
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
