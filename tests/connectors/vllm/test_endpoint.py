"""Where an engine looks for the service: our keys, the original's, and what cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from pegaflow.connectors.vllm.endpoint import choose
from pegaflow.service import keys

LINKS = {"PEGAFLOW_SERVICE_HOST": "10.0.0.1", "PEGAFLOW_PORT": "tcp://10.0.0.1:9091"}
"""What Kubernetes sets for a Service that is called pegaflow."""

UNSAFE = "only a service started with --insecure-tcp answers"


@pytest.mark.parametrize(
    ("extra", "env", "url"),
    [
        ({}, {}, None),
        ({"pegaflow.endpoint": "/run/p.sock"}, {}, "/run/p.sock"),
        ({"pegaflow.host": "10.0.0.1"}, {}, "tcp://10.0.0.1:50055"),
        ({"pegaflow.host": "http://10.0.0.1", "pegaflow.port": 7}, {}, "tcp://10.0.0.1:7"),
        ({"pegaflow.host": "http://10.0.0.1:7/"}, {}, "tcp://10.0.0.1:7"),
        ({"pegaflow.host": "10.0.0.1:7", "pegaflow.port": "8"}, {}, "tcp://10.0.0.1:8"),
        ({"pegaflow.host": "::1"}, {}, "tcp://[::1]:50055"),
        ({"pegaflow.host": "[::1]:7"}, {}, "tcp://[::1]:7"),
        ({"pegaflow.host": "[::1]"}, {}, "tcp://[::1]:50055"),
        ({"pegaflow.port": 7}, {}, "tcp://127.0.0.1:7"),
        ({"pegaflow.host": "a"}, {"PEGAFLOW_HOST": "b"}, "tcp://b:50055"),
        ({"pegaflow.port": 7}, {"PEGAFLOW_HOST": "b"}, "tcp://b:50055"),
        ({"pegaflow.endpoint": "/x"}, {"PEGAFLOW_HOST": "b", "PEGAFLOW_PORT": "8"}, "tcp://b:8"),
        ({"pegaflow.endpoint": "/x"}, {"PEGAFLOW_ENDPOINT": "/y"}, "/y"),
        ({"pegaflow.endpoint": "/x"}, LINKS, "/x"),
    ],
)
def test_where_the_service_is(extra: dict[str, Any], env: dict[str, str], url: str | None) -> None:
    chosen = choose(extra, env)
    assert (chosen.url, chosen.curve) == (url, None)
    tcp = url is not None and url.startswith("tcp")
    assert len(chosen.warnings) == tcp and all(UNSAFE in line for line in chosen.warnings)


@pytest.mark.parametrize(
    ("extra", "env", "line"),
    [
        ({"pegaflow.host": "https://a"}, {}, "pegaflow.host 'https://a': https is not spoken"),
        ({}, {"PEGAFLOW_PORT": "many"}, "PEGAFLOW_PORT 'many' is no port"),
        ({}, {"PEGAFLOW_HOST": "a:b"}, "PEGAFLOW_HOST 'a:b' is no port"),
        ({"pegaflow.port": 0x10000}, {}, "pegaflow.port '65536' is no port"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    extra: dict[str, Any], env: dict[str, str], line: str
) -> None:
    chosen = choose(extra, env)
    assert chosen.url is None and len(chosen.warnings) == 1
    assert line in chosen.warnings[0] and "the default endpoint is used" in chosen.warnings[0]


def test_an_endpoint_goes_before_host_and_port() -> None:
    chosen = choose({"pegaflow.endpoint": "/x", "pegaflow.host": "a"}, {})
    assert chosen.url == "/x"
    assert chosen.warnings == (
        "pegaflow.host is ignored: pegaflow.endpoint says where the service is",
    )


def test_a_key_file_is_used_for_tcp_alone(tmp_path: Path) -> None:
    (mine,) = keys.generate(tmp_path, ["me"])
    for extra, env in (
        ({"pegaflow.host": "a", "pegaflow.curve": str(mine)}, {}),
        ({"pegaflow.host": "a", "pegaflow.curve": "/none"}, {"PEGAFLOW_CURVE": str(mine)}),
    ):
        chosen = choose(extra, env)
        assert (chosen.url, chosen.curve, chosen.warnings) == ("tcp://a:50055", str(mine), ())
    assert choose({"pegaflow.curve": str(mine)}, {}).curve is None


def test_a_key_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    for path, line in ((tmp_path / "no", "No such file"), (Path(__file__), "is no key file")):
        chosen = choose({"pegaflow.host": "a", "pegaflow.curve": str(path)}, {})
        assert chosen.curve is None and chosen.url == "tcp://a:50055"
        assert len(chosen.warnings) == 1 and line in chosen.warnings[0]


@pytest.mark.parametrize(
    ("extra", "env", "owner"),
    [
        ({}, {}, None),
        ({"pegaflow.owner": "root"}, {}, 0),
        ({"pegaflow.owner": 4321}, {}, 4321),
        ({"pegaflow.owner": 4321}, {"PEGAFLOW_OWNER": "7"}, 7),
        ({"pegaflow.owner": 0}, {}, 0),
        ({"pegaflow.owner": "7", "pegaflow.host": "a"}, {}, None),
    ],
)
def test_whose_service_is_trusted(extra: dict[str, Any], env: dict[str, str], owner: int) -> None:
    chosen = choose(extra, env)
    assert chosen.owner == owner and len(chosen.warnings) == ("pegaflow.host" in extra)


def test_an_owner_who_is_not_there_is_one_line() -> None:
    chosen = choose({"pegaflow.owner": "no such user"}, {})
    assert chosen.owner is None
    assert chosen.warnings == (
        "pegaflow.owner: there is no user 'no such user'; only our own user's service and root's is"
        " used",
    )


def test_a_port_that_is_neither_one_nor_of_kubernetes_is_ignored_with_a_line() -> None:
    for env in ({}, LINKS):
        chosen = choose({"pegaflow.endpoint": "/x"}, env | {"PEGAFLOW_PORT": "tcp://1"})
        assert chosen.warnings == ("PEGAFLOW_PORT 'tcp://1' is no port: it is ignored",)
        assert chosen.url == "/x"


def test_a_mistyped_variable_is_told_the_right_one() -> None:
    env = {
        "PEGAFLOW_ENDPIONT": "/x",
        "PEGAFLOW_POOL_SIZE": "1g",
        "PEGAFLOW_PORT_80_TCP": "tcp://a:1",
        "PEGAFLOW_HOST_SERVICE_HOST": "10.0.0.1",
        "PEGAFLOW_HOST_PORT": "tcp://10.0.0.1:80",
    }
    assert choose({}, env).warnings == (
        "PEGAFLOW_ENDPIONT is ignored; did you mean PEGAFLOW_ENDPOINT?",
    )
