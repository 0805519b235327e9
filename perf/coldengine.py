"""A vLLM engine for perf.cold: python -m perf.coldengine MODEL ENDPOINT, and a seed on each line.

For each seed it runs a batch of prompts that nobody has run before, and prints how many tokens a
second went through it, prompts included.  Without an endpoint ('') there is no connector.
"""

import random
import sys
import time

from tests.connectors.vllm.engine import VOCABULARY, Options, build, say

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 384, 8


def make(directory: str) -> None:
    """Write a model whose time goes into its matrices: 25 million random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def main() -> None:
    """See the module."""
    model, endpoint = sys.argv[1:]
    llm = build(model, Options(endpoint=endpoint, inproc=False))
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    say({"ready": True})
    for line in sys.stdin:
        draw = random.Random(int(line))
        prompts = [
            {"prompt_token_ids": [draw.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)]}
            for _ in range(PROMPTS)
        ]
        begun = time.perf_counter()
        llm.generate(prompts, how, use_tqdm=False)
        seconds = time.perf_counter() - begun
        say({"tokens_per_s": PROMPTS * (PROMPT_TOKENS + NEW_TOKENS) / seconds})


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(sys.argv[2])
    else:
        main()
