"""A pair of data parallel ranks behind one front end.

    python -m tests.connectors.vllm.dataparallel MODEL ENDPOINT

Each line read from stdin is the number of a rank, which is asked the same prompts as always; prints
one marked line of JSON for it.

The front end, a coordinator, two engines and a worker of each are six processes. vLLM forks them,
except on the CPU, where each imports all of vLLM anew; here they are forked on the CPU, too.
"""

import asyncio
import os
import sys
from typing import Any

from .engine import Options, prompts, say

OPTIONS = Options(lengths=[300, 177])


def build(model: str, endpoint: str) -> Any:
    """The front end and its two engines."""
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    transfer = KVTransferConfig(
        kv_connector="PegaKVConnector",
        kv_role="kv_both",
        kv_connector_module_path="pegaflow.connector",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={"pegaflow.endpoint": endpoint, "pegaflow.timeout_ms": 20_000},
    )
    config = AsyncEngineArgs(
        model=model,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=4,
        block_size=OPTIONS.block_size,
        enforce_eager=True,
        skip_tokenizer_init=True,
        seed=0,
        data_parallel_size=2,
        kv_transfer_config=transfer,
    ).create_engine_config()
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # making the configuration has set it
    return AsyncLLM.from_vllm_config(config)


async def run(llm: Any, rank: int, name: str) -> dict[str, Any]:
    """One batch at one rank."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)

    async def one(index: int, tokens: list[int]) -> tuple[int, list[int]]:
        last: Any = None
        asked = {"prompt_token_ids": tokens}
        async for out in llm.generate(asked, how, f"{name}-{index}", data_parallel_rank=rank):
            last = out
        return last.num_cached_tokens, list(last.outputs[0].token_ids)

    answers = await asyncio.gather(*(one(i, t) for i, t in enumerate(prompts(OPTIONS))))
    return {"cached": [cached for cached, _ in answers], "tokens": [t for _, t in answers]}


async def main() -> None:
    """See the module."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")
    llm = build(*sys.argv[1:])
    say({})
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        number += 1
        say(await run(llm, int(line), str(number)))
    llm.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
