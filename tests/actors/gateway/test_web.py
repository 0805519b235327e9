"""The HTTP thread: what it answers before there is a report, and connections that do nothing."""

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from pegaflow.actors.gateway import device as web
from pegaflow.observe import metrics
from pegaflow.wire.control import ProcessRow, Report
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import SUPERVISOR, Address

PATIENCE_S = 20.0
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
REPORT = Report(
    "",
    "",
    0,
    1,
    started_ns=0,
    version="1.2",
    processes=(
        ProcessRow(Address(SUPERVISOR, Incarnation(1)), 0, "up", 0, engine="", counters=()),
    ),
    http_addr="",
    at=1 << 62,
)


class Answers:
    """A server of this process."""

    def __init__(self) -> None:
        self.shown: Report | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        web.serve(self.listener, lambda: self.shown)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers={"accept": accept})
            answer = connection.getresponse()
            return answer.status, answer.headers["content-type"], answer.read().decode()
        finally:
            connection.close()


def answered(connection: socket.socket, head: bool = False) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    answer = HTTPResponse(connection, method="HEAD" if head else "GET")
    answer.begin()
    return answer.status, answer.read()


def rest_of(connection: socket.socket) -> bytes:
    """All that comes before the end."""
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "REQUEST_S", 0.5)
        patch.setattr(web, "IDLE_S", 1.0)
        yield Answers()


def test_before_the_first_report(answers: Answers) -> None:
    answers.shown = None
    assert answers.get("/healthz")[0] == 200
    code, _, body = answers.get("/readyz")
    assert code == 503 and "not answered yet" in json.loads(body)["reasons"][0]
    assert answers.get("/v1/status")[0] == 503
    assert answers.get("/metrics")[0] == 200


def test_a_report_is_shown_as_soon_as_it_is_there(answers: Answers) -> None:
    answers.shown = REPORT
    assert answers.get("/readyz")[0] == answers.get("/v1/status")[0] == 200
    assert json.loads(answers.get("/readyz")[2]) == {
        "ready": True,
        "reasons": [],
        "ssd": "",
        "remarks": [],
    }
    code, kind, body = answers.get("/metrics")
    assert (code, kind.split(";")[0]) == (200, "text/plain") and 'version="1.2"' in body
    kind, body = answers.get("/metrics", "application/openmetrics-text; version=1.0.0")[1:]
    assert kind.startswith("application/openmetrics-text") and body.endswith("# EOF\n")


@pytest.mark.parametrize("said", [b"", b"GET /heal", b"POST /metrics HTTP/1.1\r\nhost: x\r\n"])
def test_who_does_not_finish_its_request_is_cut_off(answers: Answers, said: bytes) -> None:
    with answers.connect() as connection:
        connection.sendall(said)
        assert rest_of(connection) == b""


def test_who_says_a_byte_now_and_then_is_cut_off_too(answers: Answers) -> None:
    with answers.connect() as connection:
        connection.settimeout(0.05)
        for byte in itertools.cycle(b"x"):
            try:
                connection.sendall(bytes((byte,)))
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break


def test_a_further_request_has_no_more_time_than_the_first(answers: Answers) -> None:
    with answers.connect() as connection:
        connection.sendall(GET)
        assert answered(connection) == (200, b"ok\n")
        connection.sendall(b"GET ")
        assert rest_of(connection) == b""


def test_who_says_that_it_has_said_all_is_answered(answers: Answers) -> None:
    with answers.connect() as connection:
        connection.sendall(GET * 3)
        connection.shutdown(socket.SHUT_WR)
        assert rest_of(connection).count(b"\r\n\r\nok\n") == 3


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 200, b""),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200, b"ok\n"),
        (b"GET /healthz?full=1 HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"ok\n"),
        (b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody", 405, None),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 404, None),
        (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: x\r\n\r\n", 400, None),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"h: v\r\n" * (64 << 10), 400, None),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, None),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + b"\0" * (1 << 20), 200, b"ok\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, None),
        (
            b"POST /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZ\r\n",
            400,
            None,
        ),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", 404, None),
        (
            b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"\r\n",
            200,
            b"ok\n",
        ),
    ],
)
def test_whatever_is_asked_has_its_answer(
    answers: Answers, said: bytes, status: int, body: bytes | None
) -> None:
    with answers.connect() as connection:
        try:
            connection.sendall(said)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it has heard enough
        found, content = answered(connection, head=said.startswith(b"HEAD"))
        assert found == status
        assert body is None or content == body


def test_a_body_that_goes_wrong_after_its_answer_ends_the_connection(answers: Answers) -> None:
    with answers.connect() as connection:
        connection.sendall(
            b"POST /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert answered(connection)[0] == 405
        connection.sendall(b"Z\r\n")
        assert rest_of(connection) == b""


def test_a_text_serves_all_who_ask_for_it_meanwhile(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, Report | None]] = []
    monkeypatch.setattr(web, "RENDERED_S", PATIENCE_S)

    def noted(name: str) -> None:
        call: Callable[..., Any] = getattr(metrics, name)

        def write(report: Report | None, *rest: Any) -> Any:
            written.append((name, report))
            return call(report, *rest)

        monkeypatch.setattr(metrics, name, write)

    noted("render")
    noted("status")
    first, second = replace(REPORT, version="1.3"), replace(REPORT, version="1.4")
    for shown in (first, second):
        answers.shown = shown
        for number in range(20):
            assert f'version="{shown.version}"' in answers.get("/metrics", f"text/x{number}")[2]
            assert json.loads(answers.get("/v1/status")[2])["report"]["version"] == shown.version
    assert written == [(n, r) for r in (first, second) for n in ("render", "status")]


def test_a_newcomer_is_answered_however_many_are_there(answers: Answers) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(answers.connect()) for _ in range(4 * web.CONNECTIONS_MAX)]
        used = stack.enter_context(answers.connect())
        for _ in range(8):
            used.sendall(GET)
            assert answered(used) == (200, b"ok\n")
            for _ in range(web.CONNECTIONS_MAX // 4):
                stack.enter_context(answers.connect())
            assert answers.get("/healthz")[0] == 200
        assert rest_of(idle[0]) == b"", "the oldest has made room"


def test_a_connection_that_is_used_may_last(answers: Answers) -> None:
    connection = HTTPConnection("127.0.0.1", answers.port, timeout=PATIENCE_S)
    connection.connect()
    first = connection.sock.getsockname()
    until = time.monotonic() + 2 * web.IDLE_S
    while time.monotonic() < until:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
    assert connection.sock.getsockname() == first
    connection.close()
