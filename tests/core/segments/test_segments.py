"""The format of a segment: what is written is read, what is torn or damaged is not."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.core.segments.codec import (
    GROUP_ROWS,
    HEAD_BYTES,
    ROW_BYTES,
    Row,
    block_sum,
    footer,
    footer_bytes,
    group,
    group_bytes,
    head,
    joined,
    pack_row,
    page_sum,
    read_footer,
    read_group,
    read_head,
    recover,
    row_at,
    unpack_rows,
)
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.layout import PAGE_ALIGN

UUID = bytes(range(16))
NS = Namespace(b"n" * 16)
PAGE_SUM_EMPTY = 0x2D06800538D394C2
PAGE_SUM_X = 0x854C667088EFE093
HEAD_HEX = (
    "504547415345474d0100000000000000000102030405060708090a0b0c0d0e0f0100000000000000"
    "001000000000000094bde0de00000000"
)
GROUP_HEX = "5045474147525550000102030405060708090a0b0c0d0e0f02000000010000000040000000000000"
FOOTER_HEX = (
    "50454741464f4f54000102030405060708090a0b0c0d0e0f00200000000000000100000000000000"
    "cc31c2c24103736a"
)

rows = st.builds(
    Row,
    st.integers(0, 2**63),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**63),
    st.integers(1, 2**31),
    st.integers(0, 2**31),
    st.integers(1, 2**16 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=1, max_size=64),
)


def segment(groups: int, blocks: int = 2, payload_bytes: int = 5000) -> tuple[bytearray, bytes]:
    """A file without its footer, and its rows."""
    file = bytearray(head(UUID, 1, 1 << 20))
    every = b""
    for number in range(groups):
        at, some, pages = len(file), [], b""
        for n in range(blocks):
            page = bytes([number * 16 + n + 1]) * payload_bytes
            page += bytes(-len(page) % PAGE_ALIGN)
            offset = at + PAGE_ALIGN + n * len(page)
            sum_ = block_sum([page_sum(page[:payload_bytes])])
            some.append(
                Row(
                    offset,
                    sum_,
                    Incarnation(1),
                    payload_bytes,
                    depth=n,
                    shards=1,
                    namespace=NS,
                    key=Key(bytes([number, n]) * 8),
                )
            )
            pages += page
        file += group(UUID, number, some) + pages
        every += joined(some)
    return file, every


def walk(file: bytes | bytearray) -> tuple[bytes, int, int]:
    return tuple(recover(lambda at, n: bytes(file[at : at + n]), len(file), UUID))  # type: ignore


def seal(file: bytearray, every: bytes) -> bytearray:
    return file + footer(UUID, len(file), every)


def ending(file: bytes | bytearray) -> bytes | None:
    return read_footer(lambda at, n: bytes(file[at : at + n]), len(file), UUID)


@given(rows)
def test_a_row_comes_back(row: Row) -> None:
    assert len(pack_row(row)) == ROW_BYTES
    assert row_at(pack_row(row) * 3, 2) == row and unpack_rows(joined([row, row])) == [row, row]


def test_a_head_comes_back_and_every_damage_is_told() -> None:
    page = head(UUID, 7, 1 << 20)
    found = read_head(page)
    assert not isinstance(found, str) and found == (UUID, 7, 1 << 20)
    assert read_head(bytes(HEAD_BYTES)) == "it is no segment" == read_head(page[:-1])
    later = bytearray(page)
    later[8] = 2
    assert read_head(bytes(later)) == "it has format 2; this service reads format 1"
    for at in (*range(8), *range(16, 52)):
        damaged = bytearray(page)
        damaged[at] ^= 1
        assert isinstance(read_head(bytes(damaged)), str), at


def test_a_whole_segment_is_read_by_its_footer_and_by_a_walk_alike() -> None:
    file, every = segment(3)
    assert walk(file) == (every, len(file), 0)
    whole = seal(file, every)
    assert ending(whole) == every and len(whole) == len(file) + footer_bytes(6)
    assert walk(whole) == (every, len(file), 0), "a footer is no group"


def test_a_segment_without_a_block() -> None:
    file, every = segment(0)
    assert walk(file) == (b"", HEAD_BYTES, 0)
    assert ending(seal(file, every)) == b""


def test_a_tail_torn_anywhere_loses_at_most_the_blocks_behind() -> None:
    file, every = segment(3)
    for end in range(0, len(file), 1024):
        found, _, _ = walk(file[:end])
        assert every.startswith(found)
        whole = [row for row in unpack_rows(every) if row.offset + row.bytes_ <= end]
        assert len(found) == len(whole) * ROW_BYTES
        assert ending(file[:end]) is None


def test_a_group_is_found_behind_a_hole() -> None:
    file, every = segment(3)
    size = group_bytes(2, 2 * PAGE_ALIGN, 1)
    file[HEAD_BYTES : HEAD_BYTES + size] = bytes(size)
    assert walk(file) == (every[2 * ROW_BYTES :], len(file), 0)


def test_the_footer_of_a_longer_file_or_of_another_is_none() -> None:
    file, every = segment(1)
    whole = seal(file, every)
    assert ending(whole + bytes(PAGE_ALIGN)) is None
    assert read_footer(lambda at, n: bytes(whole[at : at + n]), len(whole), bytes(16)) is None
    assert ending(whole[:-1]) is None


@settings(max_examples=300)
@given(st.data())
def test_no_flipped_bit_is_believed(data: st.DataObject) -> None:
    """In a block: it is left out.  In rows: they are, or the block is not what they say."""
    file, every = segment(2)
    rows_ = unpack_rows(every)
    at = data.draw(st.integers(HEAD_BYTES, len(file) - 1))
    bit = data.draw(st.integers(0, 7))
    file[at] ^= 1 << bit
    found = unpack_rows(walk(file)[0])
    assert set(found) <= set(rows_)
    for row in found:
        data_ = bytes(file[row.offset : row.offset + row.payload_bytes])
        assert block_sum([page_sum(data_)]) == row.checksum


@settings(max_examples=200)
@given(st.data())
def test_no_flipped_bit_of_a_footer_is_believed(data: st.DataObject) -> None:
    file, every = segment(2)
    whole = seal(file, every)
    at = data.draw(st.integers(len(file), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    assert ending(whole) in (None, every)


def test_a_group_that_does_not_fit_its_place_is_none() -> None:
    file, _ = segment(1)
    page = bytes(file[HEAD_BYTES : HEAD_BYTES + PAGE_ALIGN])
    assert read_group(page, UUID, HEAD_BYTES) is not None
    assert read_group(page, UUID, 2 * HEAD_BYTES) is None, "a copy of it elsewhere"
    assert read_group(page, bytes(16), HEAD_BYTES) is None, "of an older file in this place"
    many = [
        Row(0, 1, Incarnation(1), PAGE_ALIGN, depth=0, shards=1, namespace=NS, key=Key(b"k" * 8))
    ] * GROUP_ROWS
    assert len(group(UUID, 0, many)) == PAGE_ALIGN


def test_the_format_is_frozen() -> None:
    """What is on users' disks is still read: a change needs another VERSION."""
    row = Row(
        8192,
        0x1122334455667788,
        Incarnation(9),
        5000,
        depth=3,
        shards=2,
        namespace=NS,
        key=Key(b"key-0001"),
    )
    assert pack_row(row).hex() == (
        "0020000000000000887766554433221109000000000000008813000003000000020008"
        + (b"\0" + NS + b"key-0001".ljust(64, b"\0") + bytes(12)).hex()
    )
    assert (page_sum(b""), page_sum(b"x" * 4096)) == (PAGE_SUM_EMPTY, PAGE_SUM_X)
    assert head(UUID, 1, 4096)[:56].hex() == HEAD_HEX
    assert group(UUID, 2, [row])[:40].hex() == GROUP_HEX
    assert footer(UUID, 8192, pack_row(row))[PAGE_ALIGN : PAGE_ALIGN + 48].hex() == FOOTER_HEX
