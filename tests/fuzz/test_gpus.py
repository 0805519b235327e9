"""GPU memory that clients name, as a session's process opens it: one line at most, and no error."""

import ctypes
import mmap
import os
import random
from pathlib import Path

import pytest

from pegaflow.client.gpu import export
from pegaflow.core.errors import UserError
from pegaflow.device.engine.cuda_ipc import Gpus
from pegaflow.device.procs import start_ticks
from pegaflow.wire.gpu import fault
from pegaflow.wire.layout import LayerLayout, Layout
from tests.fakes import cuda
from tests.fakes.driver import Driver
from tests.fakes.engines import Foreign, fresh
from tests.fakes.vmm import Segment

from .gpus import hostile

MEMORIES = 400
LAYOUT = Layout(8, (LayerLayout(0, 0, 512, 512),), "uint8")
DEEP = {"refused": 100, "opened": 40, "cannot open": 40, "cuMem": 5, "does not see": 10}
"""What has to happen at least so often."""


def test_whatever_is_named_is_opened_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(tmp_path, monkeypatch)
    rng, pool = random.Random(1), mmap.mmap(-1, mmap.PAGESIZE)
    session = Gpus(ctypes.addressof(ctypes.c_char.from_buffer(pool)))
    engines = [Foreign(8 * 512), Foreign(8 * 512), Foreign(8 * 512, device=1)]
    segment = Segment(2, mmap.PAGESIZE)
    region = segment.address, LAYOUT.blocks * 512
    in_pieces = export([region], engines[0].named(0).event, Driver())
    assert in_pieces.lender is not None
    sound = [
        *(engine.named(0) for engine in engines),
        in_pieces.lender.lend(in_pieces.memory),
    ]
    before = cuda.machine().holding.copy()
    told = dict.fromkeys(DEEP, 0)
    closed: list[str] = []
    for _ in range(MEMORIES):
        memory = hostile(rng, *sound)
        if fault(memory, [LAYOUT.blocks * 512] * len(memory.regions)):
            told["refused"] += 1
            continue
        try:
            me = {"pid": os.getpid(), "started_ticks": start_ticks(os.getpid())}
            session.open(memory, LAYOUT, **me).close(lambda: closed.append("opened"))
            said = closed.pop()
        except UserError as error:
            said = str(error)
            assert "\n" not in said
        for what in told:
            told[what] += what in said
        assert list(cuda.handles()) == [] and not cuda.machine().events_open()
        assert +cuda.machine().holding == before and len(cuda.machine().ranges) == 1
    in_pieces.lender.take_back()
    assert not cuda.machine().errors
    assert all(told[what] >= least for what, least in DEEP.items()), told
