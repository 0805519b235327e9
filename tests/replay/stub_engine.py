"""Stands in for pegaflow.replay.engine: speaks its lines without a service.

What it does is in its job's namespace: `die` ends badly after the first record, `wrong` reports
wrong bytes, `wait` stops after half of its requests until it is killed (in its first life only).
"""

import json
import os
import signal
import sys
from dataclasses import asdict

from pegaflow.replay.engine import Attached, Job, Record


def say(line: Attached | Record) -> None:
    os.write(1, (json.dumps(asdict(line)) + "\n").encode())


with open(sys.argv[1], encoding="utf-8") as file:
    job = Job.load(file.read())
kind = bytes.fromhex(job.namespace).decode().strip()
first_life = sys.argv[1].endswith(".0.json")
if kind == "refuse":
    sys.exit("no service answers")
say(Attached(0.2, 0.01))
half = -(-len(job.requests) // 2)
for done, (index, blocks) in enumerate(job.work()):
    if kind == "wait" and first_life and job.engine == "engine-1" and done == half:
        os.write(1, b'{"index": 77, "asked"')
        signal.pause()
    if kind == "die" and done == 1:
        sys.exit("it fell over")
    size = 100 * len(blocks)
    failures = {"save expired": 1} if index == 0 else {}
    say(
        Record(
            index,
            len(blocks),
            served=len(blocks) // 2,
            verified_bytes=size,
            wrong_bytes=3 if kind == "wrong" else 0,
            wrong="layer 1" if kind == "wrong" else "",
            lookup_seconds=[0.0001],
            load_seconds=0.001,
            load_bytes=size,
            failures=failures,
        )
    )
