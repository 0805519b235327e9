"""Runs models of several kinds without a connector and with ours, and says what came of each.

    python -m tests.connectors.vllm.starts DIR '{"gemma": {...}, ...}'

DIR holds a model per name; the values are more arguments for vLLM. Both engines of a model run in
this process, one after the other: most of the time goes into importing vLLM. Prints one marked line
of JSON per model. There is no service: an engine that cannot be served does not even look for one.
"""

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from .engine import Options, prompts, say

OPTIONS = Options(lengths=[300, 177])
ROUNDS = 3
RATE = 16000
"""Samples of a second of sound."""


class Lines(logging.Filter):
    """What the connector has logged.  No handler: vLLM takes those away when an engine starts."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Remember it, and let it pass."""
        self.said.append(record.getMessage())
        return True


def heard(tokens: list[int]) -> dict[str, Any]:
    """These tokens as the beginning of what is said in a sound of its own."""
    import numpy as np

    wave = np.random.default_rng(len(tokens)).standard_normal(RATE).astype(np.float32)
    sound = {"prompt": "", "multi_modal_data": {"audio": (wave, RATE)}}
    return {"encoder_prompt": sound, "decoder_prompt": {"prompt_token_ids": tokens}}


def answers(llm: Any, pools: bool, hears: bool) -> list[Any]:
    """What the model says to the same prompts, again and again."""
    from vllm import PoolingParams, SamplingParams

    how: Any = PoolingParams(task="embed")
    if not pools:
        how = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    engine = llm.llm_engine
    found: list[Any] = []
    for _ in range(ROUNDS):
        for index, tokens in enumerate(prompts(OPTIONS)):
            asked = heard(tokens) if hears else {"prompt_token_ids": tokens}
            engine.add_request(str(index), asked, how)
        outs: list[Any] = []
        while engine.has_unfinished_requests():
            outs += [out for out in engine.step() if out.finished]
        outs.sort(key=lambda out: int(out.request_id))
        if pools:
            found.append([out.outputs.data.tolist() for out in outs])
        else:
            found.append([list(out.outputs[0].token_ids) for out in outs])
    return found


def run(model: str, ours: bool, more: dict[str, Any]) -> list[Any]:
    """The answers of one engine, from its start to its end."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    if ours:
        more = dict(more)
        more["kv_transfer_config"] = KVTransferConfig(
            kv_connector="PegaKVConnector",
            kv_role="kv_both",
            kv_connector_module_path="pegaflow.connector",
            kv_connector_extra_config={"pegaflow.endpoint": "/nobody/there"},
        )
    pools, hears = more.get("runner") == "pooling", "audio" in more.get("limit_mm_per_prompt", {})
    llm = LLM(
        model=model,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=4,
        enforce_eager=True,
        skip_tokenizer_init=not (pools or hears),
        seed=0,
        **more,
    )
    found = answers(llm, pools, hears)
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return found


def main() -> None:
    """See the module."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS"):
        os.environ.setdefault(name, "1")
    lines = Lines()
    logging.getLogger("vllm.pegaflow").addFilter(lines)
    for name, more in json.loads(sys.argv[2]).items():
        model = str(Path(sys.argv[1]) / more.pop("model", name))
        without = run(model, False, more)
        lines.said.clear()
        say({"name": name, "without": without, "ours": run(model, True, more), "said": lines.said})


if __name__ == "__main__":
    main()
