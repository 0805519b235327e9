"""Makes tiny models with random weights on disk: `python model.py DIR [KIND]`. Needs no network.

Prompts are given as token ids; the tokenizer is there for engines that will not start without one.
The weights are wide enough apart that the greedy output depends on the whole prompt: KV of another
prompt, or damaged KV, gives other tokens.
"""

import sys
from collections.abc import Callable
from typing import Any

VOCABULARY = 1024
COMMON = {
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STATE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "pad_token_id": 0,
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 64,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def llama() -> Any:
    """Full attention in every layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**COMMON, **WIDE, head_dim=64, tie_word_embeddings=False))


def gemma() -> Any:
    """Full attention and windows."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    windows = {"sliding_window": 128, "sliding_window_pattern": 2, "pad_token_id": 0}
    return Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **WIDE, **windows, head_dim=64))


def granite() -> Any:
    """Attention layers between Mamba layers."""
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    kinds = ["mamba", "attention"]
    config = GraniteMoeHybridConfig(
        **COMMON,
        **STATE,
        shared_intermediate_size=256,
        num_hidden_layers=4,
        layer_types=kinds * 2,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="rope",
    )
    return GraniteMoeHybridForCausalLM(config)


def falcon() -> Any:
    """Attention and Mamba side by side in each layer."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    return FalconH1ForCausalLM(
        FalconH1Config(**COMMON, **STATE, num_hidden_layers=2, head_dim=32, mamba_d_ssm=256)
    )


KINDS: dict[str, Callable[[], Any]] = {
    made.__name__: made for made in (llama, gemma, granite, falcon)
}


def make(directory: str, kind: str = "llama") -> None:
    """Write the model; the same bytes every time."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(1)
    KINDS[kind]().to(torch.bfloat16).save_pretrained(directory)
    words = models.WordLevel({str(number): number for number in range(VOCABULARY)}, "0")
    names = {"unk_token": "0", "bos_token": "1", "eos_token": "2", "pad_token": "0"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **names)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    make(*sys.argv[1:])
