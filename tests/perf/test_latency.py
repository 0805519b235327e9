"""The latency table: what it cannot measure is refused before anything is started."""

from __future__ import annotations

import pytest

from pegaflow.core.errors import UserError
from pegaflow.service.settings import Settings
from perf.latency import KEYS, OUTSTANDING, need_blocks

ALL = [(keys, outstanding) for keys in KEYS for outstanding in OUTSTANDING]


def test_fewer_blocks_than_the_leases_need_are_refused_by_name() -> None:
    least = round(max(KEYS) * max(OUTSTANDING) / Settings.max_pinned)
    need_blocks(ALL, least)
    with pytest.raises(UserError, match=f"--blocks {least - 1} is too few, {least} is the least: "):
        need_blocks(ALL, least - 1)
