"""What perf.chaos does to names: files and directories of the service are removed, or replaced by
copies and empty directories, under load, and a second service is started where one lives.

Each fault puts back what the service itself cannot make again, so that the next one finds it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pegaflow.client import inspect
from pegaflow.core.errors import UserError
from perf.chaosgroup import PATIENCE_S, Group, wait

SOCKETS, RUN_DIR, POOL_FILES = "lock and sockets", "run directory", "pool files"
SSD_DIR, SECOND = "SSD directory", "second service"
REMOVED, REPLACED, STARTED = "removed", "replaced", "started"

FILE_FAULTS = (
    (REMOVED, SOCKETS),
    (REMOVED, RUN_DIR),
    (REMOVED, POOL_FILES),
    (REPLACED, POOL_FILES),
    (REMOVED, SSD_DIR),
    (REPLACED, SSD_DIR),
    (STARTED, SECOND),
)

UNDER_LOAD_S = 1.0
"""How long something stays away: two looks of every process that looks."""


def do(how: str, who: str, group: Group, serves: Callable[[], bool]) -> float:
    """One fault; seconds until an engine is served as before.

    Raises:
        UserError: it never was, or a second service came up.
    """
    began = time.monotonic()
    {SOCKETS: _sockets, RUN_DIR: _run_dir, POOL_FILES: _pool, SSD_DIR: _ssd, SECOND: _second}[who](
        how, group, serves
    )
    wait("there is a front desk", group.up)
    wait(f"all is well after the {who} was {how}", serves)
    return time.monotonic() - began


def _sockets(how: str, group: Group, serves: Callable[[], bool]) -> None:
    for path in [group.run_dir / "lock", *group.run_dir.rglob("*.sock")]:
        path.unlink(missing_ok=True)
    _second(how, group, serves)


def _run_dir(how: str, group: Group, serves: Callable[[], bool]) -> None:
    shutil.rmtree(group.run_dir, ignore_errors=True)
    wait("there is another run directory", lambda: os.path.exists(group.endpoint))
    _second(how, group, serves)


def _pool(how: str, group: Group, serves: Callable[[], bool]) -> None:
    report = inspect(group.endpoint, PATIENCE_S)
    if report is None:
        raise UserError("the service does not say where its pool is")
    paths = [Path(report.pool_path), Path(report.ledger_path)]
    aside = [path.with_name(f"pegaflow-aside-{os.getpid()}-{path.name}") for path in paths]
    for path, away in zip(paths, aside, strict=True):
        path.rename(away)
        if how == REPLACED:
            shutil.copy2(away, path)
    try:
        time.sleep(UNDER_LOAD_S)
        _second(how, group, serves)
        wait(f"all is well while the pool files are {how}", serves)
    finally:
        for path, away in zip(paths, aside, strict=True):
            away.rename(path)


def _ssd(how: str, group: Group, serves: Callable[[], bool]) -> None:
    away = group.ssd.with_name("away")
    group.ssd.rename(away)
    if how == REPLACED:
        group.ssd.mkdir(mode=0o700)
    try:
        time.sleep(UNDER_LOAD_S)
        wait(f"all is well while the SSD directory is {how}", serves)
        if how == REPLACED:
            group.ssd.rmdir()  # it would not go if anything had been written there
    finally:
        away.rename(group.ssd)


def _second(how: str, group: Group, serves: Callable[[], bool]) -> None:
    done = subprocess.run(
        group.command(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode != 1 or "already running" not in done.stderr:
        raise UserError(f"a second service came up, or ended strangely: {done.stderr[-200:]!r}")
