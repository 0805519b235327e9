"""The model of perf.serve: python -m perf.serve.model FOLDER (in the environment of an engine)

The model of perf.cold, whose time goes into its matrices, with a tokenizer in which every token is
one word: what `vllm bench serve` draws as tokens and sends as text comes out as the same tokens.
"""

from __future__ import annotations

import sys

from perf.coldengine import make
from tests.connectors.vllm.engine import VOCABULARY

SPECIAL = ("<unk>", "<s>", "</s>")


def words(directory: str) -> None:
    """Write the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *map(str, range(len(SPECIAL), VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


if __name__ == "__main__":
    make(sys.argv[1])
    words(sys.argv[1])
