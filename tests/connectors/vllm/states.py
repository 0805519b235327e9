"""Recurrent layers of more kinds, with the states that vLLM 0.33 gives them at one rank
(real/test_states.py compares), and the attention that lies beside them."""

from types import SimpleNamespace

from .fakes import FullAttentionSpec
from .latent import MLAAttentionSpec
from .specs import MambaSpec


class KdaSpec(MambaSpec):
    """Kimi delta attention: Kimi Linear 48B."""

    shapes = ((3, 12288), (32, 128, 128))
    dtypes = ("torch.bfloat16", "torch.float32")
    mamba_type = SimpleNamespace(name="GDN_ATTN")


class GatedSpec(MambaSpec):
    """Gated delta nets: Qwen3-Next 80B."""

    shapes = ((3, 8192), (32, 128, 128))
    dtypes = ("torch.bfloat16", "torch.bfloat16")
    mamba_type = SimpleNamespace(name="GDN_ATTN")


class Mamba1Spec(MambaSpec):
    """Mamba as it was first: Jamba 52B."""

    shapes = ((3, 8192), (8192, 16))
    dtypes = ("torch.bfloat16", "torch.bfloat16")
    mamba_type = SimpleNamespace(name="MAMBA1")


class LinearSpec(MambaSpec):
    """Lightning attention: MiniMax-01."""

    shapes = ((64, 128, 128),)
    dtypes = ("torch.float32",)
    mamba_type = SimpleNamespace(name="LINEAR")


BESIDE: dict[type[MambaSpec], type] = {
    KdaSpec: MLAAttentionSpec,
    GatedSpec: FullAttentionSpec,
    Mamba1Spec: FullAttentionSpec,
    LinearSpec: FullAttentionSpec,
}
"""What the layers between them keep."""

NAMES = {kind: kind.__name__ for kind in BESIDE}

for _kind in BESIDE:
    _kind.__name__ = MambaSpec.__name__
