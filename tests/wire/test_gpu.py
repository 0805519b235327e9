"""How devices are named, and what a client wishes of the session that reaches its memory."""

from dataclasses import replace
from uuid import UUID

import pytest

from pegaflow.wire.gpu import (
    HANDLE_BYTES,
    NO_FD,
    NO_GPU,
    NO_HANDLE,
    PIECES_MAX,
    Backend,
    GpuMemory,
    GpuPiece,
    GpuRegion,
    bus_and_uuid,
    device_name,
    fault,
    is_meant,
    side_by_side,
    spelled,
)

BUS, ID = "0000:65:00.0", bytes([7, 0, *range(14)])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" 3", "3"),
        ("007", "7"),
        ("65:00.0", BUS),
        ("65:0", BUS),
        ("0000:65:00.0", BUS),
        ("00000000:65:00.0", BUS),
        ("0000:B3:00.1", "0000:b3:00.1"),
        (f"gpu-{UUID(bytes=ID)}", f"GPU-{UUID(bytes=ID)}"),
        (f"MIG-{str(UUID(bytes=ID)).upper()}", f"MIG-{UUID(bytes=ID)}"),
    ],
)
def test_what_people_say_has_one_spelling(text: str, name: str) -> None:
    assert device_name(text) == device_name(name) == name


@pytest.mark.parametrize("text", ["", "-1", "all", "GPU-7", "x:00.0", "1:2:3:4", "65:00.9"])
def test_what_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        device_name(text)


@pytest.mark.parametrize("name", ["3", BUS, f"GPU-{UUID(bytes=ID)}", spelled(BUS, ID)])
def test_all_names_of_a_device_mean_it_and_no_other(name: str) -> None:
    """A UUID may come cut at its first zero."""
    for uuid in (ID, ID[:1]):
        assert is_meant(name, 3, BUS, uuid)
        assert not is_meant(name, 4, "0000:66:00.0", bytes([8]) + uuid[1:])


def test_parts_of_one_device_differ_by_their_uuids() -> None:
    assert not is_meant(spelled(BUS, ID), 3, BUS, bytes([8]))
    assert is_meant(BUS, 3, BUS, bytes([8]))


def test_a_wish_of_a_later_minor_is_none() -> None:
    assert NO_GPU.backend is Backend.AUTO
    assert Backend(len(Backend)) is Backend.AUTO and Backend(1 << 40) is Backend.AUTO
    with pytest.raises(ValueError):
        Backend(-1)


def test_numbers_are_frozen() -> None:
    assert {backend.name: backend.value for backend in Backend} == {
        "AUTO": 0,
        "DIRECT": 1,
        "KERNEL": 2,
    }


def test_what_was_spelled_is_read_and_nothing_else() -> None:
    assert bus_and_uuid(spelled("0000:65:00.0", b"\7\x10\0\1")) == ("0000:65:00.0", b"\7\x10")
    assert bus_and_uuid("3") == ("3", b"") and bus_and_uuid("0000:65:00.0/07x") == ("", b"")
    assert bus_and_uuid("0000:65:00.0/0\n") == ("", b"")


REGIONS = (GpuRegion(NO_HANDLE, 110), GpuRegion(bytes([1]) * HANDLE_BYTES, 1 << 40))
PIECES = (GpuPiece(100, 50, 7), GpuPiece(150, 50, 8), GpuPiece(300, 50, NO_FD))
IN_PIECES = GpuMemory(BUS, ID, REGIONS, bytes(HANDLE_BYTES), pieces=PIECES)


def test_pieces_are_cut_where_there_is_nothing_between_them() -> None:
    assert side_by_side(PIECES) == [list(PIECES[:2]), [PIECES[2]]]
    assert side_by_side(()) == []


@pytest.mark.parametrize(
    ("change", "size", "why"),
    [
        ({}, 90, ""),
        ({}, 91, "in no pieces side by side"),
        ({"regions": (GpuRegion(NO_HANDLE, 99), REGIONS[1])}, 1, "in no pieces side by side"),
        ({"regions": (GpuRegion(NO_HANDLE, 200), REGIONS[1])}, 1, "in no pieces side by side"),
        ({"regions": (GpuRegion(NO_HANDLE, 300), REGIONS[1])}, 50, ""),
        ({"pieces": PIECES[::-1]}, 1, "by address"),
        ({"pieces": (GpuPiece(100, 51, 7), *PIECES[1:])}, 1, "none overlaps"),
        ({"pieces": (*PIECES, GpuPiece(400, 0, 7))}, 1, "none overlaps"),
        ({"pieces": (*PIECES, GpuPiece(400, 9, 1 << 31))}, 1, "none overlaps"),
        ({"pieces": (*PIECES, GpuPiece(1 << 62, 1 << 62, 7))}, 1, "no such addresses"),
        ({"pieces": PIECES[:1] * (PIECES_MAX + 1)}, 1, f"at most {PIECES_MAX}"),
    ],
)
def test_pieces_that_make_no_sense_are_refused(
    change: dict[str, tuple[object, ...]], size: int, why: str
) -> None:
    memory: GpuMemory = replace(IN_PIECES, **change)  # type: ignore[arg-type]
    found = fault(memory, [size, 1])
    assert why in found and bool(found) is bool(why)
