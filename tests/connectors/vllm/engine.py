"""Runs prompts through a real vLLM engine; prints one line of JSON per batch.

    python -m tests.connectors.vllm.engine MODEL '{"endpoint": "...", "lengths": [300, 513], ...}'

The second argument is JSON over `Options`. With `follow` the engine stays: each line read from
stdin (JSON over `Options`, for this batch only) runs the prompts once. A line says what vLLM itself
counted: tokens found in its own prefix cache and in the external one, and preemptions, as totals
since the start of the engine.

The model computes in float32 unless `more` says otherwise: in bfloat16 the output depends on which
requests share a step.

An engine that dies of a batch says so in place of the answer.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 1024
PIXELS = 64
"""Of a picture, on each side; both as `model.py` has them."""
PATIENCE_S = 30.0
BATCH_S = 90.0
"""A batch takes a few seconds; beyond this a request hangs, and it is printed what every thread of
the machine did in the last HANG_S, and the stacks of those processes that print theirs."""
HANG_S = 5.0

faulthandler.register(signal.SIGUSR1)  # of ranks too: they import this module, or are forked

METRICS = {
    "queries": "vllm:external_prefix_cache_queries",
    "external": "vllm:external_prefix_cache_hits",
    "local": "vllm:prefix_cache_hits",
    "preemptions": "vllm:num_preemptions",
}


@dataclass
class Options:
    """What a test can ask for."""

    endpoint: str = ""  # of the service; empty: no connector at all
    module: str = "pegaflow.connector"  # where PegaKVConnector is taken from
    extra: dict[str, Any] = field(default_factory=dict)  # more connector configuration
    more: dict[str, Any] = field(default_factory=dict)  # of vLLM's own settings
    role: str = "kv_both"
    events: str = ""  # where KV events are published; empty: nowhere
    beside: str = ""  # a module whose `Connector` is asked first, with ours in a MultiConnector
    lengths: list[int] = field(default_factory=lambda: [300, 513, 777, 641])
    seed: int = 7  # of the prompts
    after: list[list[int]] = field(default_factory=list)  # tokens behind each; empty: none
    tokens: int = 24  # to generate for each
    block_size: int = 32
    kv_blocks: int = 0  # blocks of KV memory; 0: a few thousand
    tp: int = 1  # tensor parallel ranks; with several, each is a process
    inproc: bool = True  # engine core in this process
    follow: bool = False
    reset: bool = False  # forget vLLM's own prefix cache first
    reset_connector: bool = False  # with `reset`: tell the connector, too
    reset_after: bool = False  # forget it right after the batch; the answer says whether it could
    params: dict[str, Any] | None = None  # kv_transfer_params of each request
    policy: str = "recompute"  # kv_load_failure_policy
    salt: str = ""  # cache_salt of each request; empty: none
    sampling: dict[str, Any] = field(default_factory=dict)  # more of SamplingParams
    embedded: bool = False  # prompts are embeddings, drawn by `seed` as well
    pictures: int = 0  # a picture before each prompt, drawn by this; 0: none
    abort_after: int = 0  # abort the first request after this many steps; 0: never
    kill_rank_after: int = 0  # SIGKILL the process of a rank after this many steps; 0: never


def prompts(options: Options) -> list[list[int]]:
    """Random tokens, the same for the same seed, and what goes on behind them."""
    draw = random.Random(options.seed)
    made = [[draw.randrange(3, VOCABULARY) for _ in range(n)] for n in options.lengths]
    after = options.after or [[] for _ in made]
    return [begin + end for begin, end in zip(made, after, strict=True)]


def build(model: str, options: Options) -> Any:
    """The engine."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if options.inproc else "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")
    from vllm import LLM
    from vllm.config import KVTransferConfig

    more: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048}
    more |= {"skip_tokenizer_init": True, **options.more}
    if options.endpoint:
        ours: dict[str, Any] = {
            "kv_connector": "PegaKVConnector",
            "kv_role": options.role,
            "kv_connector_module_path": options.module,
            "kv_connector_extra_config": {"pegaflow.endpoint": options.endpoint, **options.extra},
        }
        if options.beside:
            first = {**ours, "kv_connector": "Connector", "kv_connector_extra_config": {}}
            first["kv_connector_module_path"] = options.beside
            both = {"connectors": [first, ours]}
            ours = {"kv_connector": "MultiConnector", "kv_role": options.role}
            ours["kv_connector_extra_config"] = both
        more["kv_transfer_config"] = KVTransferConfig(**ours, kv_load_failure_policy=options.policy)
    if options.events:
        from vllm.config import KVEventsConfig

        more["kv_events_config"] = KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=options.events
        )
    if options.tp > 1:
        more |= {"tensor_parallel_size": options.tp, "distributed_executor_backend": "mp"}
    if options.kv_blocks:
        more["num_gpu_blocks_override"] = options.kv_blocks
    return LLM(
        model=model,
        max_num_seqs=8,
        block_size=options.block_size,
        enforce_eager=True,
        enable_prefix_caching=True,
        disable_log_stats=False,
        seed=0,
        **more,
    )


Counts = tuple[str, str, float, float]  # name, state, seconds run, seconds ready without a core


def counts() -> dict[str, Counts]:
    """Every thread of the machine, by PID/task/TID."""
    found: dict[str, Counts] = {}
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with contextlib.suppress(OSError):
            name, state = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            ran, ready, _ = (folder / "schedstat").read_text().split()
            found[str(folder)] = (name, state.split()[0], int(ran) / 1e9, int(ready) / 1e9)
    return found


