"""vLLM's KV cache specs, of more kinds than full attention; the connector goes by their names."""

from types import SimpleNamespace

from .fakes import BLOCK, FullAttentionSpec


class SlidingWindowSpec(FullAttentionSpec):
    """Of layers that see a window."""

    sliding_window = 4 * BLOCK


class MambaSpec:
    """Of layers that keep a state."""

    block_size = BLOCK
    shapes: tuple[tuple[int, ...], ...] = ((3, 8), (2, 4, 4))
    dtypes: tuple[str, ...] = ("float32", "float32")
    mamba_type = SimpleNamespace(name="MAMBA2")
    mamba_cache_mode = "align"
    num_speculative_blocks = 0


class DenseSpec(MambaSpec):
    """Of such layers without vLLM's prefix cache."""

    mamba_cache_mode = "none"
    block_size = 2048


class ShortConvSpec(MambaSpec):
    """Of short convolutions."""

    mamba_type = SimpleNamespace(name="PLE_SHORT_CONV")


class DraftedSpec(MambaSpec):
    """Of such layers whose states tokens are tried out on."""

    num_speculative_blocks = 2


class CrossAttentionSpec(FullAttentionSpec):
    """Of layers that see an encoder's output."""


class PrefixLMSpec(FullAttentionSpec):
    """Of layers that see later tokens."""

    non_causal = True


class OddSpec(SlidingWindowSpec):
    """Of layers whose blocks end within a hash."""

    block_size = BLOCK + 1


class LeftSpec(SlidingWindowSpec):
    """Of layers whose windows keep more."""

    extra_retained_tokens = 3


class PrivateSpec(FullAttentionSpec):
    """Of layers whose blocks are scratch."""

    prefix_cacheable = False


class ChunkedLocalAttentionSpec(FullAttentionSpec):
    """Of layers that see a chunk."""

    attention_chunk_size = 8 * BLOCK


class CutSpec(ChunkedLocalAttentionSpec):
    """Of layers whose chunks end within a block."""

    attention_chunk_size = 8 * BLOCK + 2


CutSpec.__name__ = "ChunkedLocalAttentionSpec"
OddSpec.__name__ = LeftSpec.__name__ = "SlidingWindowSpec"
PrivateSpec.__name__ = "FullAttentionSpec"
DenseSpec.__name__ = DraftedSpec.__name__ = ShortConvSpec.__name__ = "MambaSpec"
