"""Tails of prompts from one engine to another: prefill and decode, seen from both halves."""

from typing import Any

import pytest

from pegaflow.connectors.vllm import compat
from pegaflow.connectors.vllm.adapters import Adapted
from pegaflow.connectors.vllm.settings import engine
from pegaflow.connectors.vllm.tails import hash_of

from .fakes import BLOCK, FullAttentionSpec, Request, Store, config, kv_cache_config
from .grouping import kv_config
from .pair import Pair

SAVED = [1, 2, 3, 4, 5, 6, 7]
LOADED = [10, 11, 12, 13, 14, 15, 16]
PROMPT = 27
SAVES, LOADS = {"pegaflow.pd_tail_save": True}, {"pegaflow.pd_tail_load": True}


class Hashes:
    """What vLLM's hashes are made of."""

    @staticmethod
    def generate_block_hash_extra_keys(
        request: Any, start: int, end: int, images: int
    ) -> tuple[Any, int]:
        salt = getattr(request, "salt", "")
        return ((salt, start, end, images) if salt else None), 0

    @staticmethod
    def hash_block_tokens(function: Any, parent: Any, tokens: Any, extra: Any) -> bytes:
        made: bytes = function((parent, tuple(tokens), extra))
        return made


@pytest.fixture(autouse=True)
def hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's, in small; a request's tokens are numbers from 0 on."""
    monkeypatch.setattr(compat, "_hashes", Hashes)
    monkeypatch.setattr(compat, "_hash_function", lambda _: lambda of: repr(of).encode()[:64])
    monkeypatch.setattr(compat, "first_parent", lambda _: bytes(32))
    monkeypatch.setattr(compat, "probe", lambda *_: bytes(32))
    monkeypatch.setattr(compat, "parent_differs", lambda _: False)
    tokens = property(lambda request: list(range(request.num_tokens)))
    monkeypatch.setattr(Request, "all_token_ids", tokens, raising=False)


def prefill(store: Store, request: Request) -> None:
    """An engine computes the prompt, and is gone."""
    pair = Pair(extra=SAVES, kv_role="kv_producer", mode="")
    pair.scheduler.on_new_request(request)
    pair.compute(request, SAVED)
    pair.until(lambda: len(store.pages) == len(request.block_hashes) + 1)
    pair.end(request)
    pair.close()


@pytest.mark.parametrize("finds", [True, False])
def test_an_engine_that_answers_has_nothing_of_the_prompt_to_compute(
    store: Store, monkeypatch: pytest.MonkeyPatch, finds: bool
) -> None:
    sized(monkeypatch)
    prefill(store, Request("a", PROMPT))
    store.finds = finds
    pair = Pair(extra=LOADS)
    request = Request("b", PROMPT)
    assert pair.load(request, LOADED) == PROMPT
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors == set() and pair.holds(LOADED, SAVED)
    pair.finish(request)
    assert pair.load(Request("c", PROMPT - 1), LOADED) == 24, "another tail"
    pair.close()


def test_without_being_asked_for_it_nobody_has_a_tail(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch)
    prefill(store, Request("a", PROMPT))
    plain = Pair()
    assert plain.load(Request("b", PROMPT), LOADED[:6]) == 24
    before = len(store.pages)
    plain.save(store, Request("c", PROMPT, salt="c"), SAVED)
    assert len(store.pages) == before + 6
    plain.close()


def test_a_tail_that_fails_to_load_leaves_the_full_blocks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch)
    prefill(store, Request("a", PROMPT))
    pair, store.failing = Pair(extra=LOADS), 1
    request = Request("b", PROMPT)
    assert pair.load(request, LOADED) == PROMPT
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors == {LOADED[-1]}
    store.failing = 0
    assert pair.load(request, LOADED[:6]) == 24
    pair.close()


def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes as long as those of the requests."""
    monkeypatch.setattr(
        compat, "_hash_function", lambda _: lambda of: repr(of).encode().ljust(32)[-32:]
    )


def test_a_tails_hash_is_vllms_of_its_tokens_and_all_that_belongs_to_them() -> None:
    named = hash_of("sha256", BLOCK)
    plain, salted = Request("a", PROMPT), Request("b", PROMPT, salt="s")
    parent = plain.block_hashes[5]
    assert named(plain, 24, 27) == repr((parent, (24, 25, 26), None)).encode()[:64]
    assert named(plain, 0, 2) == repr((None, (0, 1), None)).encode()[:64]
    assert named(salted, 0, 2) == repr((None, (0, 1), ("s", 0, 2, 0))).encode()[:64]


def test_a_tail_is_seen_through_its_adapter() -> None:
    named = hash_of("sha256", BLOCK)
    plain = Request("a", 3)
    names = [named(source, 0, 3) for source in (plain, Adapted(plain, b"1"), Adapted(plain, b"2"))]
    assert len({*names}) == 3 and len(names[1]) == 32
    assert named(Adapted(plain, None), 0, 3) == b"", "the request has no keys at all"


def test_a_vllm_that_cannot_be_asked_has_no_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_hash_function", lambda _: None)
    assert hash_of("builtin", BLOCK)(Request("a", 3), 0, 3) == b""


@pytest.mark.parametrize("extra", [SAVES, LOADS])
def test_models_of_several_groups_have_none_and_say_so(extra: dict[str, Any]) -> None:
    _, lines = engine(config(extra=extra), kv_config([None, 8], 8, [BLOCK, BLOCK]))
    assert [line for line in lines if "pd_tail" in line and "ignored" in line]
    _, lines = engine(config(extra=extra), kv_cache_config(kinds=[FullAttentionSpec]))
    assert not [line for line in lines if "pd_tail" in line]


def test_other_values_than_true_and_false_are_named() -> None:
    _, lines = engine(config(extra={"pegaflow.pd_tail_save": 1}), kv_cache_config())
    assert [line for line in lines if "pd_tail_save 1 is not true or false" in line]
