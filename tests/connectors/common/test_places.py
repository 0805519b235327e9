"""Places that are worth a question."""

import pytest

from pegaflow.connectors.common.places import Places
from pegaflow.wire.identities import Key


def name(place: int) -> Key:
    return Key(b"%d" % place)


def test_the_largest_place_before_the_end_is_named() -> None:
    places = Places(99, surely=True)
    for place in (3, 9, 12):
        places.note(name(place))
    found = [places.before(name, end, low) for end, low in ((13, 0), (12, 0), (9, 0), (9, 3))]
    assert found == [12, 9, 3, 0]


@pytest.mark.parametrize(("surely", "found"), [(True, [24, 20, 16, 0]), (False, [20, 20, 16, 0])])
def test_regular_places_need_not_be_noted(surely: bool, found: list[int]) -> None:
    places = Places(8, surely=surely)
    places.note(name(20))
    assert [places.before(name, end, 0) for end in (30, 24, 20, 8)] == found
    assert places.before(name, 20, 16) == 0


def test_those_that_were_noted_last_are_remembered() -> None:
    places = Places(99, surely=True, most=2)
    for place in (1, 2, 1, 3):
        places.note(name(place))
    assert [places.before(name, end, end - 2) for end in (2, 3, 4)] == [1, 0, 3]
