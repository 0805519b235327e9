"""A session, and an engine whose memory it moves."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cuda
from tests.fakes.engines import Foreign, fresh

from .session import PLANE, Session


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    fresh(tmp_path, monkeypatch)
    yield Session()
    assert not cuda.machine().errors, "the device has met an error"


@pytest.fixture
def engine(session: Session) -> Foreign:
    made = Foreign(4 * PLANE, before=256)
    made.bytes[:] = np.random.default_rng(1).integers(0, 256, 4 * PLANE, np.uint8)
    return made
