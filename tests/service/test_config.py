"""Settings: file < environment < flag; a mistyped key is told the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.service import config
from pegaflow.service.logs import LogFormat
from pegaflow.service.settings import Settings
from pegaflow.wire.control import LogLevel

GIB = 1 << 30


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pegaflow.toml"
    path.write_text('run_dir = "/file"\npool_size = "1GiB"\nspares = 1\nlog_level = "error"\n')
    return path


def test_defaults_need_nothing() -> None:
    settings = config.load({}, {"PEGAFLOW_RUN_DIR": "/r"})
    assert settings == Settings(
        run_dir=Path("/r"),
        pool_size=None,
        extent_size=32 << 20,
        spares=2,
        http_addr="127.0.0.1:9091",
        addr=None,
        curve_dir=None,
        insecure_tcp=False,
        log_level=LogLevel.INFO,
        log_format=LogFormat.AUTO,
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
    with pytest.raises(UserError, match="--log-levle; did you mean --log-level"):
        config.load({"log_levle": "info"}, {})
    (tmp_path / "c.toml").write_text('zzz = "1g"\n')
    with pytest.raises(UserError, match="zzz in .*c.toml; there are addr, copy_threads, "):
        config.load({}, {}, str(tmp_path / "c.toml"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PEGAFLOW_IMAGE_TAG", "v1", "PEGAFLOW_IMAGE_TAG"),
        ("PEGAFLOW_ZZZ", "1", "PEGAFLOW_ZZZ"),
        ("PEGAFLOW_MODE", "read_only", "PEGAFLOW_MODE"),  # an engine reads it nowhere
        ("PEGAFLOW_POOL", "1g", "PEGAFLOW_POOL (did you mean PEGAFLOW_POOL_SIZE?)"),
        ("PEGAFLOW_pool_size", "1g", "PEGAFLOW_pool_size (did you mean PEGAFLOW_POOL_SIZE?)"),
        ("PEGAFLOW_HTTP_PORT", "9091", "PEGAFLOW_HTTP_PORT (did you mean PEGAFLOW_HTTP_ADDR?)"),
        (
            "PEGAFLOW_SERVICE_HOST",
            "not an address",
            "PEGAFLOW_SERVICE_HOST (did you mean PEGAFLOW_DEVICES?)",
        ),
        ("PEGAFLOW_METRICS_PORT_1_TCP", "9", "PEGAFLOW_METRICS_PORT_1_TCP"),
        ("PEGAFLOW_SVC_PORT", "tcp://1", "PEGAFLOW_SVC_PORT (did you mean PEGAFLOW_PORT?)"),
        ("PEGAFLOW_SERVING_PORT", "tcp://10.0.0.1:80", "PEGAFLOW_SERVING_PORT"),  # no Service
        ("PEGAFLOW_PORT_80_TCP_PROTO", "tcp", "PEGAFLOW_PORT_80_TCP_PROTO"),
        ("PEGAFLOW_SERVICE_PORT", "80", "PEGAFLOW_SERVICE_PORT"),
    ],
)
def test_a_variable_that_is_nobodys_stops_nothing_and_is_named(
    name: str, value: str, said: str
) -> None:
    env = {"PEGAFLOW_RUN_DIR": "/r", name: value}
    assert config.load({}, env) == Settings(Path("/r"))
    assert config.strangers(env) == said


def service_of_kubernetes(name: str, host: str, at: str) -> dict[str, str]:
    """All that Kubernetes sets for a Service of this name."""
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": "9091",
        f"{name}_SERVICE_PORT_HTTP_METRICS": "9091",
        f"{name}_PORT": f"tcp://{at}:9091",
        f"{name}_PORT_9091_TCP": f"tcp://{at}:9091",
        f"{name}_PORT_9091_TCP_PROTO": "tcp",
        f"{name}_PORT_9091_TCP_PORT": "9091",
        f"{name}_PORT_9091_TCP_ADDR": host,
        f"{name}_PORT_53_UDP": f"udp://{at}:53",
        f"{name}_PORT_53_UDP_PROTO": "udp",
    }


SERVICE = service_of_kubernetes("PEGAFLOW_SVC", "10.0.0.1", "10.0.0.1")


def test_variables_that_are_somebody_elses_are_no_mistake() -> None:
    env = {
        "PEGAFLOW_RUN_DIR": "/r",
        **service_of_kubernetes("PEGAFLOW", "10.0.0.1", "10.0.0.1"),
        **service_of_kubernetes("PEGAFLOW_METASERVER", "fd00::1", "[fd00::1]"),
        "PEGAFLOW_OWNER": "root",
        "PEGAFLOW_ENDPOINT": "/somewhere",
        "PEGAFLOW_HOST": "10.0.0.1",
        "PEGAFLOW_CURVE": "/somewhere/client.toml",
        "PEGAFLOW_TEST_INSTALLED": "1",
        "PEGAFLOW_POOL_SIZE": "",
    }
    assert config.load({}, env) == Settings(Path("/r"))
    assert config.strangers(env) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://1"),
        ("PORT", "tcp://10.0.0.1"),
        ("PORT", "tcp://10.0.0.1:0"),
        ("PORT", "tcp://10.0.0.1:65536"),
        ("PORT", "tcp://10.0.0.2:9091"),
        ("PORT", "http://10.0.0.1:9091"),
        ("PORT", "9091"),
        ("PORT_9091_TCP", "udp://10.0.0.1:9091"),
        ("PORT_9091_TCP", "tcp://10.0.0.1:9092"),
        ("PORT_9091_TCP_PROTO", "udp"),
        ("PORT_9091_TCP_PORT", "9092"),
        ("PORT_9091_TCP_ADDR", "10.0.0.2"),
        ("PORT_9091", "9091"),
        ("SERVICE_PORT", "tcp"),
        ("SERVICE_PORT_HTTP_METRICS", "0"),
        ("POOL", "1"),
    ],
)
def test_a_variable_that_is_not_quite_kubernetes_is_named(name: str, value: str) -> None:
    env = SERVICE | {f"PEGAFLOW_SVC_{name}": value}
    assert config.strangers(SERVICE) == ""
    assert config.strangers(env).startswith(f"PEGAFLOW_SVC_{name}")


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
        ("ssd_cache_path", [""]),
        ("ssd_cache_path", ["a\0b"]),
        ("ssd_cache_path", "/" + 4096 * "a"),
        ("ssd_cache_capacity", "63MiB"),
        ("ssd_cache_capacity", "all"),
        ("ssd_free_floor", "a tenth"),
        ("ssd_write_queue_depth", 0),
        ("ssd_write_inflight", 0),
        ("ssd_prefetch_inflight", 0),
        ("max_prefetch_blocks", 0),
        ("ssd_admission", "hot"),
        ("drain_timeout", -1),
        ("drain_timeout", 3601),
        *(("max_pinned", value) for value in (0, "0", "1.01", "101%", "half", -0.5, "nan")),
    ],
)
def test_a_bad_value_names_the_setting_and_the_value(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^--{key.replace('_', '-')}: .*") as caught:
        config.load({key: value}, {})
    said = value[0] if isinstance(value, list) and key == "ssd_cache_path" else value
    assert str(said) in str(caught.value) or repr(said) in str(caught.value)


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


@pytest.mark.parametrize(
    ("said", "meant"), [("0.25", 0.25), ("50%", 0.5), (1, 1.0), ("100 %", 1.0), (0.001, 0.001)]
)
def test_a_part_of_the_pool(said: object, meant: float) -> None:
    assert config.load({"max_pinned": said}, {}).max_pinned == meant


def test_directories_of_the_ssd_tier_come_one_per_device(tmp_path: Path) -> None:
    want = (str(tmp_path / "a"), str(tmp_path / "b"))
    assert config.load({"ssd_cache_path": list(want)}, {}).ssd_cache_path == want
    env = {"PEGAFLOW_SSD_CACHE_PATH": ":".join(want)}
    assert config.load({"ssd_cache_path": []}, env).ssd_cache_path == want
    (tmp_path / "c.toml").write_text(f'ssd_cache_path = {list(want)}\nssd_cache_capacity = "512gb"')
    settings = config.load({}, {}, str(tmp_path / "c.toml"))
    assert settings.ssd_cache_path == want and settings.ssd_cache_capacity == 512 * GIB
    assert config.load({"ssd_cache_path": ["x"]}, {}).ssd_cache_path == (str(Path.cwd() / "x"),)
    with pytest.raises(UserError, match="^PEGAFLOW_SSD_CACHE_PATH: not a path: ''"):
        config.load({}, {"PEGAFLOW_SSD_CACHE_PATH": "/a::/b"})


def test_one_directory_is_no_two_devices(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "a")
    for other in ("a", "a/", "alias", "./b/../a"):
        paths = [str(tmp_path / "a"), f"{tmp_path}/{other}"]
        with pytest.raises(UserError, match="^--ssd-cache-path: .*/a is named twice"):
            config.load({"ssd_cache_path": paths}, {})


@pytest.mark.parametrize(
    ("key", "value"), [("ssd_cache_capacity", "1g"), ("ssd_free_floor", "1g"), ("fresh_ssd", True)]
)
def test_what_is_said_of_a_tier_that_is_not_there(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no SSD tier without --ssd-cache-path") as caught:
        config.load({}, {f"PEGAFLOW_{key.upper()}": str(value)})
    assert str(caught.value).startswith(f"PEGAFLOW_{key.upper()}: ")
    settings = config.load({key: value, "ssd_cache_path": [str(tmp_path)]}, {})
    assert getattr(settings, key)


@pytest.mark.parametrize("key", ["run_dir", "curve_dir", "ssd_cache_path"])
def test_a_path_that_others_spell_otherwise_is_refused(key: str) -> None:
    """A name of other bytes than UTF-8, as Python reads it from the command line."""
    with pytest.raises(UserError, match=r"'/x\\udcff' is not UTF-8 in this locale") as caught:
        config.load({key: ["/x\udcff"] if key == "ssd_cache_path" else "/x\udcff"}, {})
    assert str(caught.value).isascii()


def test_a_folder_that_others_spell_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here\udcff"
    here.mkdir()
    monkeypatch.chdir(here)
    for flags, env in (
        ({"run_dir": "run"}, {}),
        ({"ssd_cache_path": ["ssd"]}, {"PEGAFLOW_RUN_DIR": "/r"}),
        ({}, {"XDG_RUNTIME_DIR": str(here)}),
    ):
        with pytest.raises(UserError, match="is not UTF-8 in this locale"):
            config.load(flags, env)
