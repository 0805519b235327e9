"""The original's command line: each flag is honoured, or refused in one line with exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pegaflow.service import config, server, settings

# The original's flags as its own documentation and source have them.
ORIGINAL = """
--addr --devices --pool-size --hint-value-size --use-hugepages --enable-lfu-admission
--disable-numa-affinity --blockwise-alloc --log-level --http-addr --enable-prometheus
--metrics-otel-endpoint --metrics-period-secs --ssd-cache-path --ssd-cache-capacity
--ssd-cache-shards --ssd-write-queue-depth --ssd-prefetch-queue-depth --ssd-write-inflight
--ssd-prefetch-inflight --max-prefetch-blocks --trace-sample-rate --pool-shards --nics
--qps-per-peer --metaserver-addr --metaserver-queue-depth --advertise-addr --metric-hll-windows
--metric-hll-bucket-bits --transfer-lock-timeout-secs
""".split()


def test_every_flag_of_the_original_has_a_fate() -> None:
    ours = {config.flag(key) for key in settings.SETTINGS}
    known = ours | set(server.ALWAYS) | set(server.REFUSED) | set(server.SPELLED)
    assert [f for f in ORIGINAL if f not in known] == []
    assert not ours & set(server.REFUSED)


@pytest.mark.parametrize("flag", sorted(server.REFUSED))
@pytest.mark.parametrize("form", ["{} x", "{}=x", "{}"])
def test_a_refusal_is_one_line_and_status_2(
    flag: str, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--pool-size", "30gb", *form.format(flag).split()]
    monkeypatch.setattr(sys, "argv", ["pegaflow-server", *given])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"pegaflow-server: {flag} is not supported: {server.REFUSED[flag]}\n"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("--pool-size 30gb", "--pool-size 30gb"),
        ("--blockwise-alloc --enable-prometheus", ""),
        ("--disable-numa-affinity --device 1", "--no-numa-affinity --devices 1"),
        ("--device=0,1", "--devices=0,1"),
        ("--use-hugepages", "--use-hugepages"),
        ("--log-level warn", "--log-level warning"),
        ("--log-level=TRACE", "--log-level=debug"),
        ("--log-level error --spares 3", "--log-level error --spares 3"),
        ("--run-dir warn", "--run-dir warn"),
    ],
)
def test_what_can_be_honoured_is_passed_on(given: str, passed: str) -> None:
    assert server.translate(given.split()) == passed.split()


def test_it_serves_with_what_was_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from pegaflow.service import logs, serve

    seen: list[settings.Settings] = []

    def stub(settings: settings.Settings, read_again: Callable[[], settings.Settings]) -> int:
        seen.append(settings)
        assert read_again() == settings
        return 0

    monkeypatch.setattr(serve, "serve", stub)
    monkeypatch.setattr(logs, "configure", lambda *args, **kwargs: None)
    monkeypatch.setattr(logs, "enable_faulthandler", lambda: None)
    for name in ("PEGAFLOW_LOG_LEVEL", "PEGAFLOW_LOG_FORMAT"):
        monkeypatch.setenv(name, "")  # what it sets for its children ends with this test
    given = "--pool-size 1gb --blockwise-alloc --log-level warn --run-dir /r".split()
    given += "--ssd-cache-path /ssd --ssd-cache-capacity 512gb --ssd-write-queue-depth 8".split()
    given += "--ssd-write-inflight=3 --ssd-prefetch-inflight 16 --max-prefetch-blocks 800".split()
    monkeypatch.setattr(sys, "argv", ["pegaflow-server", *given])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 0
    (got,) = seen
    assert (got.pool_size, got.log_level) == (1 << 30, "warning")
    assert (got.ssd_cache_path, got.ssd_cache_capacity) == (("/ssd",), 512 << 30)
    assert (got.ssd_write_queue_depth, got.ssd_write_inflight) == (8, 3)
    assert (got.ssd_prefetch_inflight, got.max_prefetch_blocks) == (16, 800)


def test_an_unknown_flag_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pegaflow-server", "--pool-sizes", "1gb"])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 2
    assert "--pool-size" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_its_help_is_its_own(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pegaflow-server", flag])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    said = "".join(out.split())
    assert out.startswith("Usage: pegaflow-server [OPTIONS]") and "pegaflow serve" not in out
    assert all(name in said for name in [*server.REFUSED, *server.ALWAYS])


def test_it_tells_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pegaflow-server", "--version"])
    server.main()
    assert capsys.readouterr().out.startswith("pegaflow-server ")


def test_whoever_starts_the_metaserver_is_told_what_replaces_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        server.metaserver()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--peer-listen" in line and "--peers" in line
