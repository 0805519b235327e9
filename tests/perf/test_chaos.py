"""The chaos table: what it calls a failure, and that its engines notice wrong bytes."""

from __future__ import annotations

import numpy as np

from pegaflow.actors.roster import ROSTER
from pegaflow.wire.values import PEER, SUPERVISOR
from perf.chaos import BAD, FAULTS, KILLED, STOPPED, failures
from perf.chaosfiles import FILE_FAULTS
from perf.chaosload import CHAIN, TIMEOUTS, Engine, content, keys

CALM = {"blocks_loaded": 5, "sealed": 5, **dict.fromkeys(BAD, 0)}
IN_TIME = dict(TIMEOUTS)


def test_nothing_wrong_is_no_failure() -> None:
    assert failures(CALM, IN_TIME) == []


def test_whatever_is_wrong_is_named() -> None:
    assert failures({**CALM, "wrong_bytes": 1}, IN_TIME) == ["wrong_bytes 1"]
    assert failures({**CALM, "lost": 3, "evicted": 2}, IN_TIME) == ["lost 3", "evicted 2"]
    assert failures(CALM, {**IN_TIME, "load": 9.0}) == ["load took 9.00 s"]
    assert failures({**CALM, "blocks_loaded": 0}, IN_TIME) == ["nothing was loaded"]


def test_every_actor_is_hit_in_every_way() -> None:
    assert len(set(FAULTS)) == len(FAULTS)
    for way in (KILLED, STOPPED):
        hit = {who for how, who in FAULTS if how == way}
        of_one_host = {spec.name for spec in ROSTER} - {PEER}
        assert {SUPERVISOR, *of_one_host} <= hit
    assert set(FILE_FAULTS) <= set(FAULTS)


def test_an_engine_knows_the_bytes_of_a_key_from_those_of_any_other() -> None:
    engine = Engine("nowhere", "test")
    first, second = keys(1)[:2]
    engine.compute(0, first)
    assert engine.holds(0, first) and not engine.holds(0, second)
    engine.view[1, 0, 7] ^= np.uint64(1)
    assert not engine.holds(0, first), "one bit is enough"
    engine.compute(0, first)
    engine.spoil(0)
    assert not engine.holds(0, first)
    words = {content(key)[0, 0].item() for chain in range(9) for key in keys(chain)}
    assert len(words) == 9 * CHAIN
    engine.client.close()
