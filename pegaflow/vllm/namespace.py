"""Which blocks may be exchanged: everything that changes the meaning of bytes, as one short hash.

vLLM's block hashes cover the tokens (and LoRA, images, salt), not the model or the number format,
so two engines may only meet in the cache if their namespaces agree. The namespace is built in two
steps, so that two engines that differ in nothing but their hash seed can be told so:

    base  = H(all facts but the probe)     final = H(base, probe)

Facts are named strings. A local model directory is fingerprinted by content, never by time of
change: small configuration files whole, weight files by size, header and evenly spread samples, so
that a checkpoint swapped in place under the same name is noticed without reading gigabytes. The
layout of the KV tensors is not here: the session adds the fingerprint of what was really
registered.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

NAMESPACE_BYTES = 32
"""256 bits: collisions are out of reach even for someone who looks for them."""

SAMPLE_BYTES = 4096
"""One page, which is what a read costs anyway."""

SAMPLES = 64
"""64 samples of a page each, beside the head: 256 KiB read per weight file, a millisecond each."""

HEAD_BYTES = 1 << 20
"""Covers the JSON header of a safetensors file (names, shapes and offsets) of any usual size."""

MAX_WHOLE = 16 << 20
"""A configuration or index file above this is sampled like a weight file."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
CONFIGS = ("config.json", ".index.json", "quantize_config.json", "hf_quant_config.json")
"""Name endings of the files that decide what the model computes."""


def _digest(parts: list[bytes], size: int = NAMESPACE_BYTES) -> bytes:
    digest = blake2b(digest_size=size, person=b"pegaflow.space")
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Namespace:
    """The two steps and what they were made of."""

    base: bytes  # equal for engines that differ in nothing but their hash seed
    probe: bytes  # a fixed block's hash as this engine computes it
    final: bytes  # what the service is told
    facts: tuple[tuple[str, str], ...]  # sorted (name, value) pairs behind `base`

    def describe(self) -> str:
        """One line for the log of an operator who wonders why two engines do not share."""
        return (
            f"namespace {self.final.hex()[:16]}: base {self.base.hex()[:16]},"
            f" hash probe {self.probe.hex()[:16]}; engines with an equal base and another probe"
            " never share blocks: set PYTHONHASHSEED to the same value for all of them"
        )


def namespace(facts: Mapping[str, str], probe: bytes) -> Namespace:
    """The namespace of these facts and this probe."""
    listed = tuple(sorted(facts.items()))
    base = _digest([json.dumps(listed).encode()])
    return Namespace(base, probe, _digest([base, probe]), listed)


def private(space: Namespace, secret: bytes) -> Namespace:
    """The same facts, apart from everybody who does not know the secret."""
    return Namespace(space.base, space.probe, _digest([space.final, secret]), space.facts)


def model_fingerprint(path: str) -> str:
    """Hex digest over the files of a local model, '' if the path is no local file or directory."""
    if os.path.isfile(path):
        return _digest([_file(path)], 16).hex()
    if not os.path.isdir(path):
        return ""
    parts: list[bytes] = []
    for name in sorted(os.listdir(path)):
        if name.endswith(CONFIGS) or name.endswith(WEIGHTS):
            parts += [name.encode(), _file(os.path.join(path, name))]
    return _digest(parts, 16).hex()


def _file(path: str) -> bytes:
    """Size and content of one file; whole if it is small configuration, else head and samples."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if not path.endswith(WEIGHTS) and size <= MAX_WHOLE:
            digest.update(file.read())
            return digest.digest()
        digest.update(file.read(HEAD_BYTES))
        step = max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // SAMPLES)
        for start in range(HEAD_BYTES, size, step):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - SAMPLE_BYTES))
        digest.update(file.read())
    return digest.digest()
