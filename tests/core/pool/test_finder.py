"""The finder: the ledger decides, and whatever it has found stays."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.core.pool.columns import column, signed
from pegaflow.core.pool.finder import Finder, Run
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import HazardReader, Hazards, hazard_bytes
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES, Header, Ledger, Record
from pegaflow.core.pool.table import Table, TableReader, TierWord, file_bytes
from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp
from tests.naming import as_keys, as_pages

GEOMETRY = Geometry(64 * 65536, 65536)  # 4 pages of 16 KiB in each of 64 extents
PAGES = GEOMETRY.records
SPACE, OTHER = Namespace(b"one namespace 16"), Namespace(b"another namespac")
KEYS = [Key(b"%032d" % n) for n in range(20)]
PLENTY = 1 << 40


class Pool:
    """What is shared, and an index and a session that use it."""

    def __init__(self, rows: int = 64) -> None:
        header = Header(
            pool_uuid=bytes(16),
            boot_id=b"boot",
            pool_bytes=GEOMETRY.pool_bytes,
            extent_bytes=GEOMETRY.extent_bytes,
            records_per_extent=GEOMETRY.records_per_extent,
            incarnation=Incarnation(1),
        )
        self.raw = bytearray(file_bytes(PAGES))
        self.ledger = Ledger.format(self.raw, header)
        self.table = Table(self.raw, PAGES, lambda offset, length: "")
        self.table.begin(PAGES)
        self.table.publish()
        file = bytearray(hazard_bytes(rows))
        self.hazards, self.named = Hazards(file), HazardReader(file).named
        self.finder = Finder(Ledger(self.raw), TableReader(self.raw, PAGES), GEOMETRY)
        self.stamp = 100

    def put(
        self,
        keys: Sequence[Key],
        at: Sequence[int],
        space: Namespace = SPACE,
        *,
        length: int = 5000,
        shards: int = 1,
    ) -> tuple[Stamp, ...]:
        """Seal these keys; the stamps of their pages."""
        pages = as_pages(*at)
        records = []
        for n in range(len(pages)):
            self.stamp += 1
            key, seal = keys[n // shards], self.stamp - n % shards
            record = Record(
                stamp=Stamp(self.stamp),
                seal=seal,
                shard=n % shards,
                shards=shards,
                payload_bytes=length,
                namespace=space,
                key=key,
                checksum=self.stamp * 7 if n % 2 else None,
                depth=3,
            )
            records.append(record)
        self.ledger.seal(pages, records)
        self.table.add(fingerprints(space, keys), pages, shards)
        return tuple(record.stamp for record in records)

    def evict(self, at: Sequence[int]) -> list[int]:
        """As the index does it, with one page per block; what was turned back."""
        pages = as_pages(*at)
        stamps = self.ledger.rows()[list(pages), 1]
        self.ledger.leave(pages)
        stay = self.named(pages, stamps)
        back = [page for page, named in zip(pages, stay, strict=True) if named]
        self.ledger.stay(back)
        self.ledger.void([page for page in pages if page not in back])
        return list(back)

    def find(
        self,
        keys: Sequence[Key] = KEYS,
        space: Namespace = SPACE,
        *,
        shards: int = 1,
        most_bytes: int = PLENTY,
        between: Callable[[str], object] = bool,
    ) -> Run:
        before = len(self.hazards)
        run = self.finder.find(
            space, keys, self.hazards, shards=shards, most_bytes=most_bytes, between=between
        )
        assert run is not None
        self.hazards.check()
        assert len(self.hazards) == before + run.blocks == before + len(run.rows)
        assert len(run.pages) == len(run.stamps) == len(run.checksums) == run.blocks * shards
        assert self.finder.sealed(run.pages, run.stamps)
        assert self.named(run.pages[::shards], run.stamps[::shards]).all()
        return run


def test_what_is_there_is_found_and_stays() -> None:
    pool = Pool()
    stamps = pool.put(KEYS[:5], [9, 3, 200, 77, 255])
    run = pool.find()
    assert (run.blocks, run.payload_bytes, run.bytes_, run.cut) == (5, 5000, 5 * 16384, False)
    assert run.pages.tolist() == [9, 3, 200, 77, 255] and run.stamps.tolist() == list(stamps)
    assert run.checksums.tolist() == [s * 7 if n % 2 else 0 for n, s in enumerate(stamps)]
    assert pool.evict([3, 9]) == [3, 9]
    assert pool.find().blocks == 5
    pool.hazards.clear(run.rows)


def test_the_run_ends_where_nothing_is() -> None:
    pool = Pool()
    pool.put([*KEYS[:3], *KEYS[4:]], [*range(3), *range(4, 20)])
    assert pool.find().pages.tolist() == [0, 1, 2]
    assert pool.find(KEYS[4:]).blocks == 16
    assert pool.find(KEYS[3:]).blocks == pool.find(as_keys(b"?")).blocks == 0
    assert pool.find(KEYS, OTHER).blocks == 0


def test_equal_keys_of_two_namespaces_never_meet() -> None:
    pool = Pool()
    pool.put(KEYS, range(20))
    pool.put(KEYS, range(20, 40), OTHER)
    assert pool.find().pages.tolist() == list(range(20))
    assert pool.find(space=OTHER).pages.tolist() == list(range(20, 40))
    # A table that leads to the other's pages, for whatever reason.
    pool.table.remove(fingerprints(SPACE, KEYS), as_pages(*range(20)))
    pool.table.add(fingerprints(SPACE, KEYS), as_pages(*range(20, 40)))
    assert pool.find().blocks == 0


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_keys_of_any_length_are_told_apart(data: st.DataObject) -> None:
    key = (st.binary(min_size=1, max_size=4) | st.binary(min_size=1, max_size=64)).map(Key)
    keys = data.draw(st.lists(key, min_size=1, max_size=12, unique=True))
    there = data.draw(st.sets(st.sampled_from(keys)))
    pool = Pool()
    pool.put(sorted(there), range(len(there)))
    wanted = data.draw(st.permutations(keys))
    run = pool.find(wanted)
    here = next((n for n, one in enumerate(wanted) if one not in there), len(wanted))
    assert run.pages.tolist() == [sorted(there).index(one) for one in wanted[:here]]


def test_two_keys_that_are_two_others_when_joined_are_not_these() -> None:
    pool = Pool()
    pool.put(as_keys(b"a" * 32, b"b" * 32), [0, 1])
    assert pool.find(as_keys(b"a" * 31, b"a" + b"b" * 32)).blocks == 0


def test_a_key_that_is_longer_than_any_is_left_to_the_index() -> None:
    pool = Pool()
    asked = pool.finder.find(SPACE, as_keys(b"k" * 65), pool.hazards, shards=1, most_bytes=PLENTY)
    assert asked is None and len(pool.hazards) == 0


@given(st.integers(0, RECORD_BYTES - 1), st.integers(1, 255), st.integers(0, 4))
@settings(deadline=None)
def test_a_torn_record_ends_the_run(place: int, flip: int, at: int) -> None:
    pool = Pool()
    pool.put(KEYS[:5], range(5))
    pool.raw[HEADER_BYTES + at * RECORD_BYTES + place] ^= flip
    assert pool.find().blocks == at


def test_a_record_of_another_length_or_shard_ends_the_run() -> None:
    pool = Pool()
    pool.put(KEYS[:2], [0, 1])
    pool.put(KEYS[2:3], [2], length=6000)
    assert pool.find().blocks == 2
    pool.put(KEYS[10:12], [10, 11, 12, 13], shards=2)
    assert pool.find(KEYS[10:12]).blocks == 0
    assert pool.find(KEYS, shards=2).blocks == 0
    assert pool.find(KEYS[10:12], shards=2).blocks == 2


@pytest.mark.parametrize("when", ["probed", "published"])
@pytest.mark.parametrize("at", range(5))
def test_a_block_that_is_evicted_while_it_is_looked_for(when: str, at: int) -> None:
    """Whether it is found or not: what is found is what was asked for, and stays."""
    pool = Pool()
    pool.put(KEYS[:5], range(5))
    back: list[int] = []

    def evict(step: str) -> None:
        if step == when:
            back.extend(pool.evict([at]))
            if not back:
                pool.put(KEYS[10:11], [at], OTHER)  # the page is another's at once

    run = pool.find(between=evict)
    assert (run.blocks, back) == ((at, []) if when == "probed" else (5, [at]))


@pytest.mark.parametrize("word", ["leaving", "void", "sealed anew", "sealed as before"])
def test_what_happens_between_hazard_and_record_decides(word: str) -> None:
    pool = Pool()
    pool.put(KEYS[:3], range(3))

    def change(step: str) -> None:
        if step == "published":
            pool.ledger.leave(as_pages(1))
            if word == "sealed as before":
                pool.ledger.stay(as_pages(1))
            elif word != "leaving":
                pool.ledger.void(as_pages(1))
            if word == "sealed anew":  # the same block, under a stamp that no hazard names
                pool.table.remove(fingerprints(SPACE, KEYS[1:2]), as_pages(1))
                pool.put(KEYS[1:2], [1])

    assert pool.find(between=change).blocks == (3 if word == "sealed as before" else 1)


def test_hazards_are_published_before_the_records_are_read() -> None:
    pool = Pool()
    stamps = pool.put(KEYS[:3], range(3))
    steps = []

    def look(step: str) -> None:
        steps.append(step)
        named = pool.named(as_pages(*range(3)), stamps).tolist()
        assert named == [step == "published"] * 3
        if step == "published":
            pool.ledger.void(as_pages(2))

    assert pool.find(between=look).blocks == 2, "the records were read before the hazards"
    assert steps == ["probed", "published"]


def test_all_shards_of_a_block_or_none() -> None:
    pool = Pool()
    pages = [10, 20, 30, 11, 21, 31, 12, 22, 32]
    stamps = pool.put(KEYS[:3], pages, shards=3)
    run = pool.find(shards=3)
    assert (run.pages.tolist(), run.stamps.tolist()) == (pages, list(stamps))
    assert run.bytes_ == 9 * 16384
    assert (
        pool.named(as_pages(10, 11, 12), stamps[::3]).all()
        and not pool.named(as_pages(20), stamps[1:2]).any()
    )
    assert pool.find(KEYS[:3], shards=2).blocks == pool.find(KEYS[:3]).blocks == 0
    pool.ledger.void(as_pages(31))
    assert pool.find(shards=3).pages.tolist() == pages[:3]
    pool.ledger.leave(as_pages(20))
    assert pool.find(shards=3).blocks == 0
    assert pool.find(KEYS[2:], shards=3).blocks == 1


def test_shards_of_two_seals_are_no_block() -> None:
    pool = Pool()
    pool.put(KEYS[:1], [10, 20], shards=2)
    pool.ledger.void(as_pages(20))
    pool.ledger.seal(
        as_pages(20),
        [
            Record(
                Stamp(1),
                999,
                1,
                2,
                payload_bytes=5000,
                namespace=SPACE,
                key=KEYS[0],
                checksum=None,
                depth=3,
            )
        ],
    )
    assert pool.find(shards=2).blocks == 0


@pytest.mark.parametrize("leads_to", [0, 11, 500, 1 << 31])
def test_a_link_that_leads_elsewhere_is_no_block(leads_to: int) -> None:
    pool = Pool()
    pool.put(KEYS[:2], [10, 20, 11, 21], shards=2)
    pool.table._links()[11] = leads_to
    assert pool.find(shards=2).pages.tolist() == [10, 20]


def test_so_many_bytes_and_hazards_as_there_are() -> None:
    pool = Pool(rows=12)
    pool.put(KEYS, range(20), length=20_000)  # slots of 20,480 bytes
    for blocks in (0, 1, 7):
        run = pool.find(most_bytes=blocks * 20_480 + 20_479)
        assert (run.blocks, run.cut, run.bytes_) == (blocks, True, blocks * 20_480)
        pool.hazards.clear(run.rows)
    run = pool.find()
    assert (run.blocks, run.cut) == (12, True)
    assert (pool.find().blocks, pool.find().cut) == (0, True)
    pool.hazards.clear(run.rows[:3])
    assert (pool.find().blocks, pool.find(KEYS[:1]).cut) == (3, True)


def test_out_of_an_extent_that_is_being_cleared() -> None:
    pool = Pool()
    pool.put(KEYS, range(20))
    pool.put(KEYS[:2], [40, 45, 41, 50], OTHER, shards=2)
    pool.table.set_clearing(2)  # pages 8 to 11
    assert pool.find().blocks == 8
    pool.table.set_clearing(12)  # the second shard of the second block
    assert pool.find(space=OTHER, shards=2).blocks == 1
    pool.table.set_clearing(None)
    assert pool.find().blocks == 20


def test_only_the_index_can_say() -> None:
    pool = Pool()
    pool.put(KEYS, range(20))

    def asked() -> Run | None:
        return pool.finder.find(SPACE, KEYS, pool.hazards, shards=1, most_bytes=PLENTY)

    pool.table.set_closed(True)
    assert asked() is None
    pool.table.set_closed(False)
    assert pool.find().blocks == 20
    pool.table.remove(fingerprints(SPACE, KEYS[:1]), as_pages(0))
    pool.table.add(fingerprints(SPACE, KEYS[:1]), as_pages(PAGES))  # no page of this pool
    assert asked() is None
    assert pool.finder.find(SPACE, [], pool.hazards, shards=1, most_bytes=PLENTY) is None
    Table(pool.raw, PAGES, lambda offset, length: "full").begin(1)
    assert asked() is None
    assert len(pool.hazards) == 20


def test_what_is_seen_is_not_kept() -> None:
    pool = Pool()
    pool.put(KEYS[:6], range(6))
    pool.put(KEYS[10:12], [20, 21, 22, 23], shards=2)
    pool.put(KEYS[15:16], [30], OTHER)
    pool.evict([2, 3])
    mixed = [KEYS[n] for n in (15, 4, 0, 10, 2, 9)]
    sight = pool.finder.see(SPACE, mixed, shards=1)
    assert sight is not None and len(pool.hazards) == 0
    assert sight.here.tolist() == [False, True, True, False, False, False]
    twos = pool.finder.see(SPACE, KEYS[9:12], shards=2)
    assert twos is not None and twos.here.tolist() == [False, True, True]


def test_what_a_tier_may_have_is_seen_if_it_is_known_of_each_block() -> None:
    pool = Pool()
    pool.put(KEYS[:2], range(2))
    pool.table.filter.add(fingerprints(SPACE, KEYS[1:4]))

    def below() -> list[bool] | None:
        sight = pool.finder.see(SPACE, KEYS[:6], shards=1)
        assert sight is not None and sight.here.tolist() == [True] * 2 + [False] * 4
        return None if sight.below is None else sight.below.tolist()

    assert below() == [False] * 6
    pool.table.set_tiers(TierWord.ASK)
    assert below() is None, "it could be any of them"
    pool.table.set_tiers(TierWord.FILTER)
    assert below() == [False, True, True, True, False, False]


def test_nothing_is_seen_where_only_the_index_can_say() -> None:
    pool = Pool()
    pool.put(KEYS, range(20))
    too_long = [Key(b"k" * 65)]
    assert pool.finder.see(SPACE, too_long, shards=1) is None
    assert pool.finder.see(SPACE, [], shards=1) is None
    no_table = Finder(Ledger(pool.raw), TableReader(bytearray(len(pool.raw)), PAGES), GEOMETRY)
    assert no_table.see(SPACE, KEYS, shards=1) is None


def test_a_torn_record_is_not_seen() -> None:
    pool = Pool()
    pool.put(KEYS[:4], range(4))
    pool.raw[HEADER_BYTES + 2 * RECORD_BYTES + 50] ^= 1
    sight = pool.finder.see(SPACE, KEYS[:4], shards=1)
    assert sight is not None and sight.here.tolist() == [True, True, False, True]


def test_a_copy_is_whole_while_its_pages_are_sealed_or_leaving() -> None:
    pool = Pool()
    stamps = pool.put(KEYS[:2], [0, 1])

    def sealed(pages: Sequence[PageId], stamps: Sequence[Stamp]) -> bool:
        return pool.finder.sealed(signed(pages), column(stamps))

    assert sealed(as_pages(0, 1), stamps) and sealed((), ())
    pool.ledger.leave(as_pages(1))
    assert sealed(as_pages(0, 1), stamps), "its bytes are there until it is void"
    pool.ledger.void(as_pages(1))
    assert not sealed(as_pages(0, 1), stamps)
    pool.put(KEYS[1:2], [1])
    assert not sealed(as_pages(0, 1), stamps), "the same block, sealed anew"
    pool.ledger.quarantine(PageId(0))
    assert not sealed(as_pages(0), stamps[:1])


def test_many_blocks() -> None:
    """In a table that overflows here and there, and while it is rebuilt."""
    pool = Pool(rows=1024)
    keys = [Key(np.random.default_rng(n).bytes(32)) for n in range(PAGES)]
    pool.table.begin(0)
    pool.table.publish()
    for at in range(0, PAGES, 8):
        pool.put(keys[at : at + 8], range(at, at + 8))
        while pool.table.rebuild_step(16):
            run = pool.find(keys)
            assert run.pages.tolist() == list(range(at + 8))
            pool.hazards.clear(run.rows)
    assert pool.find(keys).blocks == PAGES
