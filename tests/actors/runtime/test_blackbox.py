"""Inputs written by the black box and fed to a fresh actor lead to the same end."""

from pathlib import Path
from typing import Any

import pytest

from pegaflow.actors.runtime import blackbox, process
from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.session.actor import Session
from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.stage import Stage
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, Seal
from pegaflow.wire.jobs import FillPages, OpenPool, PoolOpened, Stopping
from pegaflow.wire.session import CopyBatch, Keep, Save
from pegaflow.wire.values import Address
from tests.actors.rig import BOSS, CLIENT_7, HELLO, SESSION_4, Rig, one, said
from tests.actors.sessions import KEYS, SERVE, attached, grant
from tests.actors.shared import Shared


def busy() -> tuple[Rig, Session]:
    """A session in the middle of a save."""
    rig, actor, reserve = attached()
    rig.answer(reserve, grant(1, 8))
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim)
    take = said(rig.answer(claim, Claimed(ClaimId(1), (0, 1, 2))), CopyBatch)
    rig.wait(3 * BEAT_NS)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    one(rig.done(FillPages), Seal)
    return rig, actor


def anew(address: Address, boss: Address) -> Session:
    shared = Shared()
    return Session(
        address, boss, HELLO, open_hazards=shared.open_hazards, open_finder=shared.open_finder
    )


def state(actor: Actor) -> dict[str, Any]:
    assert isinstance(actor, Session)
    slots = actor.engine.ranks[0].free_slots
    books = (slots, actor.orders.claims.numbers(), actor.reservation.statement())
    return {"counts": actor.counts, "gauges": actor.gauges(), "books": books}


def test_a_replayed_actor_is_in_the_same_state(tmp_path: Path) -> None:
    rig, actor = busy()
    path = blackbox.write(rig.host, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    address, boss, complete, inputs = blackbox.read(path)
    assert (address, boss, complete) == (SESSION_4, BOSS, True)
    assert {kind for _, kind, _, _ in inputs} == {"start", "frame", "done", "wake"}
    host = blackbox.replay(inputs, lambda: anew(address, boss))
    assert state(host.actor) == state(actor)
    assert host.outstanding() == rig.host.outstanding()
    assert host.inputs == rig.host.inputs


def test_what_killed_the_first_kills_the_second(tmp_path: Path) -> None:
    rig, _ = busy()
    other = type(SERVE)("another", bytes(16), 1, 1, SERVE.namespace)
    with pytest.raises(AssertionError, match="serves one engine"):
        rig.ask(BOSS, other)
    address, boss, _, inputs = blackbox.read(blackbox.write(rig.host, tmp_path))
    with pytest.raises(AssertionError, match="serves one engine"):
        blackbox.replay(inputs, lambda: anew(address, boss))


def test_what_the_shell_says_is_replayed_too(tmp_path: Path) -> None:
    plan = Plan(1, "run", "0")
    rig = Rig(Supervisor(BOSS, plan))
    rig.start()
    rig.inform(Stopping())
    rig.done(OpenPool, PoolOpened("pool", "ledger", 1 << 20, 1 << 16, pool_file=(), ledger_file=()))
    _, _, _, inputs = blackbox.read(blackbox.write(rig.host, tmp_path))
    host = blackbox.replay(inputs, lambda: Supervisor(BOSS, plan))
    assert isinstance(host.actor, Supervisor) and host.actor.lifecycle.stage is Stage.DRAINING


def test_a_lost_start_is_told(tmp_path: Path) -> None:
    rig, _ = busy()
    rig.host.inputs.popleft()
    assert blackbox.read(blackbox.write(rig.host, tmp_path))[2] is False


def test_a_file_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _ = busy()
    path = blackbox.write(rig.host, tmp_path)
    monkeypatch.setattr(blackbox, "VERSION", blackbox.VERSION + 1)
    with pytest.raises(ValueError, match="has format 2"):
        blackbox.read(path)


def test_a_full_disk_leaves_no_half_of_it(tmp_path: Path) -> None:
    rig, _ = busy()
    path = tmp_path / f"blackbox-{rig.me}.msgpack"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        blackbox.write(rig.host, tmp_path)
    assert not path.is_symlink()
    path.symlink_to("/dev/full")
    assert process._last_words(rig.host, tmp_path) == "not written: No space left on device"
