"""Append the bytes of new or changed messages to golden.json: python -m tests.wire.golden

What is there stays: it is what released versions have said.
"""

import json
from pathlib import Path

from pegaflow.wire.message import encode

from .samples import MESSAGES, sample

FILE = Path(__file__).with_name("golden.json")


def main() -> None:
    """Append, and say what."""
    text = FILE.read_text()
    known = json.loads(text)["messages"]
    rows = [
        [kind.__name__, kind.TAG, encode(sample(kind)).hex()] for kind in MESSAGES if kind.TAG < 200
    ]
    new = [row for row in rows if row not in known]
    if new:
        last = json.dumps(known[-1])
        FILE.write_text(
            text.replace(last, ",\n    ".join([last, *(json.dumps(row) for row in new)]))
        )
    print("added:", ", ".join(str(row[0]) for row in new) or "nothing")


if __name__ == "__main__":
    main()
