"""The command against real processes: a service, two engines, one of them killed."""

import gzip
import json
import re
import socket as socket_module
from dataclasses import asdict
from pathlib import Path

import pytest

from pegaflow.client import inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import cli, service
from pegaflow.replay.cli import replay_command
from pegaflow.replay.engine import Job, Shape, main
from pegaflow.replay.reading import Options, read
from pegaflow.replay.runner import Outcome
from pegaflow.replay.trace import BUNDLED
from tests.replay.counting import exact


def test_replay_through_a_real_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(BUNDLED) as lines:
        text = b"".join(next(lines) for _ in range(40))
    trace = tmp_path / "twice.jsonl"
    trace.write_bytes(text)
    with service.running(128 << 20) as endpoint:
        run_dir = str(Path(endpoint).parent)
        code = replay_command(trace, trace, restart=1, layers=2, layer_size="4KiB", run_dir=run_dir)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "bytes wrong" in said.out and "failures" not in said.out
    assert not Path(run_dir).exists()
    first, *rows = said.out.splitlines()
    assert first.startswith("Mooncake, 512 tokens a block (it fits every row), ids mean the same")
    assert "; 80 requests, " in first
    assert any(row.startswith("restarted engine    attached ") for row in rows)
    words = " ".join(said.out[said.out.index("Of ") :].split())
    assert "blocks asked for in 80 requests" in words and "every one was right" in words


def test_one_engine_in_a_large_pool_hits_what_an_exact_count_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of Weka's conversations, whose ids are the same numbers and not the same blocks."""
    turns = [[*range(1, 20)], [*range(1, 30)], [*range(1, 15), *range(40, 60)], [*range(1, 45)]]
    requests = [{"t": 0.0, "type": "n", "in": 64 * len(ids) + 5, "hash_ids": ids} for ids in turns]
    weka = {"id": "t", "block_size": 64, "hash_id_scope": "local", "requests": requests}
    trace = tmp_path / "weka.jsonl"
    trace.write_text(2 * (json.dumps(weka) + "\n"))
    wanted = exact((n, ids) for n in range(2) for ids in turns)
    with service.running(128 << 20) as endpoint:
        run_dir = str(Path(endpoint).parent)
        code = replay_command(trace, engines=1, layers=2, layer_size="4KiB", run_dir=run_dir)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"blocks asked        {wanted.asked}\n" in said.out
    assert f"blocks served       {wanted.hit}\n" in said.out
    assert f"{100 * wanted.rate:.1f} %; an infinite cache: {100 * wanted.rate:.1f} %" in said.out


@pytest.mark.parametrize("socket", [False, True])
def test_without_a_service_nothing_is_begun(
    socket: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither where there is no socket nor where nobody answers at it; no engine is started."""
    monkeypatch.setattr("pegaflow.replay.service.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("pegaflow.replay.cli.run", lambda *_: pytest.fail("engines were started"))
    if socket:
        with socket_module.socket(socket_module.AF_UNIX) as left:
            left.bind(str(tmp_path / "pegaflow.sock"))
    assert replay_command(BUNDLED, run_dir=str(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert str(tmp_path / "pegaflow.sock") in said.err and "`pegaflow serve`" in said.err


def test_engines_that_are_all_refused_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No table of zeros before the reason."""
    monkeypatch.setattr("pegaflow.replay.service.missing", lambda endpoint: "")
    refused = Outcome(errors=["engine 0 ended with status 1: refused"])
    monkeypatch.setattr("pegaflow.replay.cli.run", lambda *_: refused)
    assert replay_command(BUNDLED, run_dir=str(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.out.count("\n") == 1  # how the trace was read
    assert said.err == "pegaflow: engine 0 ended with status 1: refused\n"


def test_no_service_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegaflow.replay.engine.CONNECT_SECONDS", 0.1)
    job = Job(
        "e",
        bytes(16).hex(),
        str(tmp_path / "none.sock"),
        Shape(1, 4096, 1),
        spawned_ns=0,
        tree="",
        requests=[],
    )
    path = tmp_path / "job.json"
    path.write_text(json.dumps(asdict(job)))
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"no service runs in {tmp_path}: its socket ")


def test_a_service_that_cannot_start_says_why() -> None:
    with pytest.raises(UserError, match="the service did not start: .*"), service.running(1):
        raise AssertionError("a pool of one byte")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"engines": 0}, "--engines"),
        ({"restart": 2}, "there is no engine 2"),
        ({"requests": 0}, "--requests"),
        ({"layers": 0}, "--layers"),
        ({"layer_size": "big"}, "not a size"),
        ({"layer_size": "1TiB"}, "an engine would need"),
        ({"format": "csv"}, "--format is one of auto, aiperf, bailian, dynamo, mooncake, weka"),
        ({"ids": "local"}, "--ids is one of auto, global, file, conversation"),
        ({"block_tokens": 0}, "--block-tokens is a number from 1"),
    ],
)
def test_wrong_arguments_are_one_line(
    options: dict[str, object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_command(BUNDLED, **options) == 2  # type: ignore[arg-type]
    line = capsys.readouterr().err
    assert line.startswith("pegaflow: ") and why in line and line.count("\n") == 1


def test_an_unreadable_trace_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replay_command(tmp_path / "none") == 2
    assert "none: No such file" in capsys.readouterr().err
    monkeypatch.setattr("pegaflow.replay.service.missing", lambda endpoint: "")
    (tmp_path / "short").write_text('{"input_length": 5, "hash_ids": [1]}')
    assert replay_command(tmp_path / "short") == 2
    assert "no request with a full block" in capsys.readouterr().err


def test_a_demo_that_is_kept_can_be_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look() -> None:
        (folder,) = re.findall(r"--run-dir (\S+)", capsys.readouterr().out)
        looked.append(folder)
        report = inspect(str(Path(folder, "pegaflow.sock")))
        assert report is not None and report.pool_bytes == 64 << 20 and report.http_addr

    monkeypatch.setattr(cli, "read", lambda paths: read(paths, Options(limit=20)))
    monkeypatch.setattr("pegaflow.replay.cli.signal.pause", look)
    assert cli.demo_command("64MiB", keep=True) == 0
    (folder,) = looked
    assert not Path(folder).exists(), "nothing is left once it has ended"


def test_a_demo_without_room_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.demo_command("plenty") == 2
    assert "--pool-size: not a size: 'plenty'" in capsys.readouterr().err
    assert cli.demo_command("100TiB") == 1
    line = capsys.readouterr().err
    assert "does not fit" in line and line.count("\n") == 1