def print_hang(before: dict[str, Counts]) -> None:
    """What has run since then and what had no core, and Python's stacks of the ranks."""
    for child in multiprocessing.active_children():
        caught = int(re.search(r"SigCgt:\s*(\w+)", status(child.pid))[1], 16)  # type: ignore[index]
        if caught >> (signal.SIGUSR1 - 1) & 1:
            os.kill(child.pid or 0, signal.SIGUSR1)
    for folder, (name, state, ran, ready) in counts().items():
        _, _, ran_before, ready_before = before.get(folder, (name, state, 0.0, 0.0))
        ran, ready = ran - ran_before, ready - ready_before
        if ran > 0.02 or ready > 0.02 or state in "RD":
            line = f"{folder} {name}: {state}, ran {ran:.2f} s, no core {ready:.2f} s"
            print(line, file=sys.stderr, flush=True)


def status(pid: int | None) -> str:
    """Of a process, as /proc says it."""
    return Path(f"/proc/{pid}/status").read_text()


def embeddings(llm: Any, tokens: list[int], seed: int) -> Any:
    """A row for each token; another one for another seed."""
    import torch

    config = llm.llm_engine.vllm_config.model_config
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, config.get_hidden_size(), generator=draw, dtype=config.dtype)
    return table[tokens]


def picture(seed: int) -> Any:
    """Noise; all have the same size."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8))


def batch(llm: Any, options: Options) -> dict[str, Any]:
    """Run all prompts at once."""
    from vllm import SamplingParams

    how = SamplingParams(
        max_tokens=options.tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args={"kv_transfer_params": options.params} if options.params else None,
        **{"temperature": 0, **options.sampling},
    )
    engine = llm.llm_engine
    salt = {"cache_salt": options.salt} if options.salt else {}
    for index, tokens in enumerate(prompts(options)):
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if options.pictures:
            prompt["multi_modal_data"] = {"image": picture(options.pictures + index)}
        if options.embedded:
            prompt = {"prompt_embeds": embeddings(llm, tokens, options.seed)}
        engine.add_request(str(index), {**prompt, **salt}, how)
    outs: list[Any] = []
    steps = 0
    until = time.monotonic() + BATCH_S
    before: dict[str, Counts] = {}
    while engine.has_unfinished_requests():
        if not before and time.monotonic() > until - HANG_S:
            before = counts()
        if time.monotonic() > until:
            print_hang(before)
            raise AssertionError(f"{len(options.lengths) - len(outs)} requests hang")
        outs += [out for out in engine.step() if out.finished]
        steps += 1
        if steps == options.abort_after:
            engine.abort_request(["0"])
        if steps == options.kill_rank_after:
            rank = multiprocessing.active_children()[-1]
            assert rank.pid is not None
            os.kill(rank.pid, signal.SIGKILL)
    could_reset = bool(options.reset_after and llm.reset_prefix_cache())
    outs.sort(key=lambda out: int(out.request_id))
    values = {m.name: getattr(m, "value", 0) for m in llm.get_metrics()}
    return {
        "requests": [int(out.request_id) for out in outs],
        "tokens": [[token for one in out.outputs for token in one.token_ids] for out in outs],
        "reasons": [out.outputs[0].finish_reason for out in outs],
        "cached": [out.num_cached_tokens for out in outs],
        "prompt": sum(options.lengths),
        "reset": could_reset,
        "sources": sources(llm),
        "seen": seen(llm),
        "left": left_over(llm, options),
        **{name: values.get(metric, 0) for name, metric in METRICS.items()},
    }


def sources(llm: Any) -> dict[str, int]:
    """Tokens that vLLM says it found, by where."""
    found: dict[str, int] = {}
    for metric in llm.get_metrics():
        if metric.name == "vllm:prompt_tokens_cached_by_source":
            tier = metric.labels["source"]
            found[tier] = found.get(tier, 0) + int(metric.value)
    return found


def seen(llm: Any) -> dict[str, float]:
    """The connector's metrics, by name and source; of a histogram the sum."""
    found: dict[str, float] = {}
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:pega_"):
            name = metric.name.removeprefix("vllm:pega_") + metric.labels.get("source", "")
            found[name] = metric.value if hasattr(metric, "value") else metric.sum
    return found


def forget(llm: Any, connector: bool) -> None:
    """Empty vLLM's own cache, which it does once no request holds blocks; then the connector's."""
    until = time.monotonic() + PATIENCE_S
    while not llm.reset_prefix_cache():
        assert time.monotonic() < until, "blocks are held although every request was answered"
    if connector:
        assert llm.reset_prefix_cache(reset_connector=True)


def left_over(llm: Any, options: Options) -> list[int]:
    """Requests and KV blocks still held once everything was answered; needs an engine in
    process."""
    if not options.inproc:
        return [0, 0]
    core = llm.llm_engine.engine_core.engine_core
    scheduler = core.scheduler
    until = time.monotonic() + PATIENCE_S
    while scheduler.has_requests() and time.monotonic() < until:
        core.step_fn()
    pool = scheduler.kv_cache_manager.block_pool
    return [len(scheduler.requests), pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()]


def say(what: dict[str, Any]) -> None:
    """One line, marked, for vLLM prints to stdout as well."""
    print("RESULT " + json.dumps(what), flush=True)


def main() -> None:
    """See the module."""
    options = Options(**json.loads(sys.argv[2]))
    llm = build(sys.argv[1], options)
    say({"ready": os.getpid()})
    for line in sys.stdin if options.follow else [""]:
        asked = Options(**{**vars(options), **json.loads(line or "{}")})
        if asked.reset:
            forget(llm, asked.reset_connector)
        faulthandler.dump_traceback_later(BATCH_S - HANG_S)
        answer: dict[str, Any] = {"died": True}
        try:
            answer = batch(llm, asked)
        finally:
            say(answer)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
