"""A setting that Welcome has a field for reaches the children by its name alone."""

from pathlib import Path

from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.pool import Pool
from pegaflow.service.serve import told
from pegaflow.service.settings import Settings


def test_what_was_set_is_what_children_are_told() -> None:
    settings = Settings(Path("/run"), copy_threads=7, verify=True, http_addr="1.2.3.4:5")
    plan = Plan(1, "run", "0", http_addr="[::1]:9", told=told(settings), max_pinned=0.5)
    welcome = Pool(plan).welcome("pool", "ledger", 1000, 10)
    assert (welcome.copy_threads, welcome.verify, welcome.run_dir) == (7, True, "run")
    assert (welcome.http_addr, welcome.max_pinned_bytes) == ("[::1]:9", 500)
