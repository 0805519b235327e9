"""The table of actors: each name has its actor and device, and imports nobody else's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pegaflow.actors.flusher.actor import Flusher
from pegaflow.actors.roster import ROSTER
from pegaflow.actors.runtime.process import KINDS, Birth, child_command
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.service.settings import Settings
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import FLUSHER
from tests.actors.rig import BOSS, HELLO, SESSION_4
from tests.actors.tier import FLUSHER_6

BORN = """
import sys
from pathlib import Path
from pegaflow.actors.runtime.process import KINDS, Birth
from pegaflow.core.directory.plan import PeerPlan
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.service.settings import Settings
from pegaflow.wire.control import Hello
from pegaflow.wire.values import Address
told = {"ssd_cache_path": ("nowhere",), "peer_listen": "127.0.0.1:7", "insecure_peers": True}
settings = Settings(Path("/run"), **told)
plan = settings.told(PeerPlan if sys.argv[1] == "peer" else FlushPlan)
birth = Birth(Address(sys.argv[1], 1), Address("supervisor", 1), Hello(1, 2, "ipc://x"), plan)
actor, device = KINDS[sys.argv[1]].born(birth)
print(type(actor).__module__, type(device).__module__)
print(*(m for m in sys.modules if m.startswith("pegaflow.actors.") and "runtime" not in m))
"""


def test_every_child_of_the_roster_is_in_the_table() -> None:
    assert list(KINDS) == [spec.name for spec in ROSTER]


@pytest.mark.parametrize("name", KINDS)
def test_a_process_imports_its_own_kind_alone(name: str) -> None:
    command = [sys.executable, "-c", BORN, name]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds, modules = out.splitlines()
    mine = f"pegaflow.actors.{name}"
    assert kinds == f"{mine}.actor {mine}.device"
    others = {f"pegaflow.actors.{other}" for other in KINDS if other != name}
    assert not [m for m in modules.split() if m.startswith(tuple(others))]


def test_what_a_flusher_is_told_of_the_settings_is_its_plan() -> None:
    settings = Settings(Path("/run"), ssd_cache_path=("/a", "/b"), ssd_write_inflight=3)
    command = child_command(FLUSHER_6, settings, Incarnation(1))
    plan = json.loads(command[command.index("--plan") + 1])
    actor, _ = KINDS[FLUSHER].born(Birth(FLUSHER_6, BOSS, HELLO, plan))
    assert isinstance(actor, Flusher)
    assert actor.volumes.plan == FlushPlan(**settings.told(FlushPlan))
    assert actor.volumes.plan.paths == ("/a", "/b") and actor.volumes.plan.write_inflight == 3
    assert "--plan" not in child_command(SESSION_4, settings, Incarnation(1))
