"""Writes groups into a log until it is killed: python -m tests.writer FOLDER POOL SEGMENT SEED

After each sync it says which blocks are durable.  Segments are sealed and new ones made on the way.
"""

import json
import random
import sys
from pathlib import Path

from pegaflow.wire.diskjobs import MakeSegment, SyncSegment
from pegaflow.wire.layout import PAGE_ALIGN
from tests.device.disks import PAGE, SEGMENT, Bench, key_of


def main() -> None:
    folder, pool, segment, seed = sys.argv[1:]
    random_ = random.Random(int(seed))
    bench = Bench(Path(folder), Path(pool))
    bench.open()
    number, key = int(segment), int(seed) * 100_000
    while True:
        bench.work(MakeSegment(0, number, SEGMENT))
        offset, index = PAGE_ALIGN, 0
        while True:
            count = random_.randint(1, 8)
            length = PAGE_ALIGN + count * bench.shards * PAGE
            if offset + length > SEGMENT - 16 * PAGE_ALIGN:
                break
            numbers = list(range(key, key + count))
            bench.work(bench.group(number, index, offset, [key_of(n) for n in numbers]))
            offset, index, key = offset + length, index + 1, key + count
            if random_.random() < 0.7:
                bench.work(SyncSegment(0, number))
                print(json.dumps([number, numbers]), flush=True)
        bench.seal(number, offset)
        number += 1


if __name__ == "__main__":
    main()
