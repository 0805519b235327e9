"""Every table of perf/ comes out, in its quick form; its figures mean nothing here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from perf.machine import ENVIRONMENT

TABLES = {
    "codec": "decode, read",
    "latency": "/echo",
    "copies": "save/out",
    "attach": "spare",
    "step": "half",
    "recovery": "10,240",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_printed(table: str) -> None:
    command = [sys.executable, "-m", f"perf.{table}", "--quick"]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stderr
    assert TABLES[table] in ran.stdout and "load" in ran.stdout.splitlines()[-1], ran.stdout
