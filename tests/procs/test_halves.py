"""The connector's halves over a real service: an engine of two ranks is killed, and the next one
finds what it has saved."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest

from tests.connectors.vllm.fakes import Request
from tests.connectors.vllm.pair import SCHEDULER, Pair

from .halves import FOUND, PROMPT, SAVED, connect, stand_in
from .service import Service

LOADED = [10, 11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that an engine has saved a prompt to; then that engine was killed."""
    with Service(tmp_path_factory.mktemp("run")) as made:
        command = [sys.executable, "-m", "tests.procs.halves", made.endpoint]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as engine:
            try:
                assert engine.stdout is not None
                assert engine.stdout.readline() == "saved\n"
            finally:
                engine.kill()
        yield made


@pytest.fixture(autouse=True)
def stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """See halves.py."""
    stand_in(monkeypatch)


def finds(pair: Pair, request: Request) -> None:
    """What the killed engine has saved, in every rank."""
    pair.memories[:, :, LOADED] = 0
    seen = len(pair.received)
    assert pair.load(request, LOADED) == FOUND
    pair.until(lambda: len(pair.received) == seen + 1)
    assert pair.errors == set() and pair.holds(LOADED, SAVED[:6])
    assert not pair.finish(request)


@pytest.mark.parametrize("order", list(permutations([SCHEDULER, 0, 1])))
def test_the_next_engine_finds_what_two_ranks_have_saved(
    service: Service, order: Sequence[int]
) -> None:
    early = Request("early", PROMPT)
    pair = connect(service.endpoint, order=order, early=early)
    finds(pair, early)
    finds(pair, Request("later", PROMPT))
    pair.close()


def test_an_engine_that_comes_up_while_the_service_is_slow_to_answer_finds_it_too(
    service: Service,
) -> None:
    os.kill(service.pid, signal.SIGSTOP)
    try:
        early = Request("early", PROMPT)
        pair = connect(service.endpoint, order=[SCHEDULER, 0, 1], early=early, waits=False)
        for _ in range(20):
            pair.step()
            assert pair.scheduler.get_num_new_matched_tokens(early, 0) == (None, False)
    finally:
        service.resume()
    finds(pair, early)
    pair.close()
