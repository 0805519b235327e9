"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.errors import UserError
from pegaflow.service import sizes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("30GiB", 30 * GIB),
        ("30gb", 30 * GIB),
        ("30g", 30 * GIB),
        (" 30 GB ", 30 * GIB),
        ("512MB", 512 << 20),
        ("1.5g", 3 * GIB // 2),
        ("64k", 65536),
        ("2TiB", 2 << 40),
        ("100b", 100),
        ("4096", 4096),
        (4096, 4096),
        ("0.1g", GIB // 10),
    ],
)
def test_reads(text: str | int, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "big", "-1g", "1e9", "30 gigs", "gb", "1,5g", "0", "0g", "9999999999t", "٣g", "1ib2"],
)
def test_refuses_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="not a (usable )?size") as caught:
        sizes.parse(text)
    assert repr(text.strip()) in str(caught.value)


@given(st.integers(1, 1 << 50))
def test_what_is_shown_reads_back_within_a_thousandth(size: int) -> None:
    assert abs(sizes.parse(sizes.show(size)) - size) <= size / 1000


def test_shows() -> None:
    assert [sizes.show(n) for n in (0, 1023, 1024, 32 << 20, 30 * GIB)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "32 MiB",
        "30 GiB",
    ]
