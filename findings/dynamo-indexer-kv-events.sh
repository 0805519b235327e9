#!/usr/bin/env bash
# ai-dynamo-runtime 1.6.1: what its standalone KV indexer makes of the events that vLLM publishes.
#
# vLLM (0.33, distributed/kv_events.py) numbers its batches of KV events from 0 in each life, says
# AllBlocksCleared when its own GPU cache is reset, and an event may name an owner.  One would guess
# that a router hears an engine that was started again, that what lies in other tiers outlives the
# GPU's cache, and that a word which is new to the router does no harm.
# Seen instead:
#   1. a batch whose number is not beyond the last one known is ignored, without an error: an engine
#      that was started again is not heard, and its blocks of before stay, until it has said as many
#      batches as in its last life.
#   2. AllBlocksCleared takes the blocks of every tier of the engine, CPU and DISK too.
#   3. BlockStored with an `ownership` that it does not know is dropped, without an error.
#
# Output seen (tokens found in GPU, CPU, DISK):
#   stored: 32 64 96
#   cleared: 0 0 0
#   an unknown owner: 0 0 0
#   before the restart: 0 64 64
#   numbers from 0 after it: 0 64 64
#   numbers that go on: 0 32 32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    ai-dynamo-runtime==1.6.1 pyzmq==27.1.0 msgpack==1.2.3
cat >"$folder/try.py" <<'PY'
import json
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any

import msgpack
import zmq

BLOCK = 16
TOKENS = list(range(100, 100 + 6 * BLOCK))
HASHES = [1000 + i for i in range(6)]
PATIENCE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


http, events = free_port(), f"tcp://127.0.0.1:{free_port()}"


def call(path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{http}{path}", data, headers)
    with urllib.request.urlopen(asked, timeout=5) as answer:
        return answer.read()


def found() -> str:
    said = json.loads(call("/query", {"token_ids": TOKENS, "model_name": "m"}))
    tiers = said["instances"].get("1", {})
    return " ".join(str(tiers.get(tier, 0)) for tier in ("gpu", "cpu", "disk"))


def stored(first: int, end: int, medium: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": HASHES[first:end],
        "parent_block_hash": HASHES[first - 1] if first else None,
        "token_ids": TOKENS[first * BLOCK : end * BLOCK],
        "block_size": BLOCK,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
        **more,
    }


CLEARED = {"type": "AllBlocksCleared"}


class Engine:
    """Publishes as vLLM does, numbered from `first`."""

    def __init__(self, first: int) -> None:
        self.socket = zmq.Context.instance().socket(zmq.XPUB)
        self.socket.bind(events)
        assert self.socket.poll(1000 * PATIENCE_S), "nobody subscribes"
        self.number = first

    def say(self, *batch: Any) -> None:
        body = msgpack.packb([time.time(), list(batch), 0])
        self.socket.send_multipart([b"", self.number.to_bytes(8, "big"), body])
        self.number += 1

    def until(self, expected: str, *batch: Any) -> str:
        """What is found once that is as expected, or after a while."""
        self.say(*batch)
        end = time.monotonic() + PATIENCE_S / 6
        while found() != expected and time.monotonic() < end:
            time.sleep(0.05)
        return found()


command = "import dynamo._core as c; c.run_kv_indexer(['--port', '%d', '--threads', '1'])"
indexer = subprocess.Popen([sys.executable, "-c", command % http], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            call("/health")
            break
        except OSError:
            assert time.monotonic() < end, "the indexer does not answer"
            time.sleep(0.1)
    call("/register", {"instance_id": 1, "endpoint": events, "model_name": "m", "block_size": BLOCK})
    engine = Engine(0)
    tiers = [stored(0, 2, "GPU"), stored(0, 4, "CPU"), stored(0, 6, "DISK")]
    print("stored:", engine.until("32 64 96", *tiers))
    print("cleared:", engine.until("0 0 0", CLEARED))
    print("an unknown owner:", engine.until("0 64 64", stored(0, 4, "CPU", ownership="somebody")))
    print("before the restart:", engine.until("0 64 64", stored(0, 4, "CPU")))
    last = engine.number
    engine.socket.close(0)
    engine = Engine(0)
    print("numbers from 0 after it:", engine.until("0 32 32", CLEARED, stored(0, 2, "CPU")))
    engine.number = last
    print("numbers that go on:", engine.until("0 32 32", CLEARED, stored(0, 2, "CPU")))
finally:
    indexer.kill()
PY
"$folder/venv/bin/python" "$folder/try.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
stored: 32 64 96
cleared: 0 0 0
an unknown owner: 0 0 0
before the restart: 0 64 64
numbers from 0 after it: 0 64 64
numbers that go on: 0 32 32
SEEN
