"""The table of actors: each name has its actor and device, and imports nobody else's."""

import subprocess
import sys

import pytest

from pegaflow.actors.roster import ROSTER
from pegaflow.actors.runtime.process import KINDS

BORN = """
import sys
from pathlib import Path
from pegaflow.actors.runtime.process import KINDS, Birth
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.service.settings import Settings
from pegaflow.wire.control import Hello
from pegaflow.wire.values import Address
flush = FlushPlan(**Settings(Path("/run"), ssd_cache_path=("nowhere",)).told(FlushPlan))
birth = Birth(Address(sys.argv[1], 1), Address("supervisor", 1), Hello(1, 2, "ipc://x"), flush)
actor, device = KINDS[sys.argv[1]](birth)
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
