"""vLLM's KV cache specs, of more kinds than full attention; the connector goes by their names."""

from .fakes import BLOCK, FullAttentionSpec


class SlidingWindowSpec(FullAttentionSpec):
    """Of layers that see a window."""

    sliding_window = 4 * BLOCK


class MambaSpec(SlidingWindowSpec):
    """Of layers that keep a state."""


class PrefixLMSpec(FullAttentionSpec):
    """Of layers that see later tokens."""

    non_causal = True


class WideSpec(SlidingWindowSpec):
    """Of layers whose blocks have more tokens."""

    block_size = 32


class LeftSpec(SlidingWindowSpec):
    """Of layers whose windows keep more."""

    extra_retained_tokens = 3


class PrivateSpec(FullAttentionSpec):
    """Of layers whose blocks are scratch."""

    prefix_cacheable = False


class ChunkedLocalAttentionSpec(FullAttentionSpec):
    """Of layers that see a chunk."""


WideSpec.__name__ = LeftSpec.__name__ = "SlidingWindowSpec"
PrivateSpec.__name__ = "FullAttentionSpec"
