"""Which blocks the groups of a model need, and what they are called."""

import pytest

from pegaflow.connectors.common.groups import (
    APART,
    STATES_BACK,
    Group,
    Groups,
    blocks_of,
    window_blocks,
    window_spare,
)
from pegaflow.wire.identities import Key

FULL, FAR, NEAR = Group(1), Group(0, 3), Group(2, 1)
STATE = Group(4, 1, recurrent=True)
NAMES = [Key(bytes([i]) * 32) for i in range(64)]


def test_a_window_reaches_back_to_the_block_of_its_first_token() -> None:
    # The token at the place is the last of its window.
    assert [window_blocks(tokens, 4) for tokens in (1, 2, 5, 6, 8, 9)] == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("tokens", range(2, 14))
def test_a_window_is_there_for_some_tokens_behind_its_place(tokens: int) -> None:
    blocks, spare = window_blocks(tokens, 4), window_spare(tokens, 4)
    gone = [(32 + behind - tokens + 1) // 4 for behind in (spare - 1, spare)]  # as vLLM counts
    assert gone == [8 - blocks, 8 - blocks + 1]


def test_windows_are_there_as_long_as_the_shortest_spare() -> None:
    wide, near = Group(1, 3, spare=4), Group(2, 1, spare=2)
    assert Groups([FULL, wide, near]).spare == 2
    assert Groups([FULL, wide, Group(2, 0, spare=2)]).spare == 4, "nothing of it is needed"
    assert Groups([FULL]).spare == 1


def test_of_a_chunk_what_is_behind_its_start_is_needed() -> None:
    chunked = Group(1, 3, chunk=4)
    groups = Groups([Group(0), chunked])
    assert [groups.first(chunked, place) for place in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert groups.needed(8, 7) == [(Group(0), 7)], "at the end of a chunk nothing of it"
    assert groups.count(7) == len(groups.needed(7)) == 7 + 3
    assert groups.kept([6, 8], 5) == [(chunked, 5)]
    assert (groups.apart, groups.looked_for(7)) == (4, (chunked, 0))
    beside = Groups([Group(0), chunked, Group(2, 1)])
    assert (beside.apart, beside.looked_for(20)[0]) == (APART, Group(2, 1))


def test_to_resume_is_to_have_every_group() -> None:
    groups = Groups([FAR, FULL, NEAR])
    assert groups.needed(5) == [
        (FULL, 0), (FULL, 1),
        (FULL, 2), (FAR, 2),
        (FULL, 3), (FAR, 3),
        (FULL, 4), (FAR, 4), (NEAR, 4),
    ]  # fmt: skip


def test_of_a_recurrent_group_the_state_before_a_place_is_needed() -> None:
    groups = Groups([STATE, FULL, NEAR])
    assert groups.needed(3) == [
        (FULL, 0),
        (FULL, 1),
        (FULL, 2), (NEAR, 2), (STATE, 2),
    ]  # fmt: skip
    assert groups.count(3, 2) == 3 and groups.count(3) == 5
    assert (groups.windows, groups.states, groups.most) == ([NEAR], [STATE], 2)
    assert groups.kept([3], 0) == [(NEAR, 2)], "no table says where a state lies"


def test_a_state_is_looked_for_farther_back_than_a_window() -> None:
    assert Groups([FULL, FAR]).looked_for(100) == (FAR, 100 - 3 * APART - 3)
    assert Groups([FULL, FAR, STATE]).looked_for(100) == (STATE, 0)
    assert Groups([STATE]).looked_for(5000) == (STATE, 5000 - STATES_BACK - 1)


@pytest.mark.parametrize("place", [0, 1, 2, 5, 9])
def test_what_is_needed_beyond_what_one_has_is_the_end_of_the_list(place: int) -> None:
    groups = Groups([FAR, FULL, NEAR, Group(3)])
    whole = groups.needed(place)
    for since in range(place + 1):
        part = groups.needed(place, since)
        assert part == whole[len(whole) - len(part) :]
        assert groups.count(place, since) == len(part)
    keys = groups.needed_keys(NAMES, place)
    assert keys == tuple(groups.key(group, NAMES[block]) for group, block in whole)


def test_a_window_at_the_start_of_a_prompt_is_all_of_it() -> None:
    assert Groups([FAR]).needed(2) == [(FAR, 0), (FAR, 1)]


def test_no_two_groups_share_a_key_and_the_first_goes_by_the_engines_hash() -> None:
    groups = Groups([FAR, FULL, NEAR])
    keys = {groups.key(group, name) for group in (FULL, FAR, NEAR) for name in NAMES}
    assert len(keys) == 3 * len(NAMES)
    assert groups.key(FULL, NAMES[0]) == NAMES[0] == groups.full_keys(NAMES, 0, 9)[0]
    assert all(len(key) == 32 for key in keys)
    assert Groups([FAR, NEAR]).key(FAR, NAMES[0]) == NAMES[0]


def test_windows_are_kept_at_regular_places_and_at_those_of_the_request() -> None:
    groups = Groups([FULL, FAR, NEAR])
    regular = APART * 3
    assert groups.places(0, 2 * regular, (7, 5, 99)) == [5, 7, regular, 2 * regular]
    assert groups.places(6, regular - 1, (7, 5, 0)) == [7]
    assert Groups([FULL]).places(0, 100, (7,)) == [7], "without windows there is nothing to keep"


def test_what_is_kept_at_a_place_is_known_at_the_next() -> None:
    groups = Groups([FULL, FAR, NEAR])
    assert groups.kept([5, 6], 0) == [(FAR, 2), (FAR, 3), (FAR, 4), (FAR, 5), (NEAR, 4), (NEAR, 5)]
    assert groups.kept([6], 5) == [(FAR, 5), (NEAR, 5)]
    assert groups.kept([9], 5) == [(FAR, 6), (FAR, 7), (FAR, 8), (NEAR, 8)]


def test_a_block_that_was_taken_away_is_none() -> None:
    tables = [[0, 0, 12, 13], [1, 2, 3, 4]]
    assert blocks_of(tables, [(FAR, 2), (FULL, 0)]) == (12, 1)
    assert blocks_of(tables, [(FAR, 1), (FULL, 0)]) is None
    assert blocks_of(tables, [(FAR, 4)]) is None, "there is no such block yet"
    assert blocks_of(tables, [(NEAR, 0)]) is None


HALF, WHOLE, THIRD = Group(1, hashes=2), Group(2, 3, hashes=6), Group(0, 4, hashes=3)
"""Where a place is six hashes: three blocks, one block and two blocks."""


def test_at_a_place_blocks_of_every_group_end() -> None:
    groups = Groups([HALF, WHOLE, THIRD])
    assert [groups.per(group) for group in (HALF, WHOLE, THIRD)] == [3, 1, 2]
    assert (groups.hashes, groups.full_blocks, groups.blocks) == (6, 3, 6)
    assert (groups.reach, groups.most) == (3, 7)
    assert groups.needed(3, 2) == [
        (HALF, 6),
        (HALF, 7),
        (HALF, 8),
        (THIRD, 4),
        (THIRD, 5),
        (WHOLE, 2),
    ]
    assert groups.needed(3, 1)[:6] == [
        (HALF, 3), (HALF, 4), (HALF, 5), (THIRD, 2), (THIRD, 3), (WHOLE, 1),
    ]  # fmt: skip


def test_the_window_of_short_blocks_begins_within_a_place() -> None:
    groups = Groups([Group(0, hashes=2), Group(1, 3)])
    assert groups.needed(3, 1) == [(Group(0, hashes=2), 1), (Group(1, 3), 3)] + [
        (Group(0, hashes=2), 2), (Group(1, 3), 4), (Group(1, 3), 5),
    ]  # fmt: skip
    assert groups.kept([3], 2) == [(Group(1, 3), 4), (Group(1, 3), 5)]


@pytest.mark.parametrize("place", range(6))
def test_blocks_of_other_lengths_are_in_the_same_order_everywhere(place: int) -> None:
    groups = Groups([HALF, WHOLE, THIRD, Group(3, hashes=3)])
    whole = groups.needed(place)
    for since in range(place + 1):
        part = groups.needed(place, since)
        assert part == whole[len(whole) - len(part) :]
        assert groups.count(place, since) == len(part)
    assert groups.needed_keys(NAMES, place) == groups.keys_of(NAMES, whole)
    full = [entry for entry in whole if entry[0].window is None]
    assert groups.full_keys(NAMES, 0, place) == groups.keys_of(NAMES, full)
    assert groups.full_entries(0, place) == full


def test_a_block_of_several_hashes_is_named_by_the_last() -> None:
    """What another session says behind the first of them has other KV, and must not be found."""
    groups = Groups([WHOLE, HALF])
    assert groups.names(WHOLE, NAMES, 0, 2) == [NAMES[5], NAMES[11]]
    assert groups.names(HALF, NAMES, 1, 3) == [NAMES[3], NAMES[5]]
    assert groups.names(WHOLE, NAMES[:11], 0, 2) == [NAMES[5]], "the rest has no hash yet"
    ours, theirs = NAMES[:12], NAMES[:7] + NAMES[40:45]
    first, other = groups.needed_keys(ours, 2), groups.needed_keys(theirs, 2)
    shared = groups.needed_keys(NAMES, 1)
    assert {*first} & {*other} == {*shared}, "what they part in is neither's"


def test_a_state_is_that_at_the_end_of_its_place() -> None:
    groups = Groups([Group(0, hashes=2), STATE])
    assert groups.needed(2, 1) == [(Group(0, hashes=2), 1), (STATE, 3)]
    assert groups.kept([2], 0) == [] and groups.looked_for(2) == (STATE, 0)
