"""Many fingerprints at once in buckets of which several get more than they have room for."""

import numpy as np
import pytest

from pegaflow.core.pool.buckets import BUCKET_BYTES, SLOTS, Half
from pegaflow.core.pool.fingerprints import U64

LOG2 = 6


def half() -> Half:
    return Half(0, LOG2, np.zeros(BUCKET_BYTES << LOG2, np.uint8).data, 0)


def check(found: Half, names: U64, pages: np.ndarray) -> None:
    """It has exactly these, and counts them."""
    assert found.find(names).tolist() == pages.tolist()
    slots = found.words[:, :SLOTS]
    assert found.used == len(names) == np.count_nonzero(slots > 1)
    assert found.removed == np.count_nonzero(slots == 1)
    assert not ((slots == 0).any(axis=1) & (slots == 1).any(axis=1)).any()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_poured_put_and_taken(seed: int) -> None:
    """Some buckets overflow; half of it goes, and as much comes again."""
    rng, found = np.random.default_rng(seed), half()
    crowd = rng.integers(2, 1 << 63, 192, dtype=np.uint64) * np.uint64(2)
    crowd[:40] = crowd[0] + np.arange(40, dtype=np.uint64)  # of one bucket
    pages = np.arange(192, dtype=np.uint32)
    poured = found.pour(crowd[:120], pages[:120])
    put = found.put(crowd[120:], pages[120:])
    assert (poured >= 0).all() and (put >= 0).all()
    check(found, crowd, pages)
    gone = rng.permutation(192)[:96]
    found.take(crowd[gone], pages[gone] + np.uint32(1000))
    check(found, crowd, pages)
    found.take(crowd[gone], pages[gone])
    assert (found.find(crowd[gone]) == -1).all()
    stay = np.setdiff1d(np.arange(192), gone)
    check(found, crowd[stay], pages[stay])
    found.put(crowd[gone], pages[gone])
    check(found, crowd, pages)


def test_of_two_blocks_with_one_fingerprint_each_has_a_slot() -> None:
    found = half()
    names, pages = np.full(40, 1 << 60, np.uint64), np.arange(40, dtype=np.uint32)
    assert (found.put(names, pages) >= 0).all() and found.used == 40
    found.take(names[:39], pages[:39])
    assert found.used == 1 and found.find(names).tolist() == [39] * 40


def test_what_has_no_place_is_named() -> None:
    found = half()
    names = np.arange(1 << 60, (1 << 60) + 80, dtype=np.uint64)  # ten buckets of one home
    put = found.pour(names, np.arange(80, dtype=np.uint32))
    assert np.count_nonzero(put >= 0) == 64 == found.used
    assert (found.find(names) >= 0).tolist() == (put >= 0).tolist()
