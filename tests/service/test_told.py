"""What is set reaches the processes by its declaration alone."""

import dataclasses
from pathlib import Path

import pytest

from pegaflow.actors.runtime.tcp import TcpPlan
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.pool import Pool
from pegaflow.core.directory.plan import PeerPlan
from pegaflow.core.segments.plan import Admission, FlushPlan
from pegaflow.service.settings import SETTINGS, Settings
from pegaflow.wire.control import Welcome

TOLD = (Plan, Welcome, FlushPlan, TcpPlan, PeerPlan)


def test_what_was_set_is_what_children_are_told() -> None:
    settings = Settings(Path("/run"), copy_threads=7, verify=True, http_addr="1.2.3.4:5")
    plan = Plan(1, "run", "0", http_addr="[::1]:9", told=settings.told(Welcome))
    welcome = Pool(plan).welcome("pool", "ledger", 1000, 10)
    assert (welcome.copy_threads, welcome.verify, welcome.run_dir) == (7, True, "run")
    assert (welcome.http_addr, welcome.max_pinned_bytes) == ("[::1]:9", 500)


def test_every_name_that_a_setting_has_elsewhere_is_a_field_of_one_class() -> None:
    fields = [field.name for cls in TOLD for field in dataclasses.fields(cls)]
    told = [setting.told for setting in SETTINGS.values() if setting.told]
    assert len(set(told)) == len(told)
    assert {
        name: fields.count(name) for name in told if name != "drain_timeout_s"
    } == dict.fromkeys(set(told) - {"drain_timeout_s"}, 1)
    assert fields.count("drain_timeout_s") == 2, "the flusher has it, and the supervisor waits"


@pytest.mark.parametrize("cls", [FlushPlan, TcpPlan, PeerPlan])
def test_what_is_all_settings_has_no_default_of_its_own(
    cls: type[FlushPlan | TcpPlan | PeerPlan],
) -> None:
    fields = dataclasses.fields(cls)
    assert Settings(Path("/run")).told(cls).keys() == {field.name for field in fields}
    assert all(field.default is dataclasses.MISSING for field in fields)


def test_what_a_setting_needs_is_a_setting() -> None:
    assert {setting.needs for setting in SETTINGS.values()} <= {*SETTINGS, ""}


@pytest.mark.parametrize("admission", Admission)
def test_the_flusher_knows_its_settings_in_its_units(admission: Admission) -> None:
    settings = Settings(
        Path("/run"),
        ssd_cache_path=("/a",),
        ssd_cache_capacity=1 << 30,
        ssd_admission=admission,
        drain_timeout=2,
    )
    plan = FlushPlan(**settings.told(FlushPlan))
    assert (plan.paths, plan.capacity_bytes, plan.floor_bytes) == (("/a",), 1 << 30, None)
    assert plan.reused_only is (admission is Admission.REUSED)
    assert plan.drain_ns == 2_000_000_000


def test_the_supervisor_waits_for_the_flusher_if_there_is_one() -> None:
    told = Settings(Path("/run"), spares=5, drain_timeout=2).told(Plan)
    plan = Plan(run_dir="run", version="0", **told)
    assert (plan.spares, plan.flush_ns) == (5, 0)
    assert dataclasses.replace(plan, ssd=True).flush_ns == 2_000_000_000
