"""What the vLLM connector costs the engine's thread per scheduler step: python -m perf.step

Both halves of the connector, called in vLLM's order with stand-ins for its objects, over a real
service.  DECODERS requests decode, and every step that finds the last newcomer gone brings a new
one of PROMPT tokens, which then decodes for LIFE steps: in turn one with a prompt that is in no
cache (it is computed and saved) and one with the prompt that was computed BEHIND pairs of newcomers
before (it is found and loaded).  What the decoders fill is saved too.  A figure is the time spent
in the connector's methods in one step, waiting included; copies are done by the worker's own
thread.  Under each half stand its methods, each over the steps in which it was called: what was
spent in all of its calls of a step.  A method in which nothing is done (`wait_for_layer_load` and
`save_kv_layer`, once for every layer) has its row too.

Goal: a median and a p99 under 200 us for each half.  In an engine with one process they add up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

from rich.table import Table

import pegaflow.connectors.vllm.worker
from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm.layout import Tensor
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from perf import command, machine
from perf.machine import microseconds, percentile, verdict
from tests.connectors.vllm import fakes

T = TypeVar("T")
Spent = dict[tuple[str, str], float]
"""Seconds of one step, by half and method."""

COLUMNS = ("half", "method", "steps", "p50", "p99", "most", "goal (us)", "load")
GOAL_US = 200.0
HALVES = ("scheduler", "worker")
TOKENS = 16  # of a block
LAYERS, LAYER_BYTES = 8, 8192
DECODERS, PROMPT, BLOCKS = 16, 512, 4096
POOL = 512 << 20
BEHIND, LIFE = 4, 8
FORWARD_S, SERVED_S = 0.002, 30.0


class FullAttentionSpec:
    """The connector goes by the name of this class."""

    block_size = TOKENS


@dataclass
class Request:
    """vLLM's Request."""

    request_id: str
    num_tokens: int
    block_hashes: list[bytes]
    ids: list[int]  # the engine's blocks
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0


