"""The rows of perf.serve: what was measured, beside whom, and the goals.

A figure of a row is over the requests of all turns together: percentiles of their times to the
first token, and tokens, those of the prompts included, by the seconds of all turns.  What a
contestant costs is the median over the turns, each beside the engine without a connector in the
same turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from perf.machine import percentile, verdict
from perf.serve.contestants import LMCACHE, NONE, OURS
from perf.serve.cores import FREE

COLUMNS = (
    *("cores", "what", "who", "requests", "found", "TTFT p50", "p99", "tok/s", "none's tok/s"),
    *("TTFT of LMCache's", "goal", "load"),
)
COLD, KEPT, WARM, RESTARTED = "cold", "kept", "warm", "warm, restarted"
REPEATED, REPEATED_RESTARTED = "prefix repetition", "repetition, restarted"
ORDER = (COLD, KEPT, WARM, RESTARTED, REPEATED, REPEATED_RESTARTED)
COST, SHARE = 1.03, 0.5


@dataclass(frozen=True)
class Run:
    """One `vllm bench serve`."""

    who: str
    what: str
    turn: int
    seconds: float
    prompt_tokens: int
    new_tokens: int
    found: int  # tokens of prompts, by the connector
    ttfts: tuple[float, ...]  # seconds
    load: float

    @property
    def speed(self) -> float:
        """Tokens a second, prompts included."""
        return (self.prompt_tokens + self.new_tokens) / self.seconds

    def __str__(self) -> str:
        """Who, what, and what came of it, in one line."""
        share = self.found / self.prompt_tokens
        first = 1e3 * percentile(self.ttfts, 50)
        said = f"turn {self.turn + 1}, {self.who}, {self.what}"
        return f"{said}: {share:.0%} found, TTFT p50 {first:.0f} ms, {self.speed:.0f} tokens/s"


def rows(cores: str, runs: Sequence[Run]) -> list[list[str]]:
    """One for each contestant and each thing that was measured.

    Args:
        cores: of which way all these runs are.
    """
    found = []
    for what in ORDER:
        own = [run for run in runs if run.what == what]
        names = dict.fromkeys(run.who for run in own)
        found += [_row(cores, name, own) for name in names]
    return found


def _row(cores: str, name: str, runs: Sequence[Run]) -> list[str]:
    """Of one contestant, among the runs of all."""
    own = [run for run in runs if run.who == name]
    ttfts = [seconds for run in own for seconds in run.ttfts]
    prompts = sum(run.prompt_tokens for run in own)
    tokens = prompts + sum(run.new_tokens for run in own)
    cost, share = costs(name, runs), shares(name, runs)
    return [
        cores,
        own[0].what,
        name,
        str(len(ttfts)),
        f"{sum(run.found for run in own) / prompts:.0%}",
        f"{1e3 * percentile(ttfts, 50):.0f}",
        f"{1e3 * percentile(ttfts, 99):.0f}",
        f"{tokens / sum(run.seconds for run in own):.0f}",
        f"{cost:.3f}" if cost else "",
        f"{share:.2f}" if share else "",
        goal(cores, own[0].what, name, (cost, share)),
        f"{max(run.load for run in own):.1f}",
    ]


def costs(name: str, runs: Sequence[Run]) -> float:
    """How many times its tokens a second the engine without a connector has; 0: not known."""
    none = {run.turn: run.speed for run in runs if run.who == NONE}
    pairs = [none[run.turn] / run.speed for run in runs if run.who == name and run.turn in none]
    return median(pairs) if pairs and name != NONE else 0.0


def shares(name: str, runs: Sequence[Run]) -> float:
    """Its median time to the first token, of LMCache's; 0: not known."""
    times = {
        who: [seconds for run in runs if run.who == who for seconds in run.ttfts]
        for who in (name, LMCACHE)
    }
    if name == LMCACHE or not times[LMCACHE]:
        return 0.0
    return percentile(times[name], 50) / percentile(times[LMCACHE], 50)


def goal(cores: str, what: str, name: str, reached: tuple[float, float]) -> str:
    """What ours has reached.

    Args:
        reached: `costs` and `shares`.
    """
    cost, share = reached
    if name != OURS:
        return ""
    if what == COLD and cores == FREE and cost:
        return verdict(round(cost, 3), COST)
    if what in {WARM, RESTARTED} and share:
        return verdict(round(share, 2), SHARE)
    return ""
