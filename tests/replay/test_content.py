"""Whatever is not exactly the right byte of the right block is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.replay.content import CHUNK, Bytes, fill, mismatch

SPACE = b"namespace of a test"
KEY = b"k" * 32


def block(layers: int, size: int, key: bytes = KEY, rank: int = 0, space: bytes = SPACE) -> Bytes:
    out = np.zeros((layers, size), dtype=np.uint8)
    fill(out, space, key, rank)
    return out


def wrong(view: Bytes, layer: int = 0) -> int | None:
    return mismatch(view, SPACE, KEY, 0, layer=layer)


def test_what_was_filled_is_right() -> None:
    whole = block(4, 4096)
    assert wrong(whole) is None
    for layer in range(4):
        assert wrong(whole[layer], layer) is None
        alone = np.zeros(4096, dtype=np.uint8)
        fill(alone, SPACE, KEY, 0, layer=layer)
        assert (alone == whole[layer]).all()


def test_rows_may_lie_apart() -> None:
    buffer = np.zeros((3, 5, 1024), dtype=np.uint8)
    fill(buffer[:, 2], SPACE, KEY, 0)
    assert wrong(buffer[:, 2]) is None
    assert not buffer[:, 1].any() and not buffer[:, 3].any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3 * CHUNK), st.integers(1, CHUNK + 100), st.integers(1, 3), st.integers(0, 2**31)
)
def test_any_range_is_the_same_stream(offset: int, size: int, layers: int, layer: int) -> None:
    whole = np.zeros((layers, offset + size), dtype=np.uint8)
    fill(whole, SPACE, KEY, 0, layer=layer)
    part = np.zeros((layers, size), dtype=np.uint8)
    fill(part, SPACE, KEY, 0, layer=layer, offset=offset)
    assert (part == whole[:, offset:]).all()
    assert mismatch(part, SPACE, KEY, 0, layer=layer, offset=offset) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 * CHUNK + 4096 - 1), st.integers(0, 1), st.integers(1, 255))
def test_one_wrong_byte_is_found_where_it_is(at: int, row: int, flip: int) -> None:
    size = 2 * CHUNK + 4096
    held = block(2, size)
    held[row, at] ^= flip
    assert wrong(held) == row * size + at
    held[1, size - 1] ^= 1 if flip != 1 else 2  # never back to what it was
    found = wrong(held)
    assert found is not None and found <= row * size + at


def test_swapped_layers_shifted_pages_and_neighbours_are_wrong_in_every_word() -> None:
    held = block(4, 2 * CHUNK)
    others = {
        "swapped layers": held[[1, 0, 3, 2]],
        "reversed layers": held[::-1],
        "swapped halves": np.roll(held, CHUNK, axis=1),
        "shifted by a word": np.roll(held, 8, axis=1),
        "shifted by a page": np.roll(held, 4096, axis=1),
        "a neighbour's block": block(4, 2 * CHUNK, key=b"l" * 32),
        "another rank": block(4, 2 * CHUNK, rank=1),
        "another namespace": block(4, 2 * CHUNK, space=b"namespace of a tesT"),
        "nothing": np.zeros((4, 2 * CHUNK), dtype=np.uint8),
        "ones": np.full((4, 2 * CHUNK), 255, dtype=np.uint8),
    }
    words = held.view(np.uint64)
    for what, other in others.items():
        assert wrong(np.ascontiguousarray(other)) is not None, what
        same = words == np.ascontiguousarray(other).view(np.uint64)
        assert not same.any(), what


def test_half_a_page_is_found_where_the_other_half_begins() -> None:
    held = block(1, 8192)
    held[0, 4096:] = 0
    found = wrong(held)
    assert found is not None and 4096 <= found < 4104


def test_no_word_repeats_within_a_block() -> None:
    words = block(4, 2 * CHUNK).view(np.uint64)
    assert len(np.unique(words)) == words.size


@pytest.mark.parametrize("size", [1, 7, 8, 9])
def test_sizes_that_are_no_whole_words(size: int) -> None:
    held = block(2, size)
    assert wrong(held) is None
    held[1, size - 1] ^= 128
    assert wrong(held) == 2 * size - 1