@dataclass
class Engine:
    """A connector's two halves, and the time that each has cost in this step."""

    config: Any
    cache: Any
    spent: Spent = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)  # that are scheduled
    hits: int = 0  # newcomers that were found in the step that asked
    received: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        role = fakes.role
        held = machine.memory(LAYERS * BLOCKS * LAYER_BYTES)
        self.memory = held.reshape(LAYERS, BLOCKS, LAYER_BYTES)
        self.worker = PegaKVConnector(self.config, role("WORKER"), self.cache)
        self.worker.register_kv_caches({f"layers.{i}": self.memory[i] for i in range(LAYERS)})
        self.scheduler = PegaKVConnector(self.config, role("SCHEDULER"), self.cache)
        self.scheduler.bind_gpu_block_pool(SimpleNamespace(get_num_free_blocks=lambda: BLOCKS // 2))

    def call(self, half: str, method: Callable[..., T], *arguments: Any) -> T:
        """Call it, and note the time."""
        seconds, found = machine.timed(lambda: method(*arguments))
        name = (half, method.__name__)
        self.spent[name] = self.spent.get(name, 0.0) + seconds
        return found

    def step(self, output: Any) -> Spent:
        """The fixed calls of a step; those before are included in what is returned."""
        scheduler, worker, call = self.scheduler, self.worker, self.call
        orders = call("scheduler", scheduler.build_connector_meta, output)
        self._count(output)
        call("worker", worker.handle_preemptions, orders)
        call("worker", worker.bind_connector_metadata, orders)
        call("worker", worker.start_load_kv, None)
        for layer in range(LAYERS):
            call("worker", worker.wait_for_layer_load, f"layers.{layer}")
            call("worker", worker.save_kv_layer, f"layers.{layer}", self.memory[layer], None)
        call("worker", worker.wait_for_save)
        results = call("worker", worker.get_transfer_results, set())
        sent, received = results.finished_sending, results.finished_recving
        bad = call("worker", worker.get_block_ids_with_load_errors)
        call("worker", worker.get_kv_connector_stats)
        meta = call("worker", worker.build_connector_worker_meta)
        call("worker", worker.clear_connector_metadata)
        ended = fakes.worker_output(received, bad, meta)
        call("scheduler", scheduler.update_connector_output, ended)
        call("scheduler", scheduler.get_kv_connector_stats)
        call("scheduler", scheduler.take_events)
        self.received |= received or set()
        self.sent |= sent or set()
        spent, self.spent = self.spent, {}
        return spent

    def _count(self, output: Any) -> None:
        """The tokens of this step are computed, as vLLM says of each request."""
        cached, scheduled = output.scheduled_cached_reqs, output.num_scheduled_tokens
        rows = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        rows += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        for name, computed in rows:
            self.requests[name].num_computed_tokens = computed + scheduled[name]

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()


def request(name: str, tokens: int, first: int, salt: str) -> Request:
    """A request whose blocks begin at `first`, with hashes of their own for each salt."""
    count = tokens // TOKENS
    hashes = [f"{salt}/{i}".encode().ljust(32) for i in range(count)]
    return Request(name, tokens, hashes, list(range(first, first + count)))


def newcomer(engine: Engine, number: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """One request's life; each yield is a step, with the rows of `fakes.output` that it adds: as a
    new request, and as one that goes on."""
    salt = f"new {number // 2 - number % 2 * BEHIND}"  # each is computed once and loaded once
    first = BLOCKS // 2 + number % 32 * (PROMPT // TOKENS)
    new = request(f"new-{number}", PROMPT + 1, first, salt)
    call, scheduler = engine.call, engine.scheduler
    engine.requests[new.request_id] = new
    call("scheduler", scheduler.on_new_request, new)
    tokens, _ = call("scheduler", scheduler.get_num_new_matched_tokens, new, 0)
    engine.hits += bool(tokens)
    while tokens is None:
        yield [], []
        tokens, _ = call("scheduler", scheduler.get_num_new_matched_tokens, new, 0)
    call("scheduler", scheduler.update_state_after_alloc, new, fakes.blocks(new.ids), tokens)
    if tokens:
        call("scheduler", scheduler.get_external_cache_hit_sources, new, tokens)
    while tokens and new.request_id not in engine.received:
        yield [], []
    yield [(new.request_id, new.ids, tokens, new.num_tokens - tokens)], []
    for _ in range(LIFE):
        new.num_tokens += 1
        yield [], [(new.request_id, None, new.num_tokens - 1, 1)]
    held, _ = call("scheduler", scheduler.request_finished, new, new.ids)
    del engine.requests[new.request_id]
    while held and new.request_id not in engine.sent:
        yield [], []


def warm_up(engine: Engine) -> int:
    """Take steps until both halves are attached, and what is in memory is found at once.

    Returns:
        Newcomers that came.

    Raises:
        UserError: that takes too long.
    """
    until = time.monotonic() + SERVED_S
    for number in count():
        for fresh, going_on in newcomer(engine, number):
            engine.step(fakes.output(new=fresh, cached=going_on))
            time.sleep(FORWARD_S)
        if engine.hits:
            return number + 1
        if time.monotonic() > until:
            break
    raise UserError(f"no lookup was answered in its step for {SERVED_S:.0f} s")


def measure(engine: Engine, steps: int) -> list[Spent]:
    """Of each step."""
    each = PROMPT // TOKENS + steps // TOKENS + 2
    assert DECODERS * each <= BLOCKS // 2, "more steps than there are blocks"
    came = warm_up(engine)
    engine.hits, decoders = 0, []
    for i in range(DECODERS):
        made = request(f"decoder-{i}", each * TOKENS, i * each, f"decoder {i} {os.getpid()}")
        engine.requests[made.request_id] = made
        engine.scheduler.on_new_request(made)
        engine.scheduler.get_num_new_matched_tokens(made, 0)
        engine.scheduler.update_state_after_alloc(made, fakes.blocks(made.ids), 0)
        decoders.append(made)
    engine.step(fakes.output(new=[(d.request_id, d.ids, 0, PROMPT) for d in decoders]))
    found = []
    lives = (step for number in count(came) for step in newcomer(engine, number))
    for done in range(steps):
        decoding = [(d.request_id, None, PROMPT + done, 1) for d in decoders]
        fresh, going_on = next(lives)
        found.append(engine.step(fakes.output(new=fresh, cached=decoding + going_on)))
        time.sleep(FORWARD_S)
    print(f"{engine.hits} newcomers were found in the step that asked")
    return found


def rows(found: Sequence[Spent]) -> list[list[str]]:
    """Each half, its methods in the order of their first call, and both halves together."""
    made = []
    methods = dict.fromkeys(name for spent in found for name in spent)
    for half in HALVES:
        made.append(_row(half, "", [_sum(spent, half) for spent in found]))
        for name in methods:
            if name[0] == half:
                own = [spent[name] for spent in found if name in spent]
                made.append(_row("", name[1], own))
    made.append(_row("both", "", [sum(spent.values()) for spent in found]))
    return made


def _sum(spent: Spent, half: str) -> float:
    return sum(seconds for (own, _), seconds in spent.items() if own == half)


def _row(half: str, method: str, seconds: Sequence[float]) -> list[str]:
    figures = (percentile(seconds, 50), percentile(seconds, 99), max(seconds))
    goal = " ".join(verdict(figure * 1e6, GOAL_US) for figure in figures[:2]) if half else ""
    cells = [half, method, str(len(seconds)), *map(microseconds, figures)]
    return [*cells, goal, machine.load() if half else ""]


@contextmanager
def without_torch() -> Iterator[None]:
    """numpy arrays pass for vLLM's tensors."""

    def tensors(caches: dict[str, Any]) -> list[Tensor]:
        return [
            Tensor(
                n,
                a.shape,
                a.strides,
                0,
                element=1,
                dtype="uint8",
                storage=a.ctypes.data,
                storage_bytes=a.nbytes,
            )
            for n, a in caches.items()
        ]

    names = vars(pegaflow.connectors.vllm.worker)
    kept = names["tensors"], names["buffers"]
    names["tensors"] = tensors
    names["buffers"] = lambda caches, _: [a.reshape(-1) for a in caches.values()]
    try:
        yield
    finally:
        names["tensors"], names["buffers"] = kept


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    steps = 50 if given.quick else given.steps
    group = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
    cache = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group], hash_block_size=TOKENS)
    table = Table(*COLUMNS, box=None, caption="microseconds of the engine's thread per step")
    with service.running(POOL) as endpoint, without_torch():
        engine = Engine(fakes.config(extra={"pegaflow.endpoint": endpoint}), cache)
        try:
            found = measure(engine, steps)
        finally:
            engine.close()
    for row in rows(found):
        table.add_row(*row)
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.step", main)
