"""Settings: file < environment < flag; a mistyped key is told the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegaflow import config
from pegaflow.errors import UserError

GIB = 1 << 30


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pegaflow.toml"
    path.write_text('run_dir = "/file"\npool_size = "1GiB"\nspares = 1\nlog_level = "error"\n')
    return path


def test_defaults_need_nothing() -> None:
    settings = config.load({}, {"PEGAFLOW_RUN_DIR": "/r"})
    assert settings == config.Settings(
        run_dir=Path("/r"),
        pool_size=None,
        extent_size=32 << 20,
        spares=2,
        http_addr="127.0.0.1:9091",
        addr=None,
        curve_dir=None,
        insecure_tcp=False,
        log_level="info",
        log_format="auto",
    )


def test_each_layer_overrides_the_one_below(file: Path) -> None:
    env = {"PEGAFLOW_POOL_SIZE": "2g", "PEGAFLOW_SPARES": "3", "PEGAFLOW_CONFIG": str(file)}
    settings = config.load({"spares": 4, "log_format": None}, env)
    assert settings.run_dir == Path("/file")
    assert settings.log_level == "error"
    assert settings.pool_size == 2 * GIB
    assert settings.spares == 4
    assert config.load({"run_dir": "/flag"}, env | {"PEGAFLOW_RUN_DIR": "/env"}).run_dir == Path(
        "/flag"
    )
    assert config.load({}, env | {"PEGAFLOW_RUN_DIR": "/env"}).run_dir == Path("/env")


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('poolsize = "1g"\n')
    with pytest.raises(UserError, match="poolsize in .*c.toml; did you mean pool_size"):
        config.load({}, {}, str(tmp_path / "c.toml"))
    with pytest.raises(UserError, match="PEGAFLOW_POOL; did you mean PEGAFLOW_POOL_SIZE"):
        config.load({}, {"PEGAFLOW_POOL": "1g"})
    with pytest.raises(UserError, match="--log-levle; did you mean --log-level"):
        config.load({"log_levle": "info"}, {})
    with pytest.raises(UserError, match="PEGAFLOW_ZZZ; there are addr, copy_threads, "):
        config.load({}, {"PEGAFLOW_ZZZ": "1"})
    with pytest.raises(UserError, match="unknown setting PEGAFLOW_MODE"):
        config.load({}, {"PEGAFLOW_MODE": "read_only"})  # an engine reads it nowhere


def test_variables_that_are_somebody_elses_are_no_mistake() -> None:
    env = {
        "PEGAFLOW_RUN_DIR": "/r",
        "PEGAFLOW_SERVICE_HOST": "10.0.0.1",
        "PEGAFLOW_PORT_9091_TCP_ADDR": "10.0.0.1",
        "PEGAFLOW_METASERVER_SERVICE_PORT_HTTP": "80",
        "PEGAFLOW_PORT": "tcp://10.0.0.1:9091",
        "PEGAFLOW_ENDPOINT": "/somewhere",
        "PEGAFLOW_HOST": "10.0.0.1",
        "PEGAFLOW_CURVE": "/somewhere/client.toml",
        "PEGAFLOW_TEST_INSTALLED": "1",
        "PEGAFLOW_POOL_SIZE": "",
    }
    assert config.load({}, env) == config.Settings(Path("/r"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool_size", "much"),
        ("pool_size", True),
        ("pool_size", [1]),
        ("extent_size", "33MiB"),
        ("extent_size", "4k"),
        ("spares", "many"),
        ("spares", -1),
        ("spares", 65),
        ("copy_threads", 0),
        ("copy_threads", 17),
        ("http_addr", ""),
        ("http_addr", "9091"),
        ("http_addr", ":9091"),
        ("http_addr", "::1:9091"),
        ("http_addr", "[::1]"),
        ("http_addr", "localhost:65536"),
        ("http_addr", "localhost:http"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("run_dir", ""),
    ],
)
def test_a_bad_value_names_the_setting_and_the_value(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^--{key.replace('_', '-')}: .*") as caught:
        config.load({key: value}, {})
    assert str(value) in str(caught.value)


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*: No such file"):
        config.load({}, {}, str(tmp_path / "none.toml"))
    for content in (b"pool_size = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(UserError, match="is not TOML"):
            config.load({}, {}, str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:9091", "[::1]:9091"),
        ("localhost:80", "localhost:80"),
        ("None", "none"),
    ],
)
def test_http_addresses(said: str, meant: str) -> None:
    assert config.load({"http_addr": said}, {}).http_addr == meant
