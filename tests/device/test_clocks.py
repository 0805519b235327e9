"""No part of the service looks at the wall clock, which jumps; only log lines carry its time."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "CLOCK_REALTIME"}


def wall_clock(text: str) -> list[int]:
    """Lines that read the wall clock."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time":
            found += [node.lineno] if node.attr in WALL else []
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno] if WALL & {alias.name for alias in node.names} else []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            found += [node.lineno] if "datetime" in names else []
    return found


FILE_TIMES = ("pegaflow/connectors/vllm/digests.py", "pegaflow/connectors/vllm/adapters.py")
"""Compare the times of files, which are the wall clock's, with it; a jump makes them read a file
once more, or trust no digest of it."""


def test_nothing_reads_the_wall_clock() -> None:
    """structlog stamps the lines of pegaflow/service/logs.py by itself."""
    sources = [p for top in ("pegaflow", "actors", "wire") for p in (ROOT / top).rglob("*.py")]
    sources = [p for p in sources if not str(p).endswith(FILE_TIMES)]
    assert len(sources) > 50
    assert [(str(p), line) for p in sources for line in wall_clock(p.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "import time\nx = time.time()",
        "import time\ntime.clock_gettime(time.CLOCK_REALTIME)",
        "from time import time_ns",
        "import datetime",
        "from datetime import datetime",
    ],
)
def test_a_wall_clock_is_found(text: str) -> None:
    assert wall_clock(text)


def test_a_monotonic_clock_is_none() -> None:
    assert wall_clock("import time\ntime.monotonic_ns()\nfrom time import monotonic") == []
