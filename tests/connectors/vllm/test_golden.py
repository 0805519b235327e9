"""Names under which the blocks of models with one KV cache group were saved by the version before:
what it has left in a pool is found by this one.

They are made of all that an engine says of itself. Who adds to that, or names blocks in another
way, empties every pool that is updated: then CHANGELOG.md says so, and the new names are these.
"""

from hashlib import blake2b
from typing import Any

import pytest

from pegaflow.connectors.vllm import compat, identity
from pegaflow.connectors.vllm.fields import ENVIRONMENT

from .fakes import Request, Store
from .pair import Pair

GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "full attention": ({}, "d57c8c88e88e75be721b3076ecc9ceec"),
    "full attention, two ranks": ({"world": 2}, "1c9a2171dfc7b96582ac0db2801d06c4"),
    "latent attention, two ranks": (
        {"world": 2, "latent": True},
        "c62573e733b8c1d540531ccec6d14f88",
    ),
}
"""How an engine is made, and a hash of the names of its blocks."""


@pytest.mark.parametrize("kind", GOLDEN)
def test_blocks_have_the_names_that_the_version_before_has_given_them(
    kind: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compat, "first_parent", lambda algorithm: bytes(32))
    monkeypatch.setattr(compat, "probe", lambda algorithm, parent: bytes(32))
    monkeypatch.setattr(identity, "fingerprint", lambda *given: "a model's files")
    how, expected = GOLDEN[kind]
    made = Pair(**how)
    asked = Request("a", 25, salt="golden")
    made.save(store, asked, [1, 2, 3, 4, 5, 6, 7])
    named = sorted(store.pages)
    made.close()
    assert sorted(name[-32:] for name in named) == sorted(asked.block_hashes), "vLLM's own"
    assert blake2b(b"".join(named), digest_size=16).hexdigest() == expected
