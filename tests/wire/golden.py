"""Append new messages and fields to the golden files: python -m tests.wire.golden

golden.json has the bytes of a sample of each message, fields.json the names of its fields in their
order, by tag: two fields of one type that changed places would give the same bytes.  What is there
stays: it is what released versions have said.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pegaflow.wire.message import encode

from .samples import MESSAGES, sample

FILE = Path(__file__).with_name("golden.json")
NAMES = Path(__file__).with_name("fields.json")


def names() -> dict[str, list[str]]:
    """The fields of every message that goes over a socket, by tag."""
    sent: list[Any] = [kind for kind in MESSAGES if kind.TAG < 200]
    return {str(kind.TAG): [f.name for f in dataclasses.fields(kind)] for kind in sent}


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
    rows_of_names = (f" {json.dumps(tag)}: {json.dumps(said)}" for tag, said in names().items())
    NAMES.write_text("{\n" + ",\n".join(rows_of_names) + "\n}\n")
    print("added:", ", ".join(str(row[0]) for row in new) or "nothing")


if __name__ == "__main__":
    main()
