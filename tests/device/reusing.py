"""A process that does nothing but use pages anew, as the index does it: `python -m
tests.device.reusing FOLDER`.  A block's bytes are its key, over and over."""

import mmap
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import HazardReader, hazard_bytes
from pegaflow.core.pool.ledger import Header, Ledger, Record
from pegaflow.core.pool.table import Table, file_bytes
from pegaflow.device import membarrier
from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp
from tests.naming import as_pages

GEOMETRY = Geometry(16 * 65536, 65536)
PAGES = GEOMETRY.records
LENGTH = 16384
SPACE = Namespace(bytes(16))
KEYS = [Key(b"%032d" % n) for n in range(PAGES + 8)]
ROWS = 256
BATCH = 4
MOST_ROUNDS = 1_000_000
"""Of a reader that never says stop."""


class Shared:
    """The memory of both processes: pool, ledger, hazards, and a word that says stop."""

    def __init__(self, folder: Path) -> None:
        sizes = {
            "pool": GEOMETRY.pool_bytes,
            "ledger": file_bytes(PAGES),
            "hazards": hazard_bytes(ROWS),
            "stop": 4096,
        }
        maps = {}
        for name, size in sizes.items():
            with (folder / name).open("a+b") as file:
                file.truncate(size)
                maps[name] = mmap.mmap(file.fileno(), size)
        self.pool, self.ledger, self.hazards = maps["pool"], maps["ledger"], maps["hazards"]
        self.stop = memoryview(maps["stop"]).cast("Q")


class Index:
    """Evicts and seals, a few blocks at a time."""

    def __init__(self, shared: Shared) -> None:
        header = Header(
            pool_uuid=bytes(16),
            boot_id=b"boot",
            pool_bytes=GEOMETRY.pool_bytes,
            extent_bytes=GEOMETRY.extent_bytes,
            records_per_extent=GEOMETRY.records_per_extent,
            incarnation=Incarnation(1),
        )
        self.shared = shared
        self.ledger = Ledger.format(shared.ledger, header)
        self.table = Table(shared.ledger, PAGES, lambda offset, length: "")
        self.table.begin(PAGES)
        self.table.publish()
        self.keys: dict[PageId, Key] = {}  # by page
        self.stamp = 0
        self.turned_back = 0
        self.fill(as_pages(*range(PAGES)), KEYS[:PAGES])

    def fill(self, pages: Sequence[PageId], keys: list[Key]) -> None:
        """Pages that are void get these blocks."""
        records = []
        for page, key in zip(pages, keys, strict=True):
            at = GEOMETRY.offset(page, LENGTH)
            self.shared.pool[at : at + LENGTH] = key * (LENGTH // len(key))
            self.stamp += 1
            records.append(
                Record(
                    Stamp(self.stamp),
                    self.stamp,
                    0,
                    1,
                    payload_bytes=LENGTH,
                    namespace=SPACE,
                    key=key,
                    checksum=None,
                    depth=0,
                )
            )
            self.keys[page] = key
        self.ledger.seal(pages, records)
        self.table.add(fingerprints(SPACE, keys), pages)

    def round(self, chance: random.Random, hazards: HazardReader) -> None:
        """Evict a few and fill their pages with others."""
        victims = as_pages(*chance.sample(range(PAGES), BATCH))
        stamps = self.ledger.rows()[list(victims), 1]
        self.ledger.leave(victims)
        assert membarrier.barrier() == ""
        stay = hazards.named(victims, stamps)
        back = [page for page, named in zip(victims, stay, strict=True) if named]
        free = [page for page in victims if page not in back]
        self.ledger.stay(back)
        self.ledger.void(free)
        self.turned_back += len(back)
        self.table.remove(fingerprints(SPACE, [self.keys[p] for p in free]), np.array(free))
        absent = sorted(set(KEYS) - {key for p, key in self.keys.items() if p not in free})
        self.fill(free, chance.sample(absent, len(free)))


def main() -> None:
    """Until the reader says stop; prints rounds and blocks that were turned back."""
    shared = Shared(Path(sys.argv[1]))
    index = Index(shared)
    chance = random.Random(1)
    assert membarrier.register() == ""
    print("ready", flush=True)
    sys.stdin.readline()  # the reader's file of hazards is there
    hazards = HazardReader(shared.hazards)
    rounds = 0
    while not shared.stop[0] and rounds < MOST_ROUNDS:
        index.round(chance, hazards)
        rounds += 1
    print(rounds, index.turned_back, flush=True)


if __name__ == "__main__":
    main()
