"""How an actor is tested without a socket, a clock or a process: pytest examples/test_sans_io.py

An actor is a function of messages and time, so a test says a message and looks at the effects.
Here the gateway is told where to listen and asks for its first report; the answer is published.
"""

from pegaflow.actors.gateway.actor import INSPECT_WAIT_NS, Gateway
from pegaflow.actors.runtime.contract import Ask, Do, Sender
from pegaflow.wire.control import Hello, Inspect, Report, Welcome
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Listen, Publish
from pegaflow.wire.values import GATEWAY, SUPERVISOR, Address

BOSS, ME = Address(SUPERVISOR, Incarnation(1)), Address(GATEWAY, Incarnation(2))
NOW = 1_000_000_000
WELCOME = Welcome(
    pool_path="",
    ledger_path="",
    pool_bytes=0,
    extent_bytes=1 << 25,
    run_dir="run",
    http_addr="127.0.0.1:9091",
)
REPORT = Report(
    pool_path="",
    ledger_path="",
    pool_bytes=0,
    extent_bytes=1 << 25,
    started_ns=0,
    version="0.2",
    processes=(),
)


def test_the_gateway_listens_asks_and_publishes() -> None:
    actor = Gateway(ME, BOSS, Hello(4711, 0, "gateway.sock"))
    actor.start(NOW)

    listen, ask = actor.receive(Sender(BOSS), WELCOME, NOW)
    assert isinstance(listen, Do) and listen.job == Listen("127.0.0.1:9091")
    assert isinstance(ask, Ask)
    assert (ask.to, ask.message, ask.deadline) == (BOSS, Inspect(), NOW + INSPECT_WAIT_NS)

    (publish,) = ask.then(REPORT, NOW + 5)
    assert isinstance(publish, Do) and publish.job == Publish(REPORT)
    actor.check()
