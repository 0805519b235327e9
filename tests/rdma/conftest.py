"""Nothing here runs without RDMA devices; soft-RoCE (rdma_rxe) is enough.

What needs a pair of devices that are joined by a cable, so that packets can be lost on it, runs on
rxeA and rxeB at the ends of the veth pair vtA and vtB, and as root.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.device.link.verbs_lib import devices

HERE = Path(__file__).parent
PAIR = ("rxeA", "rxeB")


def lacking() -> str:
    """Why nothing here can run; empty if it can."""
    if not devices():
        return "no RDMA device (rdma link add rxe0 type rxe netdev ...)"
    try:
        importlib.import_module("pyverbs.device")
    except ImportError as err:
        return f"no pyverbs: {err}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    why = lacking() if ours else ""
    for item in ours if why else ():
        item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def alone() -> list[str]:
    """Devices that each reach themselves."""
    return [name for name in devices() if name not in PAIR]


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two devices at the ends of one cable, which is whole again afterwards."""
    if not set(PAIR) <= set(devices()) or os.geteuid():
        pytest.skip(f"no {PAIR[0]} and {PAIR[1]}, or not root")
    # A READ over 1,000 packets would lose some of them between the two ends.
    run("sysctl", "-q", "-w", "net.core.netdev_max_backlog=20000")
    yield PAIR
    run("tc", "qdisc", "replace", "dev", "vtA", "root", "noqueue")
    for end in ("vtA", "vtB"):
        run("ip", "link", "set", end, "up")


def run(*command: str) -> None:
    subprocess.run(command, check=True)
