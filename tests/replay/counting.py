"""An exact count by brute force, which shares no code with what it checks.

A prompt is the tuple of its full blocks' ids with its scope in front; a block is hit if the whole
tuple up to it was seen before, and everything before it was hit too.
"""

from array import array
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pegaflow.replay.ceiling import Score, infinite
from pegaflow.replay.reading import Options, read
from pegaflow.replay.trace import Trace
from pegaflow.replay.tree import Clash, Tree
from pegaflow.replay.tree import Prompt as Ids

Prompt = tuple[Hashable, Sequence[Hashable]]
"""The scope of its ids, and the ids of its full blocks."""


def exact(prompts: Iterable[Prompt]) -> Score:
    seen: set[tuple[Hashable, ...]] = set()
    asked = hit = 0
    for scope, ids in prompts:
        prefixes = [(scope, *ids[: n + 1]) for n in range(len(ids))]
        asked += len(prefixes)
        for prefix in prefixes:
            if prefix not in seen:
                break
            hit += 1
        seen.update(prefixes)
    return Score(asked, hit)


def traced(chains: Sequence[Sequence[int]]) -> Trace:
    """A trace of these prompts, without a file."""
    tree = Tree()
    ends = tree.add(0, [Ids(0, np.array(chain, dtype=np.uint64)) for chain in chains], False)
    assert not isinstance(ends, Clash)
    return Trace(tree, array("i", ends.tolist()), array("I", map(len, chains)), "made up")


def read_one(path: Path, **options: object) -> Trace:
    return read([path], Options(**options))  # type: ignore[arg-type]


def score(path: Path, **options: object) -> Score:
    return infinite(read_one(path, **options))
