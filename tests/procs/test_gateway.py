"""HTTP of a real service, while its other processes are stopped, killed and replaced."""

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pegaflow.core.limits import OPEN_FILES
from pegaflow.wire.status import Status

from .service import PATIENCE_S, Engine, Service, eventually, keys

BLOCKS = list(range(16))
CONNECTIONS_MAX = 64  # as documented


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Served"]:
    with Served(tmp_path_factory.mktemp("run"), http_addr="127.0.0.1:0") as made:
        yield made


class Served(Service):
    """A service, seen through HTTP alone: its supervisor may be stopped."""

    def __enter__(self) -> "Served":
        super().__enter__()
        eventually("HTTP is answered", lambda: self.counter("http_port") > 0)
        self.port = self.counter("http_port")
        return self

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Values by name, summed over labels other than `tier`."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for s in family.samples:
                name = s.name + s.labels.get("tier", "")
                found[name] = found.get(name, 0) + s.value
        return found

    def reasons(self) -> list[str]:
        code, body = self.get("/readyz")
        found: list[str] = json.loads(body)["reasons"]
        assert code == (503 if found else 200)
        return found


TIER = "pegaflow_cache_tier_block_requests_total"


def test_every_path_answers(service: Served) -> None:
    assert service.get("/healthz") == service.get("/health") == (200, "ok\n")
    eventually("it is ready", lambda: service.reasons() == [])
    code, body = service.get("/v1/status")
    assert code == 200 and json.loads(body)["report"]["processes"][0]["state"] == "up"
    assert service.get("/nothing")[0] == 404
    assert service.get("/metrics", "POST")[0] == 405


def shape(value: Any) -> Any:
    """What is there, without its values; of a list what its items have in common, or not."""
    if isinstance(value, dict):
        return {key: shape(v) for key, v in value.items() if key != "counters"}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item), sort_keys=True) for item in value})
    return type(value).__name__


def test_status_has_one_shape_for_all_who_ask(service: Served) -> None:
    with Engine(service, "[/]"):
        asked: dict[str, Any] = {}

        def has_the_engine() -> bool:
            asked.update(json.loads(service.get("/v1/status")[1]))
            return any(row["engine"] == "[/]" for row in asked["report"]["processes"])

        eventually("both have heard of the engine", has_the_engine)
        printed = service.status()
        assert "[/]" in service.status_text(), "an id is no markup"
    printed["age_seconds"] = float(printed["age_seconds"])
    assert shape(printed) == shape(asked)
    for told in (printed, asked):
        counters = [row["counters"] for row in told["report"]["processes"]]
        assert all(isinstance(n, int) for some in counters for n in some.values())


def test_what_an_engine_does_is_counted(service: Served) -> None:
    before = service.metrics()
    with Engine(service) as engine:
        assert engine.client.save(keys(16, 1), BLOCKS).saved == 16
        assert engine.client.lookup(keys(16, 1) + keys(8, 2)).blocks == 16

        def told() -> bool:
            now = service.metrics()
            tiers = {t: now[TIER + t] - before[TIER + t] for t in ("ram", "rdma", "ssd", "miss")}
            return (
                tiers == {"ram": 16, "rdma": 0, "ssd": 0, "miss": 8}
                and now["pegaflow_cache_resident_blocks"] >= 16
                and now["pegaflow_save_bytes_total"] >= 16 * 65536
                and now["pegaflow_engines"] == 1
            )

        eventually("16 hits, 8 misses, 16 blocks and their engine: each process has its beat", told)
        now = service.metrics()
        assert now["pegaflow_actor_resident_memory_bytes"] > 1 << 20
        assert now["pegaflow_actor_open_fds"] > 10


def test_a_stopped_index_delays_no_scrape_and_its_counters_stay(service: Served) -> None:
    with Engine(service) as engine:
        engine.client.lookup(keys(4, 3))
        (gateway,) = service.processes("gateway")
        (index,) = service.processes("index")
        eventually("the lookup is counted", lambda: service.metrics()[f"{TIER}miss"] > 0)
        before = service.metrics()
        os.kill(index.pid, signal.SIGSTOP)
        while index.address in {r.address for r in service.processes("index")}:
            assert service.metrics()[f"{TIER}miss"] >= before[f"{TIER}miss"]
            assert service.get("/healthz")[0] == 200
        eventually("the service is up again", service.up)
        restarts = "pegaflow_actor_restarts_total"
        eventually("it is told", lambda: service.metrics()[restarts] == before[restarts] + 1)
        assert service.metrics()[f"{TIER}miss"] >= before[f"{TIER}miss"]
        assert service.processes("gateway")[0].address == gateway.address


def test_a_stopped_supervisor_is_told_and_nobody_is_killed_for_it(service: Served) -> None:
    eventually("it is ready", lambda: service.reasons() == [])
    children = service.at_rest().keys()
    os.kill(service.pid, signal.SIGSTOP)
    try:
        eventually("its silence is told", lambda: "not answered for" in "".join(service.reasons()))
        age = json.loads(service.get("/v1/status")[1])["age_seconds"]
        assert service.metrics()["pegaflow_snapshot_age_seconds"] >= age >= 5
        assert service.get("/healthz")[0] == 200
    finally:
        os.kill(service.pid, signal.SIGCONT)
    eventually("it is ready", lambda: service.reasons() == [])
    assert {r.address for r in service.processes()} == children
    assert service.counter("woke_late") >= 1


