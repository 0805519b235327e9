"""What the disk does under fio: the limit that stands beside every figure of the SSD tier."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pegaflow.core.errors import UserError

ENGINES = {"psync": 1, "io_uring": 32}
"""Requests that a job has under way.  With one there are eight jobs, as the tier has threads; with
many, one for each folder."""

NAME = "fio-beside"
"""Of fio's job, and with a number behind it of its files."""


def measure(engine: str, way: str, folders: Sequence[Path], block: int, total: int) -> float | None:
    """Bytes per second of a sequential read or write (`way`) of `total` bytes with O_DIRECT, shared
    by the folders; None without fio, or if this kernel has no such engine.  Writes are synced at
    the end.

    Raises:
        UserError: its jobs did not have a file each, so its figure would be that of a cache.
    """
    if shutil.which("fio") is None:
        return None
    jobs = 8 if engine == "psync" else len(folders)
    size = total // jobs // block * block
    command = ["fio", f"--name={NAME}", f"--rw={way}", f"--bs={block}", f"--size={size}"]
    command += ["--direct=1", f"--ioengine={engine}", f"--iodepth={ENGINES[engine]}"]
    command += [f"--directory={':'.join(str(f.absolute()) for f in folders)}"]
    command += ["--fallocate=none", "--end_fsync=1", f"--numjobs={jobs}"]
    command += ["--group_reporting", "--output-format=json"]
    # a job takes its name for that of a device, if something of that name lies where it runs
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folders[0])
    if ran.returncode:
        return None
    files = [file for folder in folders for file in folder.glob(f"{NAME}.*")]
    if sum(file.stat().st_size for file in files) != jobs * size:
        raise UserError(f"fio's {jobs} jobs had {len(files)} files: it measures a cache")
    job = json.loads(ran.stdout[ran.stdout.index("{") :])["jobs"][0]
    return float(job[way]["bw_bytes"])


def clean(folders: Sequence[Path]) -> None:
    """Remove fio's files."""
    for folder in folders:
        for file in folder.glob(f"{NAME}.*"):
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
