"""Which blocks may be exchanged: what an engine says of itself, as one short hash.

vLLM's block hashes cover the tokens (and adapters' names, images, salt), not the model or the
number format, so two engines may only meet in the cache if their namespaces agree. The namespace is
built in two steps, so that two engines that differ in nothing but their hash seed can be told so:

    base  = H(all facts but the probe)     final = H(base, probe)

Facts are named strings (identity.py). What each worker registers adds to it: the layout of its KV
tensors, the model's configuration as it is in its memory, and its weights (watch.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from pegaflow.wire.identities import EngineNamespace
from pegaflow.wire.units import Bytes

NAMESPACE_BYTES: Bytes = 32
"""256 bits: collisions are out of reach even for someone who looks for them."""


def _digest(parts: list[bytes]) -> bytes:
    digest = blake2b(digest_size=NAMESPACE_BYTES, person=b"pegaflow.space")
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Namespace:
    """The two steps and what they were made of."""

    base: bytes  # equal for engines that differ in nothing but their hash seed
    probe: bytes  # a fixed block's hash as this engine computes it
    final: EngineNamespace  # what the service is told
    facts: tuple[tuple[str, str], ...]  # sorted (name, value) pairs behind `base`

    def describe(self) -> str:
        """One line for the log of an operator who wonders why two engines do not share."""
        return (
            f"namespace {self.final.hex()[:16]}: base {self.base.hex()[:16]},"
            f" hash probe {self.probe.hex()[:16]}; engines with an equal base and another probe"
            " never share blocks: set PYTHONHASHSEED to the same value for all of them"
        )


def namespace(facts: Mapping[str, str], probe: bytes) -> Namespace:
    """What this engine is to the service.

    Args:
        facts: by name; equal ones make an equal base.
        probe: a fixed block's hash as this engine computes it.
    """
    listed = tuple(sorted(facts.items()))
    base = _digest([json.dumps(listed).encode()])
    return Namespace(base, probe, EngineNamespace(_digest([base, probe])), listed)
