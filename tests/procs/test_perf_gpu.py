"""What perf.gpu does with a GPU, on one that is not there: all of it but torch, small, in one
service; its figures mean nothing here.

What starts most processes runs with PEGAFLOW_TEST_ALL=1 alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from perf import gpubare, gpulayouts, gpuparts, gputables
from perf.gpucard import METHODS, Bus, Card, GpuShape, Memory
from perf.gpuparts import SMALL, Rows
from perf.gputables import MIB, QUICK
from tests.fakes.engines import SITE

from .gpu import host
from .service import Service

SHAPE = GpuShape(4, 2, 16384)
POOL = 64 * MIB
ALL = pytest.mark.skipif(not os.environ.get("PEGAFLOW_TEST_ALL"), reason="PEGAFLOW_TEST_ALL=1")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gpu")
        host(folder, patch)
        patch.syspath_prepend(str(SITE))
        with Service(folder / "run", extra=("--devices", "0")) as made:
            yield made


@pytest.fixture(scope="module")
def card(service: Service) -> Card:
    return Card()


@pytest.fixture(scope="module")
def bus(card: Card) -> Bus:
    return Bus(card, MIB)


def test_each_layout_is_compared(card: Card, service: Service) -> None:
    shown: Rows = []
    rows = gpuparts.layouts(card, service.endpoint, shown.append)
    assert rows == shown
    assert [row["layout"] for row in rows] == [case.name for case in gpulayouts.cases()]


def test_rounds_are_counted(card: Card, service: Service) -> None:
    (row,) = gpuparts.rounds(card, service.endpoint, count=3)
    assert (row["rounds"], row["one session"], row["device memory lost"]) == ("3", "yes", "0 B")


def test_copies_are_measured_beside_the_bus(card: Card, bus: Bus, service: Service) -> None:
    memory = Memory(card, 2 * SHAPE.total)
    memory.fill(seed=1)
    assert SHAPE.wrong(memory, [0, 3]) == 2 * 2 * SHAPE.layers, "nothing is loaded yet"
    row = gputables.copied(memory, service.endpoint, SHAPE, bus=bus, method=METHODS[0], turns=1)
    assert row["pool registered"] == "64 MiB" and "miss" in row["save/out"]


def test_copies_are_measured_without_a_service(card: Card, bus: Bus) -> None:
    memory = Memory(card, 2 * SHAPE.total)
    memory.fill(seed=1)
    row = gpubare.bare(memory, SHAPE, bus=bus, method=METHODS[-1], turns=1)
    assert row["method"] == METHODS[-1] and float(row["save/out"]) >= 0


def test_a_session_is_killed(card: Card, service: Service) -> None:
    (row,) = gpuparts.session_killed(card, service.endpoint, shape=SMALL, times=1)
    assert row["books add up"] == "yes"


@ALL
def test_an_engine_is_killed(card: Card, service: Service) -> None:
    (row,) = gpuparts.engine_killed(service.endpoint, shape=SMALL, times=1)
    assert row["books add up"] == "yes"


@ALL
def test_ranks_are_counted(card: Card, service: Service) -> None:
    (row,) = gpuparts.ranks(card, service.endpoint)
    assert (row["engine processes"], row["sessions of the engine"]) == ("2", "1")


@ALL
def test_an_attach_is_timed(card: Card, service: Service) -> None:
    row = gputables.attached(card, service.endpoint, POOL, ready=2, size=QUICK)
    assert row["registered"] == "64 MiB" and row["SIGKILL to pidfd"].endswith(" ms")


class Decode:
    """An engine that only looks at the clock."""

    def seconds(self) -> float:
        return time.thread_time() + 1.0


def test_a_decoding_engine_is_measured_beside_copies(service: Service) -> None:
    row = gputables.slowed(Decode(), service.endpoint, SMALL, METHODS[0], 0.01)
    assert row["slower"].endswith("(< 1.02)")
