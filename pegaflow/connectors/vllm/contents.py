"""What the elements of a layer's KV tensor are, which neither its shape nor its strides say.

Since 0.30 every layer is seen as `[blocks, heads, tokens, content]`, in one of six orders of memory
that vLLM names (`LBNHC`). What is in those axes is the attention backend's affair: the same shape
holds a head's key and value beside each other, or all keys of a block before its values, or keys
and values in place of two heads, packed for some kernel. So each layer's content has a name:

    keys and values   written by one of the backends in PLAIN, in floating point: elements are where
                      shape and strides say, whatever vLLM calls the order
    latent            likewise of latent attention (MLA)
    all else          the backend's class, and vLLM's name of the order: what a backend does with
                      its pages may depend on it

On a CPU a backend packs keys and values as the processor's own instructions want them (a host with
AMX groups keys that another one lays out in rows), so there the name has those instructions, too.

Engines whose layers have equal names, and the same axes in the same order within a page, hold the
same elements at the same bytes. Others are apart, whether or not their bytes would be the same.
Before 0.30, where an order has no name, nothing is plain. Numbers in other formats (8 bits and
fewer) never are, for backends scale queries to them, or lay scales beside them, in ways of their
own.
"""

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from . import compat
from .layout import Tensor

BACKENDS = "vllm.v1.attention.backends."
"""Where vLLM has its attention backends."""

PLAIN = {
    "keys and values": """flash_attn.FlashAttentionBackend flashinfer.FlashInferBackend
        triton_attn.TritonAttentionBackend flex_attention.FlexAttentionBackend""",
    "latent": """mla.triton_mla.TritonMLABackend mla.flashmla.FlashMLABackend
        mla.cutlass_mla.CutlassMLABackend mla.flashattn_mla.FlashAttnMLABackend
        mla.flashinfer_mla.FlashInferMLABackend""",
}
"""Backends by what they write.  Of 0.30, 0.32 and 0.33 it was read: the first kind splits the last
axis of a page into a head's key and its value; the second leaves the writing to vLLM's common
`do_kv_cache_update`."""

FLOATS = frozenset({"torch.float32", "torch.float16", "torch.bfloat16"})
"""Formats of what is plain."""

AXES = "BHNC"
"""vLLM's names of the axes of a layer's tensor, since it has names of their orders."""

INSTRUCTIONS = ("avx2", "avx512", "amx", "asimd", "bf16", "i8mm", "sve", "vx")
"""What the names of those begin with, in /proc/cpuinfo of x86, ARM and s390x."""

_WRITTEN = {f"{BACKENDS}{name}": what for what, names in PLAIN.items() for name in names.split()}


def described(tensors: Sequence[Tensor], vllm_config: Any, order: str) -> list[Tensor]:
    """The same tensors, with what is in them.

    Args:
        order: vLLM's name of the order of axes; '' where it has none.
    """
    layers = compat.attribute(vllm_config, "compilation_config.static_forward_context", {})
    chosen = str(compat.attribute(vllm_config, "attention_config.backend", ""))
    found = []
    for tensor in tensors:
        backend = _backend(layers, tensor.layer)
        axes = AXES if order and len(tensor.shape) == len(AXES) else ""
        what = _WRITTEN.get(backend, "") if axes and tensor.dtype in FLOATS else ""
        content = what or f"{backend or f'? {chosen}'} {order or '-'}"
        if ".cpu" in backend:
            content += f" {processor()}"
        found.append(replace(tensor, axes=axes, content=content))
    return found


@cache
def processor() -> str:
    """The kind of processor, and its instructions of which CPU kernels have variants."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                known = {flag for flag in value.split() if flag.startswith(INSTRUCTIONS)}
                return f"{platform.machine()} {','.join(sorted(known)) or '-'}"
    return f"{platform.machine()} ?"


def _backend(layers: Any, name: str) -> str:
    """The class of a layer's attention backend, in full; '' if vLLM does not say."""
    with suppress(Exception):  # of somebody's own layer
        kind = layers[name].get_attn_backend()
        return f"{kind.__module__}.{kind.__qualname__}"
    return ""
