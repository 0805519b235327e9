"""An engine that looks up all it can, loads nothing and asks again, beside one that saves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.client.results import Lease

from .service import Engine, Service, eventually, keys
from .test_gateway import Served

CHUNK = 64  # blocks of 64 KiB: 4 MiB
POOL_CHUNKS = 16
BLOCKS = list(range(CHUNK))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "run", http_addr="127.0.0.1:0") as made:
        yield made


def save(engine: Engine, chunk: int) -> int:
    engine.fill(BLOCKS, seed=chunk * CHUNK)
    return engine.client.save(keys(CHUNK, chunk), BLOCKS).saved


def grab(engine: Engine, chunks: range) -> list[Lease]:
    """Look up all of these, and keep what there is."""
    found = [engine.client.lookup(keys(CHUNK, chunk)) for chunk in chunks]
    return [hit.lease for hit in found if hit.lease is not None]


def test_a_greedy_engine_keeps_no_neighbour_from_saving(served: Served) -> None:
    chunks = range(POOL_CHUNKS - 2)
    with Engine(served, "neighbour") as neighbour, Engine(served, "greedy") as greedy:
        assert all(save(neighbour, chunk) == CHUNK for chunk in chunks)
        for turn in range(12):
            grab(greedy, chunks)
            assert save(neighbour, 100 + turn) == CHUNK, f"turn {turn}"
            found = neighbour.client.lookup(keys(CHUNK, 100 + turn))
            assert found.lease is not None and found.blocks == CHUNK
            neighbour.client.release(found.lease)
        half = POOL_CHUNKS * CHUNK // 2 * 65536
        eventually("it is told", lambda: "engine_pins_too_much" in served.log())
        assert served.log().count("engine_pins_too_much") == 1
        assert '"engine": "greedy"' in _line(served, "engine_pins_too_much")
        eventually("what is pinned is counted", lambda: pinned(served) > 0)
        assert pinned(served) <= half
        eventually("status says so", lambda: "engine greedy holds" in served.status_text())
        eventually("and readyz", lambda: "engine greedy holds" in served.get("/readyz")[1])
        eventually("and the metrics", lambda: _metric(served) == 1)
        found = neighbour.client.lookup(keys(CHUNK, 111))
        assert found.lease is not None
        neighbour.view[:] = 0
        assert not neighbour.client.load(found.lease, BLOCKS).failed
        assert neighbour.holds(BLOCKS, seed=111 * CHUNK)
    eventually("all is given back", lambda: pinned(served) == 0)


def test_many_greedy_engines_keep_no_neighbour_from_saving(served: Served) -> None:
    chunks = range(POOL_CHUNKS - 2)
    with Engine(served, "neighbour") as neighbour:
        assert all(save(neighbour, chunk) == CHUNK for chunk in chunks)
        greedy = [Engine(served, f"greedy-{n}").attach() for n in range(3)]
        for turn in range(6):
            for engine in greedy:
                grab(engine, chunks)
            assert save(neighbour, 100 + turn) == CHUNK, f"turn {turn}"
        for engine in greedy:
            engine.client.close()


def pinned(served: Served) -> int:
    """Bytes that leases keep from eviction, the index's and the sessions' own."""
    return served.counter("pinned_bytes") + served.counter("hazard_pinned_bytes")


def _metric(served: Served) -> float:
    """Engines that are shown to want more than they may."""
    return served.metrics()["pegaflow_engine_pins_too_much"]


def _line(served: Service, event: str) -> str:
    (line,) = [line for line in served.log().splitlines() if event in line]
    return line
