"""Inputs written by the black box and fed to a fresh actor lead to the same end."""

from pathlib import Path
from typing import Any

import msgpack
import pytest

from pegaflow.actors import blackbox
from pegaflow.actors.actor import Actor
from pegaflow.actors.session import Session
from pegaflow.actors.supervisor import Plan, Supervisor
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.index import Claim, Claimed, Seal
from pegaflow.wire.jobs import FillPages, MakePool, Stopping
from pegaflow.wire.session import Keep, Save, Take
from pegaflow.wire.values import Address

from .rig import BOSS, CLIENT_7, HELLO, PAGE, SESSION_4, Rig, one, said
from .sessions import KEYS, SERVE, attached, grant


def busy() -> tuple[Rig, Session]:
    """A session in the middle of a save."""
    rig, actor, reserve = attached()
    rig.answer(reserve, grant(1, 8))
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], b"")), Claim)
    take = said(rig.answer(claim, Claimed(1, (0, 1, 2))), Take)
    rig.wait(3 * BEAT_NS)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    one(rig.done(FillPages), Seal)
    return rig, actor


def written(rig: Rig, folder: Path) -> tuple[Address, bool, list[Any]]:
    """Address, completeness and inputs of the file that the black box writes."""
    raw = msgpack.unpackb(blackbox.write(rig.host, folder).read_bytes())
    assert raw[0] == blackbox.VERSION and raw[3] == getattr(rig.host.actor, "supervisor", (0, 0))[1]
    return Address(raw[1], raw[2]), raw[4], raw[5]


def state(actor: Actor) -> dict[str, Any]:
    assert isinstance(actor, Session) and actor.saves is not None
    saves = actor.saves
    books = (saves.stock, saves.filling, saves.free_slots, saves.claims(), saves.stock_statement())
    return {"counts": actor.counts, "gauges": actor.gauges(), "books": books}


def test_a_replayed_actor_is_in_the_same_state(tmp_path: Path) -> None:
    rig, actor = busy()
    address, complete, inputs = written(rig, tmp_path)
    assert (address, complete) == (SESSION_4, True)
    host = blackbox.replay(inputs, lambda: Session(address, BOSS, HELLO))
    assert state(host.actor) == state(actor)
    assert host.outstanding() == rig.host.outstanding()
    assert host.inputs == rig.host.inputs


def test_the_file_is_private(tmp_path: Path) -> None:
    rig, _ = busy()
    path = blackbox.write(rig.host, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_killed_the_first_kills_the_second(tmp_path: Path) -> None:
    rig, _ = busy()
    other = type(SERVE)("another", bytes(16), 1, 1, bytes(16))
    with pytest.raises(AssertionError, match="serves one engine"):
        rig.ask(BOSS, other)
    address, _, inputs = written(rig, tmp_path)
    with pytest.raises(AssertionError, match="serves one engine"):
        blackbox.replay(inputs, lambda: Session(address, BOSS, HELLO))


def test_what_the_shell_says_is_replayed_too(tmp_path: Path) -> None:
    plan = Plan(1 << 20, PAGE, 1, "run", "0")
    rig = Rig(Supervisor(BOSS, plan))
    rig.start()
    rig.inform(Stopping())
    rig.done(MakePool, note="pool\nledger", values=(1 << 20,))
    _, _, inputs = written(rig, tmp_path)
    host = blackbox.replay(inputs, lambda: Supervisor(BOSS, plan))
    assert isinstance(host.actor, Supervisor) and host.actor.state == "draining"


def test_a_lost_start_is_told(tmp_path: Path) -> None:
    rig, _ = busy()
    rig.host.inputs.popleft()
    assert written(rig, tmp_path)[1] is False
