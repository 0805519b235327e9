"""Nothing here runs without a GPU that is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pegaflow.device import gpufacts

HERE = Path(__file__).parent


def lacking() -> str:
    """Why nothing here can run; empty if it can."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    facts = gpufacts.read()
    if shown is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = shown  # of other tests of this process
    if facts.error or not facts.devices:
        return f"no GPU: {facts.error or 'the driver shows none'}"
    return f"no cupy: {facts.cupy_error}" if facts.cupy_error else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    why = lacking() if ours else ""
    for item in ours if why else ():
        item.add_marker(pytest.mark.skip(reason=why))
