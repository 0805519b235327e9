"""Fingerprints: all at once or one by one, and of one namespace."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.pool.fingerprints import fingerprints, fold, hash_of, hashes_of
from pegaflow.core.pool.ledger import MAX_KEY
from pegaflow.wire.identities import Key, Namespace

spaces = st.binary(min_size=16, max_size=16).map(Namespace)
GOLDEN = [
    *(9_939_823_288_021_002_578, 14_332_294_412_354_979_410),
    *(17_887_410_442_435_830_846, 3_425_662_806_102_120_626),
]
"""Reckoned by hand, with words read as little-endian numbers."""

many_keys = st.lists(st.binary(max_size=MAX_KEY).map(Key), max_size=20)


@given(spaces, many_keys)
def test_however_many_at_once_they_are_the_same(namespace: Namespace, keys: list[Key]) -> None:
    every = fingerprints(namespace, keys)
    assert every.tolist() == [fingerprints(namespace, [key]).item() for key in keys]
    hashes = np.array([hash_of(key) for key in keys], np.uint64)
    assert every.tolist() == fold(namespace, hashes).tolist()
    rows = np.frombuffer(b"".join(key.ljust(MAX_KEY, b"\0") for key in keys), np.uint8)
    assert hashes_of(rows.reshape(-1, MAX_KEY)).tolist() == hashes.tolist()
    assert all(every > 1)


def test_equal_keys_of_two_namespaces_differ() -> None:
    keys = [Key(b"%032d" % n) for n in range(1000)]
    spaces = [Namespace(bytes([n]) * 16) for n in range(20)]
    assert len({f for space in spaces for f in fingerprints(space, keys).tolist()}) == 20_000


@given(st.lists(st.binary(min_size=1, max_size=MAX_KEY).map(Key), min_size=1))
def test_one_by_one_or_all_at_once_the_hash_is_the_same(keys: list[Key]) -> None:
    for width in (MAX_KEY, -(-max(map(len, keys)) // 8) * 8):
        rows = np.frombuffer(b"".join(key.ljust(width, b"\0") for key in keys), np.uint8)
        assert hashes_of(rows.reshape(-1, width)).tolist() == [hash_of(key) for key in keys]


def test_keys_of_a_counter_have_different_hashes() -> None:
    keys = [b"%016x%016x" % (chain, block) for chain in range(100) for block in range(100)]
    assert len({hash_of(Key(key)) for key in keys}) == len(keys)


def test_they_are_the_same_on_every_host() -> None:
    """Hosts tell each other what they have by fingerprints: who changes these changes what peers
    of two versions find of each other."""
    space, other = Namespace(bytes(range(16))), Namespace(b"another")
    keys = [Key(bytes(range(n, n + size))) for n, size in ((0, 32), (7, 16), (9, 5), (0, 64))]
    assert fingerprints(space, keys).tolist() == GOLDEN
    assert [fingerprints(space, [key]).item() for key in keys] == GOLDEN
    assert fingerprints(other, keys[:1]).tolist() == [14_703_530_825_316_332_683]
