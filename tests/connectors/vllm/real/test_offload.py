"""The tier below vLLM's own offloading, driven by vLLM's own classes on CPU memory.

First its tiering manager, its host memory and its factory of tiers, called as the scheduler's half
of its connector does. Then its scheduler, with both halves of its connector: only the copies
between KV cache and host memory are not vLLM's (offloaded.py), and there is no model. What a model
would write for a token is a function of all tokens up to it.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.procs.service import Service, eventually

from .conftest import VLLM
from .tiered import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    CHUNKS,
    HEAD,
    HEADS,
    LAYERS,
    NAMES,
    Offloading,
    kv_cache_config,
)

pytestmark = pytest.mark.skipif(
    VLLM < (0, 33), reason="before vLLM 0.33 a tier is told too little to be served"
)


@pytest.fixture
def offloading(service: Service) -> Iterator[Any]:
    made: list[Offloading] = []

    def make(**said: Any) -> Offloading:
        made.append(Offloading(service, **said))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_one_engine_offloads_another_one_has_from_the_pool(offloading: Any) -> None:
    one = offloading()
    first = one.request("r")
    keys = one.keys(1, 2, 3)
    made = one.compute(first, keys, seed=1)
    one.settle()
    one.end(first)

    other = offloading()
    asked = other.request("q")
    assert other.found(asked, [*keys, *one.keys(4)]) == [True, True, True, False]
    assert other.read(asked, keys) == made
    other.end(asked)
    other.settle()


def test_what_falls_out_of_vllms_memory_comes_back(offloading: Any) -> None:
    one = offloading()
    first = one.request("r")
    keys = one.keys(*range(100, 104))
    made = one.compute(first, keys, seed=2)
    one.settle()
    for n in range(200, 200 + 2 * CHUNKS, CHUNKS):
        one.compute(first, one.keys(*range(n, n + CHUNKS)), seed=n)
        one.settle()
    one.end(first)
    asked = one.request("q")
    assert one.found(asked, keys) == [True] * 4
    assert one.read(asked, keys) == made


def test_engines_of_other_bytes_are_apart(offloading: Any) -> None:
    one, other = offloading(), offloading(dtype="fp8")
    first = one.request("r")
    keys = one.keys(300, 301)
    one.compute(first, keys, seed=3)
    one.settle()
    assert other.found(other.request("q"), keys) == [False, False]


def test_a_reset_of_vllms_cache_ends_jobs_and_changes_the_name(offloading: Any) -> None:
    one = offloading()
    first = one.request("r")
    keys = one.keys(400, 401)
    one.compute(first, keys, seed=4)
    with one.manager.lock:
        one.manager.reset_cache()
        one.manager.on_reset_flushed()
    eventually("it goes on", lambda: one.tier._carrier.attached and not one.tier._carrier._jobs)
    assert one.found(one.request("q"), keys) == [False, False]
    made = one.compute(first, keys, seed=5)
    one.settle()
    assert one.read(one.request("p"), keys) == made


def test_a_session_that_dies_costs_misses_and_failed_jobs(
    offloading: Any, service: Service
) -> None:
    one = offloading()
    first = one.request("r")
    keys = one.keys(500, 501)
    made = one.compute(first, keys, seed=6)
    one.settle()
    os.kill(service.session_of(one.tier._tenant.name).pid, signal.SIGKILL)
    one.compute(first, one.keys(502), seed=7)
    one.settle()
    other = offloading()
    asked = other.request("q")
    assert other.found(asked, keys) == [True, True]
    assert other.read(asked, keys) == made
    eventually("it has another session", lambda: one.tier._carrier.attached)


def test_vllms_events_tell_of_the_pool(offloading: Any) -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.events import (
        OffloadingEventsTracker,
    )

    one = offloading(enable_kv_events=True)
    first = one.request("r")
    keys = one.keys(600, 601)
    one.compute(first, keys, seed=8)
    one.settle()
    raw = list(one.manager.take_events())
    assert [event.keys for event in raw if event.ownership == "PegaTier"] == [keys]
    tracker = OffloadingEventsTracker(one._spec.kv_events_config)
    told = [event for event in tracker.take_events(raw) if event.ownership == "PegaTier"]
    assert [(type(event).__name__, event.medium) for event in told] == [("BlockStored", "CPU")] * 2
    assert [event.locality for event in told] == ["LOCAL"] * 2
    one.tier.drain_jobs()
    (gone,) = tracker.take_events(one.tier.take_events())
    assert type(gone).__name__ == "BlockRemoved" and gone.block_hashes == [
        hash for event in told for hash in event.block_hashes
    ]


class Steps:
    """vLLM's scheduler and OffloadingConnector, step by step."""

    BLOCKS = 64

    def __init__(self, service: Service, model: str) -> None:
        import torch
        from vllm.config import KVTransferConfig
        from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
            OffloadingConnector,
        )
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        init_none_hash(sha256)
        self._had: dict[str, int] = {}  # by request: tokens that were there when it began
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        tier = {"type": "PegaTier", "module_path": "pegaflow.tier", "endpoint": service.endpoint}
        extra = {
            "spec_name": "HostSpec",
            "spec_module_path": "tests.connectors.vllm.real.offloaded",
            "cpu_bytes_to_use": CHUNKS * BLOCK_BYTES,
            "secondary_tiers": [{**tier, "timeout_ms": 20_000}],
        }
        config = EngineArgs(
            model=model,
            dtype="float32",
            skip_tokenizer_init=True,
            block_size=BLOCK_TOKENS,
            max_model_len=1024,
            max_num_batched_tokens=256,
            enable_prefix_caching=True,
            async_scheduling=False,
            kv_transfer_config=KVTransferConfig(
                kv_connector="OffloadingConnector",
                kv_role="kv_both",
                engine_id=f"steps-{service.pid}-{next(NAMES)}",
                kv_connector_extra_config=extra,
            ),
        ).create_engine_config()
        cached = kv_cache_config(self.BLOCKS)
        config.cache_config.num_gpu_blocks = self.BLOCKS
        config.cache_config.kv_cache_layout = "LBHNC"
        self.scheduler = Scheduler(
            config,
            cached,
            StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
        )
        shape = (self.BLOCKS, HEADS, BLOCK_TOKENS, 2 * HEAD)
        self.cache = {layer: torch.zeros(shape) for layer in LAYERS}
        self.worker = OffloadingConnector(config, KVConnectorRole.WORKER, cached)
        self.worker.register_kv_caches(self.cache)
        eventually("the tier is attached", lambda: self.tier._carrier.attached)

    @property
    def tier(self) -> Any:
        (tier,) = self.scheduler.connector.connector_scheduler.manager.secondary_tiers
        return tier

    def run(self, name: str, tokens: list[int], more: int = 4) -> int:
        """One request to its end; the tokens that it need not compute. What lies in its blocks is
        compared before they are given up."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        how = SamplingParams(max_tokens=more, ignore_eos=True, temperature=0)
        request = Request(name, tokens, how, None, block_hasher=self._hasher)
        self.scheduler.add_request(request)
        eventually("the request has ended", lambda: self._step(request))
        return self._had[name]

    def _step(self, request: Any) -> bool:
        """Whether it has ended with this step."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        out = self.scheduler.schedule()
        worker = self.worker
        worker.bind_connector_metadata(out.kv_connector_metadata)
        worker.handle_preemptions(out.kv_connector_metadata)
        worker.start_load_kv(None)
        running = list(out.num_scheduled_tokens)
        for name in running:
            first = request.num_computed_tokens - out.num_scheduled_tokens[name]
            self._had.setdefault(name, first)
            self._check(request, first)
            self._write(request, first, request.num_computed_tokens)
        worker.wait_for_save()
        sent, received = worker.get_finished(out.finished_req_ids)
        said = KVConnectorOutput(
            finished_sending=sent or None,
            finished_recving=received or None,
            kv_connector_worker_meta=worker.build_connector_worker_meta(),
        )
        sampled = [
            [7] if request.num_computed_tokens >= request.num_tokens else [] for _ in running
        ]
        index = {name: at for at, name in enumerate(running)}
        made = ModelRunnerOutput(running, index, sampled, kv_connector_output=said)
        self.scheduler.update_from_output(out, made)
        return request is None or bool(request.is_finished())

    def idle(self) -> None:
        """Steps without requests, until vLLM and the tier have nothing left to do."""

        def settled() -> bool:
            self._step(None)
            return not self.scheduler.connector.has_pending_push_work()

        eventually("nothing is left to do", settled)

    def _places(self, request: Any, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(block, token of it, the number that a model would write there) of each token."""
        (blocks,) = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)
        tokens = list(request.all_token_ids)
        state = 0
        for at, token in enumerate(tokens[:last]):
            state = (state * 31 + token + 1) % 65521
            if at >= first:
                yield blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS, state

    def _write(self, request: Any, first: int, last: int) -> None:
        for block, at, number in self._places(request, first, last):
            for depth, cache in enumerate(self.cache.values()):
                cache[block, :, at] = number + depth

    def _check(self, request: Any, last: int) -> None:
        for block, at, number in self._places(request, 0, last):
            for depth, cache in enumerate(self.cache.values()):
                assert (cache[block, :, at] == number + depth).all(), (block, at)

    def forget(self) -> None:
        """vLLM's own caches are emptied, the tier told of nothing."""
        assert self.scheduler.reset_prefix_cache()

    def close(self) -> None:
        self.worker.shutdown()
        self.scheduler.shutdown()


@pytest.fixture
def steps(service: Service, model: str) -> Iterator[Any]:
    made: list[Steps] = []

    def make() -> Steps:
        made.append(Steps(service, model))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_vllms_scheduler_has_from_the_pool_what_another_one_has_offloaded(steps: Any) -> None:
    prompt = [n * 7 % 1000 for n in range(200)]
    one = steps()
    assert one.run("first", prompt) == 0
    one.idle()
    one.run("other", [n * 11 % 1000 for n in range(400)])  # more than vLLM's host memory has
    one.idle()
    one.forget()
    assert one.run("again", prompt) == 192, "its own, by way of the pool"
    one.idle()

    other = steps()
    assert other.run("q", [*prompt, *range(300, 340)]) == 192
    other.idle()
    other.forget()
    assert other.scheduler.reset_prefix_cache(reset_connector=True)
    other.idle()
    assert other.run("p", prompt) == 0, "after a reset it is in a cache of its own"
