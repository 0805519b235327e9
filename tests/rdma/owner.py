"""A host that is read from, in a process of its own, so that it can be stopped and killed.

    python -m tests.rdma.owner LENGTH CHUNK DEVICE...

It answers each line with one: `fill SEED`, `admit READER ASK`, `loop SEED` (fills again and again).
"""

from __future__ import annotations

import itertools
import json
import sys

from pegaflow.core.errors import UserError
from pegaflow.wire.identities import Incarnation
from tests.device.link.verbsrig import TOKEN, Host


def main() -> None:
    length, chunk, *names = sys.argv[1:]
    try:
        host = Host(*names, length=int(length), chunk=int(chunk))
    except UserError as err:
        say(error=str(err))
        return
    say(ready=True)
    for line in sys.stdin:
        what, *rest = line.split()
        if what == "fill":
            host.fill(int(rest[0]))
            say(filled=rest[0])
        elif what == "admit":
            offer = host.owner.admit(Incarnation(int(rest[0])), TOKEN, bytes.fromhex(rest[1]))
            say(offer=offer.hex())
        elif what == "loop":
            say(looping=True)
            for seed in itertools.count(int(rest[0])):
                host.fill(seed)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
