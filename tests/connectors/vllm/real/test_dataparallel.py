"""Two data parallel ranks of a real engine, behind one front end or each launched by somebody else:
what one pair has saved, both ranks of the next pair find."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.procs.service import Service, eventually

from .conftest import ON_CPU, end

LENGTHS = [300, 177]
BLOCKS = sum(length // 32 for length in LENGTHS)
LOST = "blocks were not saved"
Answer = dict[str, Any]


class Child:
    """A process that answers each line with a marked line of JSON."""

    def __init__(self, log: Path, *command: str, **env: str) -> None:
        common = {
            **ON_CPU,
            "VLLM_USE_SPINLOOP_EXT": "1",
            # vLLM gives each data parallel rank a memory node of its own; here they share the first
            "CPU_VISIBLE_MEMORY_NODES": "0,0",
        }
        self._log = log
        with log.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, **common, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def tell(self, line: str) -> None:
        """Ask it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> Answer:
        """Its next answer."""
        assert self._process.stdout is not None
        with self._log.open("a") as log:
            for line in self._process.stdout:
                if line.startswith("RESULT "):
                    parsed: Answer = json.loads(line[7:])
                    return parsed
                log.write(line)
                log.flush()
        raise AssertionError(self.said()[-4000:])

    def said(self) -> str:
        """Everything that it and its children have logged."""
        return self._log.read_text()

    def kill(self) -> None:
        """SIGKILL, with everything it started."""
        end(self._process)


class Pair:
    """Both ranks."""

    children: list[Child]

    def ask(self, ranks: Sequence[int]) -> list[Answer]:
        """What these ranks answer to the prompts."""
        raise NotImplementedError

    def said(self) -> str:
        """Everything that was logged."""
        return "".join(child.said() for child in self.children)


class Behind(Pair):
    """Two ranks behind a front end, which starts them and asks the one that it is told to."""

    def __init__(self, model: str, endpoint: str, folder: Path) -> None:
        self.children = [
            Child(folder / "log", "tests.connectors.vllm.dataparallel", model, endpoint)
        ]

    def ask(self, ranks: Sequence[int]) -> list[Answer]:
        """One after the other."""
        answers = []
        for rank in ranks:
            self.children[0].tell(str(rank))
            answers.append(self.children[0].answer())
        return answers


class Launched(Pair):
    """Two ranks as torchrun starts them: processes with a number, which find each other.

    vLLM counts both into each one's `world_size`.
    """

    def __init__(self, model: str, endpoint: str, folder: Path) -> None:
        launcher = {"data_parallel_size": 2, "distributed_executor_backend": "external_launcher"}
        options = {
            "endpoint": endpoint,
            "lengths": LENGTHS,
            "seed": 8,
            "extra": {"pegaflow.timeout_ms": 20_000},
            "more": launcher,
            "follow": True,
        }
        command = ["tests.connectors.vllm.engine", model, json.dumps(options)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.children = [
            Child(folder / f"log{rank}", *command, RANK=str(rank), LOCAL_RANK=str(rank), **env)
            for rank in range(2)
        ]

    def ask(self, ranks: Sequence[int]) -> list[Answer]:
        """Both work in step, whoever is asked."""
        for child in self.children:
            child.tell("{}")
        answers = [child.answer() for child in self.children]
        return [answers[rank] for rank in ranks]


Computed = dict[type[Pair], list[list[int]]]
KINDS: list[type[Behind] | type[Launched]] = [Behind, Launched]


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, service: Service, model: str, tmp_path: Path
) -> Iterator[Pair]:
    """A fresh pair of the kind that the test is for."""
    made: Pair = request.param(model, service.endpoint, tmp_path)
    with ExitStack() as stack:
        for child in made.children:
            stack.callback(child.kill)
        for child in made.children:
            child.answer()
        yield made


@pytest.fixture(scope="module")
def computed() -> Computed:
    """What the first pair of each kind has answered."""
    return {}


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_what_a_rank_computes_is_saved(service: Service, pair: Pair, computed: Computed) -> None:
    before = service.counter("blocks_sealed")
    (answer,) = pair.ask([0])
    # New blocks were computed; ranks that are asked at once may find some of each other's.
    eventually("it is saved", lambda: service.counter("blocks_sealed") >= before + BLOCKS)
    assert LOST not in pair.said()
    computed[type(pair)] = answer["tokens"]


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_both_ranks_of_the_next_pair_find_it(pair: Pair, computed: Computed) -> None:
    for answer in pair.ask([0, 1]):
        assert answer["tokens"] == computed[type(pair)]
        assert sum(answer["cached"]) >= 32 * (BLOCKS - 2), "the last block may be computed"
    assert LOST not in pair.said()
