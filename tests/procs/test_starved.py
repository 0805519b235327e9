"""A service beside a hundred processes for its core: whoever is starved lives, whoever hangs dies.

Burners and children share one core, so that the rest of the machine (the supervisor included) goes
on.  The children are of the idle class: beside burners of full weight they get nothing for minutes.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pegaflow.actors.supervisor.watchdog import REMEDY
from pegaflow.device.waits import threads
from pegaflow.wire.values import SUPERVISOR, Address

from .service import Engine, Service, eventually, keys, logged

BURNERS = 100

PATIENCE_S = 60.0
"""A hundred processes start meanwhile, on a machine that others use too."""


def burn(core: int) -> None:
    """The whole life of a burner."""
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def burners(core: int) -> Iterator[None]:
    """A hundred processes that want this core."""
    pids = []
    for _ in range(BURNERS):
        pid = os.fork()
        if not pid:
            signal.alarm(60)  # should nobody end it
            burn(core)
        pids.append(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def children(service: Service) -> dict[Address, int]:
    """Pids of the living."""
    return {r.address: r.pid for r in service.processes() if r.address.name != SUPERVISOR}


def lines(service: Service, event: str) -> list[dict[str, object]]:
    said = logged(service.log())
    return [line for line in said if line["event"] == event]


def put(pids: list[int], policy: int, cores: set[int]) -> None:
    """All threads of these processes into a class and on these cores."""
    for tid in [tid for pid in pids for tid in threads(pid)]:
        os.sched_setaffinity(tid, cores)
        with suppress(PermissionError):  # only root may take one out of the idle class again
            os.sched_setscheduler(tid, policy, os.sched_param(0))


def test_starved_children_are_waited_for_and_a_stopped_one_is_killed(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    blocks = list(range(16))
    with Service(tmp_path / "run") as service, Engine(service) as engine:
        engine.fill(blocks, seed=1)
        assert engine.client.save(keys(16), blocks).saved == 16
        eventually("all children are up", service.up)
        before = children(service)
        spare = next(r.address for r in service.processes("session") if r.state == "spare")
        starved = [pid for address, pid in before.items() if address != spare]
        with burners(min(cores)):
            put(starved, os.SCHED_IDLE, {min(cores)})
            os.kill(before[spare], signal.SIGSTOP)
            waited = ("it is waited for", lambda: bool(lines(service, "child_starved")))
            eventually(*waited, patience=PATIENCE_S)
            dead = ("the stopped one is dead", lambda: spare not in children(service))
            eventually(*dead, patience=PATIENCE_S)
        put(starved, os.SCHED_OTHER, cores)
        hits = ("they go on", lambda: engine.client.lookup(keys(16), timeout=1.0).blocks == 16)
        eventually(*hits, patience=PATIENCE_S)
        assert before.keys() - children(service).keys() == {spare}, service.log()
        assert {line["child"] for line in lines(service, "child_silent")} == {str(spare)}
        assert {line["remedy"] for line in lines(service, "child_starved")} == {REMEDY}
        assert [line["state"] for line in lines(service, "child_silent")] == ["stopped"]
