"""What is read of a host's GPUs: from a driver that is not there, and from a tree of files."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegaflow.device import gpufacts
from tests.fakes import engines, gpus
from tests.fakes.driver import Driver

VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (x)\n"
    "GCC version:  gcc version 12.3.0\n"
)


class Management:
    """libnvidia-ml: of the first device it says that it stays, of the other nothing."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus: bytes, handle: Any) -> int:
        handle._obj.value = 1
        return 0 if bus == gpus.BUSES[0].encode() else 6

    def nvmlDeviceGetPersistenceMode(self, handle: Any, mode: Any) -> int:
        mode._obj.value = handle.value
        return 0


PAGES_OF = "sys/kernel/mm/hugepages/hugepages"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two GPUs, on which cupy is installed."""
    engines.fresh(tmp_path / "gpus", monkeypatch)
    files = {
        "dev/nvidiactl": "",
        "dev/shm/x": "",
        "proc/driver/nvidia/version": VERSION,
        "proc/self/mounts": "tmpfs /tmp tmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw,huge=advise 0 0\n"
        f"none {tmp_path / 'root' / 'dev'} hugetlbfs rw 0 0\n",
        # In it pages are as large as in any other folder.
        f"{PAGES_OF}-{os.statvfs(tmp_path).f_bsize >> 10}kB/nr_hugepages": "64",
        "proc/self/ns/pid": "",
        "proc/self/status": "Name:\tx\nCapEff:\t0000000000080000\n",
        "proc/sys/kernel/yama/ptrace_scope": "2\n",
        "sys/bus/pci/devices/0000:65:00.0/numa_node": "1\n",
        "sys/bus/pci/devices/0000:b3:00.0/numa_node": "-1\n",
        "sys/devices/system/node/node0/x": "",
        "sys/devices/system/node/node1/x": "",
    }
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    installed: Callable[[str], str] = importlib.metadata.version

    def version(name: str) -> str:
        return "14.2.0" if name == "cupy-cuda12x" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return tmp_path / "root"


def test_everything_is_read(root: Path) -> None:
    facts = gpufacts.read(root, Driver(compute_mode=3), management=Management())
    one, other = facts.devices
    assert (one.number, one.name, one.bus) == (0, "GPU that is not there", "0000:65:00.0")
    assert one.uuid == "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f"
    assert (one.compute_mode, one.numa_node, one.stays) == (3, 1, True)
    assert (other.bus, other.numa_node, other.stays) == ("0000:b3:00.0", -1, None)
    assert (facts.files, facts.driver, facts.cuda, facts.error) == (True, "580.159.04", (12, 8), "")
    assert facts.apart == ((0, 1),)
    assert (facts.cupys, facts.cupy_error) == ((("cupy-cuda12x", "14.2.0"),), "")
    assert facts.nvrtc_error != ""  # what stands in for cupy compiles nothing
    (place,) = facts.hugetlb
    assert (facts.nodes, place.folder, place.total) == (2, str(root / "dev"), 64)
    assert facts.shm_huge == "advise"
    assert facts.shm_bytes > 0 and facts.own_pids
    assert (facts.trace_scope, facts.may_trace) == (2, True)


def test_a_host_without_anything_is_read_too(tmp_path: Path) -> None:
    facts = gpufacts.read(tmp_path)
    assert not facts.files and facts.driver == "" and facts.nodes == 1 and not facts.own_pids
    assert (facts.hugetlb, facts.shm_bytes, facts.trace_scope) == ((), 0, 0)


def test_a_driver_that_does_not_begin_is_an_error_that_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()
    monkeypatch.setattr(driver, "cuInit", lambda flags: 803)
    facts = gpufacts.read(root, driver, management=Management())
    assert (facts.error, facts.devices) == ("cuInit fails with error 803", ())
    assert facts.driver == "580.159.04"
