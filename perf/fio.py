"""What the disk does under fio: the limit that stands beside every figure of the SSD tier."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pegaflow.errors import UserError

ENGINES = {"psync": ("--numjobs=8", "--iodepth=1"), "io_uring": ("--iodepth=32",)}
"""A thread per request, as the tier has, and one thread with many requests."""


def measure(engine: str, way: str, folders: Sequence[Path], block: int, total: int) -> float | None:
    """Bytes per second of a sequential read or write (`way`) of `total` bytes with O_DIRECT, shared
    by the folders; None without fio, or if this kernel has no such engine."""
    if shutil.which("fio") is None:
        return None
    jobs = 8 if engine == "psync" else len(folders)
    size = total // (jobs if engine == "psync" else len(folders)) // block * block
    command = ["fio", "--name=pegaflow", f"--rw={way}", f"--bs={block}", f"--size={size}"]
    command += ["--direct=1", f"--ioengine={engine}", *ENGINES[engine], "--group_reporting"]
    command += [f"--directory={':'.join(map(str, folders))}", "--output-format=json"]
    command += ["--fallocate=none", "--end_fsync=1"]
    if engine == "io_uring":
        command.append(f"--numjobs={len(folders)}")
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        return None
    job = json.loads(ran.stdout[ran.stdout.index("{") :])["jobs"][0]
    return float(job[way]["bw_bytes"])


def clean(folders: Sequence[Path]) -> None:
    """Remove fio's files."""
    for folder in folders:
        for file in folder.glob("pegaflow.*"):
            if not file.name.endswith((".lock", ".segment")):
                file.unlink()


def need_disk(folder: Path) -> None:
    """Refuse a directory without a disk below it.

    Raises:
        UserError: it is in memory.
    """
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if folder.resolve().is_relative_to(m[1])]
    kind = max(inside, key=lambda m: len(m[1]))[2]
    if kind in ("tmpfs", "ramfs"):
        raise UserError(f"{folder} is in memory ({kind}); name a directory on a disk with --dir")
