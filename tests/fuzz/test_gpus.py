"""GPU memory that clients name, as a session's process opens it: one line at most, and no error."""

import ctypes
import mmap
import random
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.device.engine.cuda_ipc import Gpus
from pegaflow.wire.gpu import fault
from pegaflow.wire.layout import LayerLayout, Layout
from tests.fakes import cuda
from tests.fakes.engines import Foreign, fresh

from .gpus import hostile

MEMORIES = 400
LAYOUT = Layout(8, (LayerLayout(0, 0, 512, 512),), "uint8")
DEEP = {"refused": 100, "opened": 40, "cannot open": 40, "does not see": 10}
"""What has to happen at least so often."""


def test_whatever_is_named_is_opened_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(tmp_path, monkeypatch)
    rng, pool = random.Random(1), mmap.mmap(-1, mmap.PAGESIZE)
    session = Gpus(ctypes.addressof(ctypes.c_char.from_buffer(pool)))
    engines = [Foreign(8 * 512), Foreign(8 * 512), Foreign(8 * 512, device=1)]
    sound = [engine.named(0) for engine in engines]
    told = dict.fromkeys(DEEP, 0)
    closed: list[str] = []
    for _ in range(MEMORIES):
        memory = hostile(rng, *sound)
        if fault(memory, len(memory.regions)):
            told["refused"] += 1
            continue
        try:
            session.open(memory, LAYOUT).close(lambda: closed.append("opened"))
            said = closed.pop()
        except UserError as error:
            said = str(error)
            assert "\n" not in said
        for what in told:
            told[what] += what in said
        assert list(cuda.handles()) == [] and not cuda.machine().events_open()
    assert not cuda.machine().errors
    assert all(told[what] >= least for what, least in DEEP.items()), told
