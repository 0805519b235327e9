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
QUERIES = 32
"""Tokens at the beginning of a prompt, in whose place `blip` sees a picture."""
PIXELS = 64
"""Of a picture that it takes, on each side."""
SECONDS = 2
"""Of sound that `whisper` takes; its encoder has 50 positions for each."""

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def llama() -> Any:
    """Full attention in every layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**COMMON, **WIDE, head_dim=64, tie_word_embeddings=False))


def gemma() -> Any:
    """Full attention and windows."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    windows = {"sliding_window": 128, "sliding_window_pattern": 2, "pad_token_id": 0}
    sharp = {"query_pre_attn_scalar": 4}
    made = Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **WIDE, **windows, **sharp, head_dim=64))
    for name, weight in made.named_parameters():
        if "post_" in name:  # else it repeats the token that it has just read, whatever was before
            weight.data.fill_(20.0)
    return made


def gemma4() -> Any:
    """Full attention and windows with heads half as wide, so their blocks are twice as long."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    kinds = ["sliding_attention", "full_attention"]
    heads = {"head_dim": 64, "global_head_dim": 128, "layer_types": kinds * 2}
    windows = {"sliding_window": 128, "pad_token_id": 0, "hidden_size_per_layer_input": 0}
    made = Gemma4ForCausalLM(Gemma4TextConfig(**COMMON, **WIDE, **heads, **windows))
    for name, weight in made.named_parameters():
        if "post_" in name:  # as of `gemma`
            weight.data.fill_(20.0)
    return made


def mistral() -> Any:
    """Windows alone."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**COMMON, **WIDE, head_dim=64, sliding_window=128))


def granite() -> Any:
    """Two groups of Mamba layers, and one of attention layers."""
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    kinds = ["mamba", "mamba", "attention"]
    config = GraniteMoeHybridConfig(
        **COMMON,
        **STATE,
        shared_intermediate_size=256,
        num_hidden_layers=6,
        layer_types=kinds * 2,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="rope",
    )
    return GraniteMoeHybridForCausalLM(config)


def qwen() -> Any:
    """Two groups of linear attention (gated delta rule), and one of attention layers."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    kinds = ["linear_attention", "linear_attention", "full_attention"]
    heads = {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    wide = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    config = Qwen3NextConfig(
        **COMMON,
        **heads,
        **wide,
        **experts,
        shared_expert_intermediate_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        layer_types=kinds * 2,
        mlp_only_layers=[0, 1, 2, 3, 4],
        pad_token_id=0,
    )
    return Qwen3NextForCausalLM(config)


def lfm() -> Any:
    """Attention layers between short convolutions."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    kinds = ["conv", "full_attention"]
    theirs = {"conv_dim": 256, "block_dim": 256}  # read by vLLM, in published configurations
    return Lfm2ForCausalLM(
        Lfm2Config(
            **COMMON, **WIDE, **theirs, layer_types=kinds * 2, block_auto_adjust_ff_dim=False
        )
    )


def deepseek() -> Any:
    """Latent attention in every layer, of the only width that vLLM's kernel for CPUs has."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    latent = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    heads = {"qk_nope_head_dim": 64, "v_head_dim": 64, "num_key_value_heads": 4}
    dense = {"first_k_dense_replace": WIDE["num_hidden_layers"]}
    config = DeepseekV2Config(**{**COMMON, **WIDE, **latent, **heads, **dense})
    return DeepseekV2ForCausalLM(config)


def blip() -> Any:
    """The language model of `llama`, which sees pictures."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
    config = Blip2Config(
        vision_config={**small, "image_size": PIXELS, "patch_size": 16},
        qformer_config={**small, "vocab_size": 16, "encoder_hidden_size": 64},
        text_config={
            "model_type": "llama",
            **COMMON,
            **WIDE,
            "head_dim": 64,
            "tie_word_embeddings": False,
        },
        num_query_tokens=QUERIES,
        image_token_index=VOCABULARY - 1,
    )
    made = Blip2ForConditionalGeneration(config)
    made.query_tokens.data.normal_()
    return made


def whisper() -> Any:
    """An encoder of sound, and a decoder."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers = {"layers": 2, "attention_heads": 2, "ffn_dim": 256}
    both = {f"{part}_{name}": n for name, n in layers.items() for part in ("encoder", "decoder")}
    config = WhisperConfig(
        **both,
        vocab_size=VOCABULARY,
        d_model=128,
        init_std=0.2,
        max_source_positions=SECONDS * 50,
        max_target_positions=1024,
        decoder_start_token_id=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config)


KINDS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (llama, gemma, gemma4, mistral, granite, qwen, lfm, deepseek, blip, whisper)
}


def numbers(last: str = str(VOCABULARY - 1)) -> Any:
    """A tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(VOCABULARY - 1)}
    made = models.WordLevel({**words, last: VOCABULARY - 1}, "0")
    names = {"unk_token": "0", "bos_token": "1", "eos_token": "2", "pad_token": "0"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(made), **names)


def words(directory: str) -> None:
    """A tokenizer."""
    numbers().save_pretrained(directory)


def pictures(directory: str) -> None:
    """A tokenizer, and what takes pictures."""
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    sides = {"height": PIXELS, "width": PIXELS}
    seen = BlipImageProcessorPil(size=sides)
    Blip2Processor(seen, numbers("<image>"), QUERIES).save_pretrained(directory)


def sounds(directory: str) -> None:
    """A tokenizer, and what makes frames of sound."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    signs = {f"<|{number}|>": number for number in range(VOCABULARY)}
    tokenizer = WhisperTokenizer(
        vocab=signs, merges=[], unk_token="<|0|>", bos_token="<|1|>", eos_token="<|2|>"
    )
    frames = WhisperFeatureExtractor(chunk_length=SECONDS)
    WhisperProcessor(frames, tokenizer).save_pretrained(directory)


def make(directory: str, kind: str = "llama") -> None:
    """Write the model; the same bytes every time."""
    import torch

    torch.manual_seed(1)
    KINDS[kind]().to(torch.bfloat16).save_pretrained(directory)
    {"whisper": sounds, "blip": pictures}.get(kind, words)(directory)


if __name__ == "__main__":
    make(*sys.argv[1:])
