"""Several engines, one after the other in one process:

    python -m tests.connectors.vllm.real.lives ENDPOINT DIR

Prints one line of JSON per run: what it was, its tokens, and how many were found in the cache. Each
engine is built on the same tiny model, or on one that differs in one thing only.
"""

import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from pegaflow.connectors.vllm.digests import SETTLED_S
from tests.connectors.vllm.engine import METRICS, Options, build, prompts
from tests.connectors.vllm.engine import say as print_line
from tests.connectors.vllm.model import make
from tests.procs.service import eventually

HIT = 256
"""Tokens of the prompts' full blocks, most of them."""


class Life:
    """One engine."""

    def __init__(self, endpoint: str, model: Path, **more: Any) -> None:
        self.options = Options(
            endpoint=endpoint,
            lengths=[150, 230],
            tokens=12,
            extra={"pegaflow.timeout_ms": 20_000},
            more={"max_model_len": 1024, **more},
        )
        self.llm = build(str(model), self.options)
        self._before = 0

    def run(self, what: str, adapter: Any = None) -> int:
        """All prompts at once, none of them in vLLM's own cache; tokens found in ours."""
        from vllm import SamplingParams

        eventually("vLLM has all its blocks back", self.llm.reset_prefix_cache)
        how = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": tokens} for tokens in prompts(self.options)]
        outs = self.llm.generate(asked, how, use_tqdm=False, lora_request=adapter)
        values = {m.name: getattr(m, "value", 0) for m in self.llm.get_metrics()}
        total = values.get(METRICS["external"], 0)
        found, self._before = total - self._before, total
        tokens = [list(out.outputs[0].token_ids) for out in outs]
        print_line({"what": what, "tokens": tokens, "external": found})
        return int(found)

    def find(self, what: str, adapter: Any = None) -> None:
        """Run until what another engine has saved is found: the first prompts may come before the
        session is there."""
        eventually(what, lambda: self.run(what, adapter) >= HIT, patience=20)

    def fill(self, what: str, adapter: Any = None) -> None:
        """Run until what the first run has saved is found."""
        self.run(what, adapter)
        eventually(what, lambda: self.run(f"{what}, again", adapter) >= HIT, patience=20)

    def end(self) -> None:
        """Everything of it goes."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def variant(model: Path, name: str, config: dict[str, Any] | None = None) -> Path:
    """A copy of the model, with entries of its configuration changed."""
    path = model.parent / name
    shutil.copytree(model, path)
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **config} if config else said, indent=2))
    return path


def flip(model: Path, of: str) -> None:
    """One tensor in the middle of the weight file is another one; nothing else changes."""
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    begin, end = (8 + size + at for at in json.loads(content[8 : 8 + size])[of]["data_offsets"])
    content[begin:end] = (
        content[begin + (end - begin) // 2 : end] + content[begin : begin + (end - begin) // 2]
    )
    path.write_bytes(content)


FLIPPED = "model.layers.1.mlp.down_proj.weight"
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 32,
    "long_factor": [4.0] * 32,
    "original_max_position_embeddings": 512,
}
MORE_ROPE = {"rope_parameters": LONG, "original_max_position_embeddings": 512}


def settings(endpoint: str, model: Path) -> None:
    """Engines that differ in one thing."""
    first = Life(endpoint, model)
    first.fill("the first")
    first.end()
    copy = variant(model, "copy")
    shutil.copy(model / "config.json", copy / "config.json")
    life = Life(endpoint, copy)
    life.find("the same files elsewhere")
    life.end()
    cases: dict[str, Any] = {
        "random weights": (model, {"load_format": "dummy"}),
        "a field overridden": (model, {"hf_overrides": {"rms_norm_eps": 0.5}}),
        "a field edited on disk": (variant(model, "edited", {"rms_norm_eps": 0.5}), {}),
    }
    for what, (path, more) in cases.items():
        life = Life(endpoint, path, **more)
        life.run(what)
        life.end()
    flip(copy, FLIPPED)
    life = Life(endpoint, copy)
    life.run("a tensor replaced in place")
    life.end()
    long = variant(model, "long", MORE_ROPE)
    for length in (512, 1024):
        life = Life(endpoint, long, max_model_len=length)
        life.fill(f"longrope at {length}")
        life.end()


def living(endpoint: str, model: Path) -> None:
    """Weights replaced in a living process, and not replaced."""
    life = Life(endpoint, model)
    life.find("a living engine")
    life.llm.sleep(level=1)
    life.llm.wake_up()
    life.run("after sleep")
    assert life.llm.reset_prefix_cache(reset_connector=True)
    life.run("after a reset")
    for how, path in (("told", model.parent / "copy"), ("untold", model)):
        life.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        if how == "told":
            assert life.llm.reset_prefix_cache(reset_connector=True)
        life.fill(f"other weights, {how}")
    life.end()


def adapters(endpoint: str, model: Path) -> None:
    """A LoRA adapter under its old name, with other weights."""
    from vllm.lora.request import LoRARequest

    path = model.parent / "adapter"
    asked = LoRARequest("sql", 1, str(path))
    for number in range(2):
        life = Life(endpoint, model, enable_lora=True, max_lora_rank=8)
        life.run("without an adapter")
        (life.find if number else life.fill)(f"adapter, engine {number}", asked)
        if number:
            lora(path, 2)
            again = LoRARequest("sql", 1, str(path), load_inplace=True)
            life.run("adapter reloaded", again)
            life.run("adapter reloaded, again", asked)
        life.end()
    eventually("the adapter is older than the next engine", lambda: age(path) > SETTLED_S)
    life = Life(endpoint, model, enable_lora=True, max_lora_rank=8)
    life.fill("adapter of other weights", asked)
    life.end()


def age(path: Path) -> float:
    """Seconds since a file of the adapter was changed."""
    return time.time() - max(file.stat().st_ctime for file in path.iterdir())


def lora(path: Path, seed: int) -> None:
    """An adapter of the attention, with large random weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    path.mkdir(exist_ok=True)
    tensors = {}
    for layer in range(4):
        for name, out in (("q_proj", 256), ("v_proj", 128)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(8, 256) * 0.3
            tensors[f"{at}.lora_B.weight"] = torch.randn(out, 8) * 0.3
    save_file(tensors, path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"}
    said["target_modules"] = ["q_proj", "v_proj"]
    (path / "adapter_config.json").write_text(json.dumps(said))


def main() -> None:
    """See the module."""
    endpoint, folder = sys.argv[1], Path(sys.argv[2])
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    model = folder / "model"
    make(str(model))
    lora(folder / "adapter", 1)  # older than the engines that load it
    settings(endpoint, model)
    living(endpoint, model)
    adapters(endpoint, model)


if __name__ == "__main__":
    main()
