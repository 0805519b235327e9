"""A real engine as a child process; everything here is skipped where vLLM is not installed."""

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.connectors.vllm import model as models
from tests.procs.service import Service, eventually

REASON = "vLLM is not installed here; `tox -e vllm` installs it and runs these"
PATIENT = {"pegaflow.timeout_ms": 20_000}  # what is measured is hits, not a busy machine's speed
ON_CPU = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""Of an engine's environment. Two threads would wait for each other longer than they compute: four
prompts of a tiny model take five times the time then."""
Answer = dict[str, Any]


def vllm_version() -> tuple[int, int]:
    """Major and minor of the vLLM that is installed here; (0, 0): none is."""
    try:
        major, minor = importlib.metadata.version("vllm").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


VLLM = vllm_version()
DRAWS_SEEDS = (0, 0) < VLLM < (0, 29)
"""Whether its hashes are its own in every process unless PYTHONHASHSEED is set."""
if DRAWS_SEEDS:
    os.environ.setdefault("PYTHONHASHSEED", "0")
TELLS_SOURCES = VLLM >= (0, 32)
"""Whether it counts from which tier a hit came."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with a reason."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=REASON))


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL, with everything it started, and nothing of it left open here."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


class Engine:
    """`tests.connectors.vllm.engine` as a process that answers one batch per `run`."""

    def __init__(
        self, model: str, log: Path, fault: Path, *, seeded: bool = True, **options: Any
    ) -> None:
        # Its ranks wait for each other by sched_yield, which on Linux 6.18 keeps every process on
        # their cores from running for up to 20 s at a time, unless that weighs more than they do.
        command = ["nice", "-n", "19", sys.executable, "-m", "tests.connectors.vllm.engine", model]
        command.append(json.dumps({**options, "follow": True}))
        ranks = options.get("tp", 1)
        cores = map(str, sorted(os.sched_getaffinity(0))[:ranks])
        env = {
            **os.environ,
            **ON_CPU,
            "PEGAFLOW_TEST_FAULT": str(fault),
            "VLLM_USE_SPINLOOP_EXT": "1",
        }
        if ranks > 1:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(cores)
        if not seeded:
            env.pop("PYTHONHASHSEED", None)
        fault.write_text("")
        self.fault = fault
        self._external = 0  # tokens found in the cache so far
        self._log = log
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        self._answer()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        with self._log.open("a") as log:
            for line in self._process.stdout:
                if line.startswith("RESULT "):
                    parsed: Answer = json.loads(line[7:])
                    return parsed
                log.write(line)
                log.flush()
        raise AssertionError(self._log.read_text()[-20000:])

    def run(self, fault: str = "", **options: Any) -> Answer:
        """One batch; the answer, with "external" as what this batch added."""
        assert self._process.stdin is not None
        self.fault.write_text(fault)
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._answer()
        finally:
            self.fault.write_text("")
        if "died" in answer and "kill_rank_after" not in options:
            raise AssertionError(self._log.read_text()[-20000:])
        total = answer.get("external", 0)
        answer["external"], self._external = total - self._external, total
        return answer

    def said(self, words: str) -> list[str]:
        """Lines of its log with these words."""
        return [line for line in self._log.read_text().splitlines() if words in line]

    def kill(self) -> None:
        """SIGKILL, with everything it started."""
        end(self._process)


class Told:
    """What a process says of what it does, by name; read no further than a test needs, for all of
    it may take minutes."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, name: str) -> None:
        self._log = log
        self._name = name  # the key of an answer under which it is kept
        self._said: dict[str, Answer] = {}
        self._last = ""  # the newest, which may be said again
        with log.open("w") as err:
            self._process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=err, text=True
            )

    def __getitem__(self, name: str) -> Answer:
        """The last answer of this name."""
        while (name not in self._said or name == self._last) and self._read():
            pass
        assert name in self._said, self._log.read_text()[-4000:]
        return self._said[name]

    def _read(self) -> bool:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                answer: Answer = json.loads(line[7:])
                self._last = answer[self._name]
                self._said[self._last] = answer
                return True
        assert self._process.wait() == 0, self._log.read_text()[-4000:]
        return False

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


Start = Callable[..., Engine]
Truth = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("model")
    models.make(str(path))
    return str(path)


def make(kind: str, folder: pytest.TempPathFactory) -> str:
    """Where a tiny model of this kind is."""
    path = str(folder.mktemp(kind))
    subprocess.run([sys.executable, "-m", "tests.connectors.vllm.model", path, kind], check=True)
    return path


@pytest.fixture(scope="module")
def start(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts engines, of another model if one is named; all are killed in the end."""
    started: list[Engine] = []

    def run(of: str = "", **options: Any) -> Engine:
        folder = tmp_path_factory.mktemp("engine")
        started.append(Engine(of or model, folder / "log", folder / "fault", **options))
        return started[-1]

    yield run
    for engine in started:
        engine.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with room for everything the tests save."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="512MiB") as made:
        yield made


@pytest.fixture(scope="module")
def own_service(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for one model."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="256MiB") as made:
        yield made


def fill(engine: Engine, truth: Truth) -> None:
    """Run the prompts until they come from the cache: a busy machine may drop a save."""

    def hits() -> bool:
        answer = engine.run(reset=True)
        assert answer["tokens"] == truth() and answer["left"] == [0, 0]
        return bool(answer["external"] >= 0.85 * answer["prompt"])

    eventually("a batch is answered from the cache", hits, patience=90)


def answers(engine: Engine) -> Truth:
    """What an engine answers by its own computation, for a number of tokens and other prompts."""
    known: dict[tuple[int, int], list[list[int]]] = {}

    def tokens(count: int = 24, seed: int = 7) -> list[list[int]]:
        if (count, seed) not in known:
            known[count, seed] = engine.run(tokens=count, seed=seed, reset=True)["tokens"]
        return known[count, seed]

    return tokens


@pytest.fixture(scope="module")
def truth(start: Start) -> Iterator[Truth]:
    """What an engine without any connector answers."""
    engine = start()
    yield answers(engine)
    engine.kill()
