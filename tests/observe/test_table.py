"""What `pegaflow status` prints, on a terminal of 80 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pegaflow.observe import table as statustable
from pegaflow.wire.control import Report
from pegaflow.wire.values import GATEWAY, INDEX, SESSION, SUPERVISOR

from .test_metrics import AT, S, flusher, kind, report, row

ENGINE = "5f0cd9b4-9d3c-4f0e-8a64-2f8c5f6f2b11"
PATH = "/dev/shm/pegaflow-0123456789abcdef0123456789abcdef0123456789abcdef.1.pool"
UP = {"volumes": 1, "readable_volumes": 1, "writable_volumes": 1, "blocks": 5, "bytes": 3 << 20}


def shown(what: Report) -> list[str]:
    out = io.StringIO()
    statustable.show(what, Console(file=out, width=80))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def served(*engines: str) -> Report:
    more = tuple(
        row(SESSION, 12340 + at, "assigned", engine, engine_seat=at + 3)
        for at, engine in enumerate(engines)
    )
    found = report(more=more)
    return replace(found, pool_path=PATH)


def test_a_row_is_a_line_and_a_uuid_fits() -> None:
    lines = shown(served(ENGINE, ENGINE[::-1]))
    assert lines[0].split() == ["process", "pid", "state", "seat", "engine"]
    assert lines[1].split() == ["supervisor.1", "1", "up", "-", "-"]
    assert lines[4].split() == ["session.4", "4", "serving", "1", "a"]
    assert lines[7].split() == ["session.12340", "12340", "assigned", "3", ENGINE]
    assert lines[8].split() == ["session.12341", "12341", "assigned", "4", ENGINE[::-1]]
    assert all(len(line) <= 80 for line in lines if PATH not in line)


def test_a_longer_id_goes_on_in_its_own_column_and_nothing_else_wraps() -> None:
    long = "prefill-" + 3 * ENGINE
    lines = shown(served(long))
    first = lines[7].split()
    assert first[:4] == ["session.12340", "12340", "assigned", "3"]
    rest = [line.split() for line in lines[8 : lines.index("pool: 60 B, 30 B in use")]]
    assert "".join([first[4], *(part for (part,) in rest)]) == long
    assert all(len(line) <= 80 for line in lines if PATH not in line)


def test_a_path_is_never_broken() -> None:
    assert f"pool file: {PATH}" in shown(served())


def test_each_subject_has_a_line() -> None:
    numbers = (
        kind(SUPERVISOR),
        kind(INDEX, blocks_asked=100, blocks_hit=60),
        kind(GATEWAY, "broken", AT + 9 * S),
    )
    lines = shown(report("up", *numbers, more=(flusher(**UP), row(GATEWAY, 8, "up", http_port=80))))
    assert lines[-8:] == [
        "pool: 60 B, 30 B in use",
        "pool file: p",
        "cache: 7 blocks, hit rate 60.0 % of 100 blocks",
        "engines: 2, 4 waiting",
        "ssd: writable; 5 blocks in 3 MiB",
        "http: http://127.0.0.1:80/metrics",
        "restarts: supervisor 2, index 2, gateway 2",
        "gateway is broken: it is tried again in 9.0 s",
    ]


@pytest.mark.parametrize("id_", ["[red]x[/red]", "[/]", ":smile:"])
def test_an_engines_id_is_no_markup(id_: str) -> None:
    assert any(line.endswith(id_) for line in shown(served(id_)))
