"""The HTTP thread: what it answers before there is a report, and connections that do nothing."""

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from pegaflow import web
from pegaflow.wire.control import ProcessRow, Report
from pegaflow.wire.values import SUPERVISOR, Address

PATIENCE_S = 20.0
REPORT = Report(
    "", "", 0, 1, 0, "1.2", (ProcessRow(Address(SUPERVISOR, 1), 0, "up", 0, "", ()),), "", 1 << 62
)


class Answers:
    """A server of this process."""

    def __init__(self) -> None:
        self.shown: Report | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        web.serve(self.listener, lambda: self.shown)

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers={"accept": accept})
            answer = connection.getresponse()
            return answer.status, answer.headers["content-type"], answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "EXCHANGE_S", 1.0)
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
    assert json.loads(answers.get("/readyz")[2]) == {"ready": True, "reasons": [], "ssd": ""}
    code, kind, body = answers.get("/metrics")
    assert (code, kind.split(";")[0]) == (200, "text/plain") and 'version="1.2"' in body
    kind, body = answers.get("/metrics", "application/openmetrics-text; version=1.0.0")[1:]
    assert kind.startswith("application/openmetrics-text") and body.endswith("# EOF\n")


@pytest.mark.parametrize("said", [b"", b"GET /heal", b"POST /metrics HTTP/1.1\r\nhost: x\r\n"])
def test_who_does_not_finish_its_request_is_cut_off(answers: Answers, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", answers.port), timeout=PATIENCE_S) as connection:
        connection.sendall(said)
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass


def test_a_connection_that_is_used_may_last(answers: Answers) -> None:
    connection = HTTPConnection("127.0.0.1", answers.port, timeout=PATIENCE_S)
    connection.connect()
    first = connection.sock.getsockname()
    until = time.monotonic() + 2 * web.EXCHANGE_S
    while time.monotonic() < until:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
    assert connection.sock.getsockname() == first
    connection.close()
