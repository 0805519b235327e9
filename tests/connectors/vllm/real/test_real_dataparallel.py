"""Two data parallel ranks of a real engine: what one has saved, the other finds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.procs.service import Service, eventually

BLOCKS = 300 // 32 + 177 // 32


class Pair:
    """`tests.connectors.vllm.dataparallel` as a process."""

    def __init__(self, model: str, service: Service, log: Path) -> None:
        command = ["nice", "-n", "19", sys.executable, "-m", "tests.connectors.vllm.dataparallel"]
        env = {
            **os.environ,
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_USE_SPINLOOP_EXT": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        self._log = log
        with log.open("w") as err:
            self._process = subprocess.Popen(
                [*command, model, service.endpoint],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                parsed: dict[str, Any] = json.loads(line[7:])
                return parsed
        raise AssertionError(self._log.read_text()[-4000:])

    def ask(self, rank: int) -> dict[str, Any]:
        """The same prompts, at this rank."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rank}\n")
        self._process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """SIGKILL, with everything it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def test_what_one_rank_has_saved_the_other_finds(
    service: Service, model: str, tmp_path: Path
) -> None:
    pair = Pair(model, service, tmp_path / "log")
    first = pair.ask(0)
    assert first["cached"] == [0, 0]
    eventually("it is saved", lambda: service.counter("blocks_sealed") >= BLOCKS)
    second = pair.ask(1)
    assert second["tokens"] == first["tokens"]
    assert sum(second["cached"]) >= 32 * (BLOCKS - 2), "the last block may be computed"
    pair.kill()
