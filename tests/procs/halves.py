"""The connector's halves of an engine with two ranks, in a process that can be killed: it saves a
prompt and then waits for that.

python -m tests.procs.halves ENDPOINT
"""

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from pegaflow.connectors.vllm import compat
from tests.connectors.vllm.fakes import Request, blocks
from tests.connectors.vllm.pair import PATIENCE_S, Pair, plain_memory

WORLD = 2
SAVED = [1, 2, 3, 4, 5, 6, 7]
PROMPT = 25
FOUND = 24


def connect(endpoint: str, world: int = WORLD, **how: Any) -> Pair:
    """An engine at this service."""
    extra: Mapping[str, Any] = {
        "pegaflow.endpoint": endpoint,
        "pegaflow.timeout_ms": 1000 * PATIENCE_S,
    }
    return Pair(extra=dict(extra), world=world, **how)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """For what vLLM brings: tensors, and hashes whose seed is no secret of a process."""
    plain_memory(patch)
    patch.setattr(compat, "first_parent", lambda algorithm: bytes(32))


def save(pair: Pair, request: Request, ids: list[int]) -> None:
    """Compute it; when it ends, every rank's part of it is in the cache."""
    pair.load(request, [])
    pair.scheduler.update_state_after_alloc(request, blocks(ids), 0)
    pair.compute(request, ids)
    pair.until(pair.idle)
    pair.end(request)


def main() -> None:
    """See the module."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        save(connect(sys.argv[1]), Request("a", PROMPT), SAVED)
    print("saved", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
