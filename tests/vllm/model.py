"""Makes a tiny Llama with random weights on disk: `python model.py DIR`. Needs no network.

Prompts are given as token ids, so there is no tokenizer. The weights are wide enough apart that the
greedy output depends on the whole prompt: KV of another prompt, or damaged KV, gives other tokens.
"""

import sys

VOCABULARY = 1024


def make(directory: str) -> None:
    """Write the model; the same bytes every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    make(sys.argv[1])