def test_probes_are_answered_however_many_connections_do_nothing(service: Served) -> None:
    eventually("it is ready", lambda: service.reasons() == [])
    with ExitStack() as stack, Engine(service) as engine:
        idle: list[socket.socket] = []
        for _ in range(4):
            for _ in range(CONNECTIONS_MAX):
                connection = socket.create_connection(("127.0.0.1", service.port))
                idle.append(stack.enter_context(connection))
            assert service.reasons() == []
            assert service.get("/healthz") == (200, "ok\n")
        eventually(
            "so many stay as there may be",
            lambda: sum(not is_closed(s) for s in idle) < CONNECTIONS_MAX,
        )
        assert not is_closed(idle[-1]), "the newest stay"
        assert engine.client.lookup(keys(4)).status is Status.OK
    shed = [line for line in lines(service) if line["event"] == "http_connection_shed"]
    assert 1 <= len(shed) <= 3 and shed[0]["limit"] == CONNECTIONS_MAX


BAD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    b"GET /metrics\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",  # no host
    b"GET / HTTP/1.1\r\nx: " + b"y" * (1 << 20),
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZ\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
)


def test_bad_requests_cost_few_lines_and_all_of_them_are_json(service: Served) -> None:
    before = len(lines(service))
    for bad in BAD * 50:
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S) as caller:
            try:
                caller.sendall(bad)
                caller.shutdown(socket.SHUT_WR)
                assert caller.recv(4096).startswith(b"HTTP/1.1 4")
            except (ConnectionResetError, BrokenPipeError):
                pass
    assert service.get("/healthz")[0] == 200
    said = [line for line in lines(service)[before:] if line["event"] == "library_log"]
    assert 1 <= len(said) <= 20, said
    assert {(line["actor"], line["level"]) for line in said} == {("gateway", "warning")}


def lines(service: Served) -> list[dict[str, Any]]:
    """The whole log but for a line that is being written; every line is an object of JSON."""
    return [json.loads(line) for line in service.log().rpartition("\n")[0].splitlines()]


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def answers(service: Served) -> bool:
    try:
        return service.get("/healthz")[0] == 200
    except OSError:
        return False


def test_a_killed_gateway_is_replaced_at_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with Served(tmp_path / "run", http_addr=f"127.0.0.1:{port}") as service, Engine(service) as e:
        (old,) = service.processes("gateway")
        os.kill(old.pid, signal.SIGKILL)
        eventually(
            "its death is seen",
            lambda: old.address not in {r.address for r in service.processes("gateway")},
        )
        gone = next(line for line in lines(service) if line["event"] == "child_gone")
        assert (gone["child"], gone["how"]) == (str(old.address), "killed by SIGKILL")
        eventually("at the same port", lambda: answers(service))
        eventually("it is told", lambda: service.metrics()["pegaflow_actor_restarts_total"] == 1)
        assert e.client.lookup(keys(4)).status is Status.OK


def test_a_busy_port_is_one_line_and_the_cache_serves_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        service = Service(tmp_path / "run", http_addr=f"127.0.0.1:{port}")
        service.start()
        try:
            eventually("it is told", lambda: "http_unavailable" in service.log())
            with Engine(service) as engine:
                assert engine.client.save(keys(4), BLOCKS[:4]).saved == 4
            (gateway,) = service.processes("gateway")
            assert (gateway.state, gateway.restarts) == ("up", 0)
            assert f"no HTTP at 127.0.0.1:{port} yet" in service.status_text()
            other.close()
            eventually("the free port is taken", lambda: service.counter("http_port") == port)
            assert f"http://127.0.0.1:{port}/metrics" in service.status_text()
            lines = [json.loads(n) for n in service.log().splitlines() if "http_unavail" in n]
            assert len(lines) == 1 and lines[0]["address"] == f"127.0.0.1:{port}"
            assert service.stop() == 0 and service.left_over() == []
        finally:
            service.__exit__(None, None, None)


def test_without_http_there_is_no_gateway(tmp_path: Path) -> None:
    with Service(tmp_path / "run") as service:
        assert service.processes("gateway") == []
        assert "no HTTP" in service.status_text()


def test_the_service_manager_hears_ready_and_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Service(tmp_path / "run") as service:
            said = b""
            while b"READY=1" not in said:
                said = manager.recv(4096)
            assert said.startswith(b"READY=1\nSTATUS=up: 0 engines, ")
            (index,) = service.processes("index")
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{index.pid}/environ").read_bytes()
            assert service.stop() == 0
            while b"STOPPING=1" not in said:
                said = manager.recv(4096)


def test_a_low_limit_on_descriptors_is_raised(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    service = Service(tmp_path / "run")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        service.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        (index,) = service.processes("index")
        for pid in (service.pid, index.pid):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == wanted
    finally:
        service.__exit__(None, None, None)
