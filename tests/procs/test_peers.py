"""Two services that read from each other over TCP: blocks, deaths, and what is not there any more.

They are on one machine, as two hosts that share nothing: each has its own pool, run directory and
processes, and what one has of the other came over a socket.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pegaflow.service.keys import generate_hosts
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, PEER

from .service import Engine, Service, eventually, keys

COUNT = 64
BLOCKS = list(range(COUNT))


def free_ports() -> int:
    """A port that is free on loopback, as the one behind it is."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Host:
    """One of the two."""

    def __init__(self, folder: Path, port: int, other: int, *extra: str) -> None:
        folder.mkdir(mode=0o700)
        flags = ("--peer-listen", f"127.0.0.1:{port}", "--peers", f"127.0.0.1:{other}")
        self.service = Service(folder, extra=(*flags, "--insecure-peers", *extra))

    def pid(self, name: str) -> int:
        return next(p.pid for p in self.service.processes() if p.address.name == name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    a, b = free_ports(), free_ports()
    pair = Host(tmp_path / "a", a, b), Host(tmp_path / "b", b, a)
    with ExitStack() as stack:
        for host in pair:
            stack.enter_context(host.service)
        yield pair


def saved(engine: Engine, chunk: int) -> None:
    engine.fill(BLOCKS, seed=chunk * COUNT)
    done = engine.client.save(keys(COUNT, chunk), BLOCKS)
    assert done.status is Status.OK, done


def found(engine: Engine, chunk: int) -> int:
    """Look a chunk up, load what is there, and compare every byte; blocks that were there."""
    answer = engine.client.lookup(keys(COUNT, chunk), timeout=5.0)
    if answer.lease is None:
        return 0
    blocks = BLOCKS[: answer.blocks]
    engine.view[:] = 0
    done = engine.client.load(answer.lease, blocks, timeout=5.0)
    assert not done.failed, done
    assert engine.holds(blocks, seed=chunk * COUNT), f"wrong bytes in chunk {chunk}"
    return answer.blocks


def loads_all(engine: Engine, chunk: int) -> bool:
    return found(engine, chunk) == COUNT


def tells(host: Host, name: str, value: int) -> bool:
    """Whether this number is what it should be, as of the last beats."""
    return host.service.counter(name) == value


def test_what_one_host_has_another_one_loads(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    with Engine(here.service) as filler, Engine(there.service) as reader:
        saved(filler, 0)
        eventually("all of it is a hit elsewhere", lambda: found(reader, 0) == COUNT)
        for name in ("rdma_fetched_blocks", "blocks_hit_rdma"):
            eventually(f"{name} is told", partial(tells, there, name, COUNT))
        eventually("every loan is over", partial(tells, here, "peer_loans", 0))
        eventually("all of it was lent", partial(tells, here, "peer_blocks_lent", COUNT))
        assert found(reader, 0) == COUNT
        saved(filler, 1)
        eventually("the next is a hit, too", partial(loads_all, reader, 1))
        eventually("only that was fetched", partial(tells, there, "rdma_fetched_blocks", 2 * COUNT))


def test_no_process_that_dies_costs_more_than_misses(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    with Engine(here.service) as filler, Engine(there.service) as reader:
        for chunk in range(6):
            saved(filler, chunk)
        eventually("one chunk is a hit", lambda: found(reader, 0) == COUNT)
        deaths = [(host, name) for name in (PEER, INDEX) for host in (here, there)]
        for chunk, (host, name) in enumerate(deaths, 1):
            os.kill(host.pid(name), signal.SIGKILL)
            found(reader, chunk)
            eventually("it is a hit again", partial(loads_all, reader, chunk))
        here.service.kill()
        assert found(reader, 5) == 0
        assert found(reader, 0) == COUNT, "what came before is here"
        here.service.start()
        eventually("the last chunk is a hit", lambda: found(reader, 5) == COUNT)
        assert not here.service.counter("frames_bad") + there.service.counter("frames_bad")


def keyed(folder: Path, name: str, keys: Path, ports: tuple[int, int], other: str) -> Service:
    (folder / name).mkdir(mode=0o700)
    own, port = ports
    flags = ("--peer-listen", f"127.0.0.1:{own}", "--peers", f"{other}@127.0.0.1:{port}")
    return Service(folder / name, extra=(*flags, "--peer-keys", str(keys)))


def test_hosts_with_keys_let_nobody_else_in(tmp_path: Path) -> None:
    a, b, c = free_ports(), free_ports(), free_ports()
    generate_hosts(tmp_path / "keys", ["anna", "bert"])
    generate_hosts(tmp_path / "strange", ["anna", "carl"])
    anna = keyed(tmp_path, "a", tmp_path / "keys" / "anna", (a, b), "bert")
    bert = keyed(tmp_path, "b", tmp_path / "keys" / "bert", (b, a), "anna")
    carl = keyed(tmp_path, "c", tmp_path / "strange" / "carl", (c, a), "anna")
    with anna, bert, carl, Engine(anna) as filler, Engine(bert) as reader:
        saved(filler, 0)
        eventually("all of it is a hit elsewhere", lambda: found(reader, 0) == COUNT)
        with Engine(carl) as stranger:
            assert found(stranger, 0) == 0
        assert carl.counter("peers_up") == 0
