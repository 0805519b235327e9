"""`vllm bench serve` of several contestants: cores, counters, rows and goals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from perf.serve import __main__ as serve
from perf.serve import contestants, engine, table
from perf.serve.cores import on, ways
from perf.serve.table import COLD, KEPT, REPEATED, RESTARTED, WARM, Run

PAGE = """\
# HELP vllm:external_prefix_cache_hits_total Tokens.
# TYPE vllm:external_prefix_cache_hits_total counter
vllm:external_prefix_cache_hits_total{engine="0",model_name="/a b"} 2048.0
vllm:external_prefix_cache_hits_total{engine="1",model_name="/a b"} 1024.0
vllm:external_prefix_cache_hits_created{engine="0"} 1.79e+09
vllm:prefix_cache_hits_total{engine="0"} 7.0
"""


def run(who: str, what: str, seconds: float, ttft: float, turn: int = 0) -> Run:
    """A thousand tokens, of which half are found where it is warm."""
    found = 0 if what == COLD else 480
    return Run(
        who,
        what,
        turn,
        seconds,
        prompt_tokens=960,
        new_tokens=40,
        found=found,
        ttfts=(ttft, 2 * ttft),
        load=1.0 + turn,
    )


def test_the_last_core_is_left_to_the_service() -> None:
    both = ways({0, 1, 5})
    assert list(both) == ["free", "busy"]
    assert (both["free"].engine, both["free"].rest) == (frozenset({0, 1}), frozenset({5}))
    assert both["busy"].engine == both["busy"].rest == frozenset({0, 1, 5})
    assert list(ways({3})) == ["busy"]


def test_what_is_started_meanwhile_has_these_cores() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(UserError), on(frozenset({min(before)})):
        assert os.sched_getaffinity(0) == {min(before)}
        raise UserError("it does not start")
    assert os.sched_getaffinity(0) == before


def test_a_counter_is_summed_over_engines() -> None:
    assert engine.counted(PAGE, engine.FOUND) == 3072
    assert engine.counted(PAGE, "vllm:prefix_cache_hits_total") == 7
    assert engine.counted("", engine.FOUND) == 0


def test_what_an_engine_is_told() -> None:
    with contestants.native(1 << 30) as told:
        said = json.loads(told)
        left = Path(f"/dev/shm/vllm_offload_{said['engine_id']}.mmap")
        left.touch()
    assert not left.exists(), "an engine that is told to end leaves it"
    assert said["kv_connector"] == "OffloadingConnector" and "kv_connector_module_path" not in said
    assert said["kv_connector_extra_config"]["cpu_bytes_to_use"] == 1 << 30
    said = json.loads(contestants.told("X", "a.module", {}))
    assert said["kv_connector_module_path"] == "a.module"


def test_who_is_not_there_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^none: no {tmp_path}/python$"):
        serve.choose(tmp_path / "python", tmp_path, serve.WHO)


@pytest.mark.parametrize("tokens", [serve.PROMPT_TOKENS, 3840])
def test_prompts_that_begin_alike_and_that_do_not(tokens: int) -> None:
    load = serve.Load(16, 2, tokens)
    alone, alike = load.new(1).arguments(), load.alike(2).arguments()
    assert alone[alone.index("--prefix-repetition-num-prefixes") + 1] == "16"
    assert alike[alike.index("--prefix-repetition-num-prefixes") + 1] == "2"
    for given in (alone, alike):
        lengths = [
            int(given[given.index(f"--prefix-repetition-{part}-len") + 1])
            for part in ("prefix", "suffix")
        ]
        assert sum(lengths) == tokens + serve.LAST_TOKENS
        assert lengths[0] % contestants.CHUNK_TOKENS == 0


def test_rows_and_goals() -> None:
    runs = [
        run("none", COLD, 1.0, 0.5),
        run("none", COLD, 2.0, 0.5, turn=1),
        run("ours", COLD, 1.02, 0.6),
        run("ours", COLD, 2.06, 0.6, turn=1),
        run("lmcache", COLD, 1.2, 0.7),
        run("none", KEPT, 0.2, 0.1),
        run("ours", WARM, 0.2, 0.1),
        run("lmcache", WARM, 0.4, 0.3),
        run("native", WARM, 0.4, 0.2),
        run("none", REPEATED, 0.4, 0.2),
        run("ours", REPEATED, 0.5, 0.2),
    ]
    found = table.rows("free", runs)
    assert [row[:4] for row in found[:5]] == [
        ["free", COLD, "none", "4"],
        ["free", COLD, "ours", "4"],
        ["free", COLD, "lmcache", "2"],
        ["free", KEPT, "none", "2"],
        ["free", WARM, "ours", "2"],
    ]
    none, ours, lmcache, kept, warm, slow, native, *repeated = found
    assert none[4:] == ["0%", "500", "1000", "667", "", "0.71", "", "2.0"]
    assert ours[8:11] == ["1.025", "0.86", "pass (< 1.03)"]
    assert lmcache[8:11] == ["1.200", "", ""]
    assert kept[8:11] == ["", "", ""]
    assert warm[4:11] == ["50%", "100", "200", "5000", "", "0.33", "pass (< 0.5)"]
    assert slow[10] == "" and native[9:11] == ["0.67", ""]
    assert [row[10] for row in repeated] == ["", ""] and repeated[1][8] == "1.250"


def test_what_is_said_of_a_run_while_others_go_on() -> None:
    said = "turn 2, ours, warm: 50% found, TTFT p50 100 ms, 5000 tokens/s"
    assert str(run("ours", WARM, 0.2, 0.1, turn=1)) == said


def test_a_goal_is_of_ours_and_where_it_was_set() -> None:
    assert table.goal("free", COLD, "ours", (1.031, 0.0)) == "miss (< 1.03)"
    assert table.goal("busy", COLD, "ours", (1.0, 0.0)) == ""
    assert table.goal("busy", RESTARTED, "ours", (0.0, 0.51)) == "miss (< 0.5)"
    assert table.goal("free", WARM, "ours", (0.0, 0.0)) == ""
    assert table.goal("free", WARM, "native", (0.0, 0.4)) == ""
