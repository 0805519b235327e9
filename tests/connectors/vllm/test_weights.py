"""Weights in memory: looked at, and what becomes of sessions, hits and saves if they change."""

import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pegaflow.connectors.vllm import live
from pegaflow.connectors.vllm.live import GLANCE, Weights
from pegaflow.connectors.vllm.watch import Look, Seen, Watch

from .fakes import Request, Store, output
from .pair import Pair

SAVED, LOADED = [1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15]


class Tensor:
    """What is used of a torch tensor on the CPU."""

    is_meta = False
    device = SimpleNamespace(type="cpu")
    dtype = "torch.float32"

    def __init__(self, size: int, fill: int = 0) -> None:
        self.memory = ctypes.create_string_buffer(bytes([fill]) * size, max(1, size))
        self.shape, self.nbytes = (size,), size

    def data_ptr(self) -> int:
        """Where it lies."""
        return ctypes.addressof(self.memory) if self.nbytes else 0

    def is_contiguous(self) -> bool:
        """Always."""
        return True


class Module:
    """What is used of a torch module."""

    def __init__(self, sizes: list[int]) -> None:
        self._parameters = {f"weight{i}": Tensor(size, i + 1) for i, size in enumerate(sizes)}
        self._buffers = {"_k_scale": Tensor(4, 9), "scratch": Tensor(64)}

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """One."""
        yield "", self


class RMSNorm(Module):
    """A module that every rank has whole."""


def model(*sizes: int) -> Module:
    return Module(list(sizes) or [1 << 16, 300, 64, 0, 1])


def train(one: Module) -> None:
    """All numbers change."""
    for tensor in one._parameters.values():
        ctypes.memset(tensor.data_ptr(), 77, tensor.nbytes)


def replace_parameter(one: Module) -> None:
    one._parameters["weight1"] = Tensor(300, 50)


def shorten(one: Module) -> None:
    one._parameters["weight0"] = Tensor(100, 1)


def rescale(one: Module) -> None:
    one._buffers["_k_scale"] = Tensor(4, 10)


CHANGES = [train, replace_parameter, shorten, rescale]


@pytest.mark.parametrize("change", CHANGES)
def test_a_look_sees_every_change_and_that_it_was_undone(
    change: Callable[[Module], None],
) -> None:
    one = model()
    weights = Weights([one])
    assert weights.known and weights.original and weights.look()
    ctypes.memset(one._buffers["scratch"].data_ptr(), 5, 64)
    assert weights.look(), "scratch memory is no weight"
    kept = dict(one._parameters), dict(one._buffers)
    saved = {n: t.memory.raw for n, t in one._parameters.items()}
    change(one)
    assert not weights.look() and not weights.original and weights.look()
    one._parameters, one._buffers = kept
    for name, raw in saved.items():
        ctypes.memmove(one._parameters[name].data_ptr(), raw, one._parameters[name].nbytes)
    assert not weights.look() and weights.original


def test_equal_weights_have_equal_digests() -> None:
    assert Weights([model()]).digest == Weights([model()]).digest
    assert Weights([model(), model()]).digest != Weights([model()]).digest
    assert Weights([model(64, 65)]).digest != Weights([model(65, 64)]).digest


def test_what_every_rank_has_whole_is_alike_however_the_rest_is_shared_out() -> None:
    def common(norm: int, *matrices: int) -> tuple[bytes, bytes]:
        weights = Weights([RMSNorm([norm]), model(*matrices)])
        return weights.common, weights.digest

    one, two = common(64, 4096, 300), common(64, 2048, 150)
    assert one[0] == two[0] and one[1] != two[1]
    assert common(65, 4096, 300)[0] != one[0]


def test_a_glance_comes_round_to_everything() -> None:
    one = model(*[4096] * 50)
    weights = Weights([one])
    rounds = 50 * live.WINDOWS // GLANCE + 2
    assert all(weights.glance() for _ in range(rounds))
    ctypes.memset(one._parameters["weight33"].data_ptr(), 99, 4096)
    assert not all(weights.glance() for _ in range(rounds))
    train(one)
    assert not weights.glance(), "most of it changed"


def packed() -> Callable[[], int]:
    handler = 5
    return lambda: handler


def test_weights_behind_a_closure_are_not_known_any_more_once_it_is_another() -> None:
    one = model()
    vars(one)["cpu_linear"] = packed()
    weights = Weights([one])
    assert weights.look() and weights.glance()
    vars(one)["cpu_linear"] = packed()
    assert not weights.glance() and not weights.look()
    assert weights.known and not weights.original and weights.look()


def test_a_closure_beside_weights_that_can_be_read_is_of_no_concern() -> None:
    one = model(64)
    vars(one)["compiled"] = packed()
    weights = Weights([one])
    vars(one)["compiled"] = packed()
    assert weights.glance() and weights.look() and weights.original


def test_memory_that_is_not_ours_to_read_is_not_known() -> None:
    one = model()
    vars(one._parameters["weight1"])["device"] = SimpleNamespace(type="cuda")
    assert not Weights([one]).known
    assert not Weights([]).known


@dataclass
class Said:
    """Weights as a test wants them."""

    digest: bytes = b"first"
    common: bytes = b"all"
    known: bool = True
    original: bool = True
    sames: list[bool] = field(default_factory=list)  # answers to come; then always the same

    def look(self) -> bool:
        """The next answer."""
        return self.sames.pop(0) if self.sames else True

    def glance(self) -> bool:
        """The next answer."""
        return self.look()


def watch(said: Said) -> Watch:
    return Watch("m", "", said, lambda epoch: bytes([epoch]))


def test_nothing_changed_and_nothing_happens() -> None:
    one = watch(Said())
    name = one.name()
    for number, reset in enumerate((True, False, True)):
        assert one.see(Look(number + 1, reset, True), 0) is Seen.SAME
    assert (one.epoch, one.looked, one.stale, one.name()) == (0, 3, False, name)


def test_other_weights_have_a_name_of_their_own_until_the_first_are_back() -> None:
    said = Said()
    one = watch(said)
    first = one.name()
    said.sames, said.original, said.digest = [False], False, b"other"
    assert one.see(Look(1, True, True), 0) is Seen.MOVED and one.epoch == 1
    other = one.name()
    assert one.see(Look(1, True, True), 0) is Seen.SAME, "orders of before, under way"
    assert one.see(Look(1, True, True), 1) is Seen.SAME
    said.sames, said.original, said.digest = [False], True, b"first"
    assert one.see(Look(2, True, True), 1) is Seen.MOVED and one.epoch == 2
    assert one.name() == first != other


def test_a_change_under_blocks_that_vllm_holds_is_stale_until_they_are_gone() -> None:
    said = Said(sames=[False])
    one = watch(said)
    assert one.see(Look(1, False, False), 0) is Seen.STALE
    assert one.see(Look(2, True, False), 0) is Seen.STALE
    assert one.see(Look(2, True, True), 0) is Seen.STALE, "it was not clean when it was new"
    assert (one.epoch, one.stale) == (0, True)
    assert one.see(Look(3, False, True), 0) is Seen.MOVED
    assert (one.epoch, one.stale) == (1, False)


def test_a_change_in_the_middle_of_work_is_stale_although_work_began_clean() -> None:
    said = Said()
    one = watch(said)
    assert one.see(Look(1, True, True), 0) is Seen.SAME
    said.sames = [False]
    assert one.see(Look(1, True, True), 0) is Seen.STALE


def test_another_ranks_change_is_followed() -> None:
    one = watch(Said())
    assert one.see(Look(), 3) is Seen.MOVED and one.epoch == 3
    assert one.see(Look(), 2) is Seen.SAME and one.epoch == 3


def test_weights_that_cannot_be_read_change_with_every_reset() -> None:
    one = watch(Said(known=False, original=False))
    shared = one.name()
    assert one.see(Look(1, False, True), 0) is Seen.SAME
    assert one.see(Look(2, True, True), 0) is Seen.MOVED
    assert one.name() != shared


def test_an_engine_without_identity_shares_nothing() -> None:
    one = Watch("m", "random weights", Said(), lambda epoch: b"start 1")
    two = Watch("m", "random weights", Said(), lambda epoch: b"start 2")
    assert one.name() != two.name()


def test_what_no_rank_has_a_part_of_is_named_by_what_every_rank_has_whole() -> None:
    half, other = Said(digest=b"half", common=b"all"), Said(digest=b"other half", common=b"all")
    names = [Watch("m", "", said, lambda epoch: b"", whole=True).name() for said in (half, other)]
    assert names[0] == names[1] and watch(half).name() != watch(other).name()
    trained = Watch("m", "", Said(common=b"trained"), lambda epoch: b"", whole=True)
    assert trained.name() != names[0]


# the whole connector, of an engine whose weights can be read


class Running(Pair):
    """An engine with a model: it calls `register_kv_caches` as vLLM's model runner does."""

    def __init__(self, trained: Module, **how: Any) -> None:
        self._model = trained
        super().__init__(**how)
        self.cached: dict[str, str] = {}  # of vLLM's own prefix cache
        pool = SimpleNamespace(
            cached_block_hash_to_block=self.cached,
            num_gpu_blocks=51,
            get_num_free_blocks=lambda: 50,
        )
        self.scheduler.bind_gpu_block_pool(pool)

    def get_model(self) -> Module:
        """As a model runner's."""
        return self._model


@pytest.fixture
def running(store: Store) -> Iterator[Running]:
    """One engine, with something saved."""
    made = Running(model())
    made.save(store, Request("a", 25), SAVED)
    yield made
    made.close()


def test_after_sleep_or_pause_the_cache_is_there_at_once(running: Running, store: Store) -> None:
    for _ in range(3):
        assert running.scheduler.reset_cache() is True
        request = Request("b", 25)
        running.scheduler.on_new_request(request)
        assert running.scheduler.get_num_new_matched_tokens(request, 0)[0] is None
        running.step()
        assert running.load(request, LOADED) == 24
        running.until(lambda: running.received.count("b") == 1)
        running.received.clear()
        assert not running.errors and running.holds(LOADED, SAVED[:6])
        running.finish(request)
    assert len(store.clients) == 2, "no session was left"


def test_what_an_engine_saves_right_after_a_reset_is_kept(running: Running, store: Store) -> None:
    running.scheduler.reset_cache()
    request = Request("c", 25, salt="other")
    running.scheduler.on_new_request(request)
    assert running.scheduler.get_num_new_matched_tokens(request, 0)[0] is None
    running.step()
    running.save(store, request, SAVED)
    assert len(store.clients) == 2


def test_a_look_that_nobody_answers_is_not_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.scheduler.reset_cache()
    request = Request("c", 25)
    assert running.scheduler.get_num_new_matched_tokens(request, 0) == (None, False)
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert running.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)


@pytest.mark.parametrize("told", [True, False])
def test_weights_replaced_in_place_share_nothing_and_their_first_save_is_kept(
    running: Running, store: Store, told: bool
) -> None:
    train(running.get_model())
    if told:
        running.scheduler.reset_cache()
    request, before = Request("b", 25), len(store.pages)
    running.scheduler.on_new_request(request)
    if told:
        running.step()
        running.until(lambda: len(store.clients) == 4 and store.clients[3].complete)
    loaded = running.load(request, LOADED)
    if loaded:
        running.step()
        running.until(lambda: "b" in running.received)
        assert running.errors == set(LOADED), "what was loaded is KV of other weights"
    running.compute(request, SAVED)
    running.until(lambda: len(store.pages) == before + 6)
    assert len(store.clients) == 4 and [c.closed for c in store.clients[:2]] == [True, True]
    running.end(request)
    other = Running(model())
    assert other.load(Request("c", 25), LOADED) == 24
    other.step()
    other.until(lambda: other.received == ["c"])
    assert other.holds(LOADED, SAVED[:6]) and not other.errors, "the first weights' blocks"
    other.close()


def test_weights_that_are_the_first_again_find_what_they_saved(
    running: Running, store: Store
) -> None:
    kept = {n: t.memory.raw for n, t in running.get_model()._parameters.items()}
    train(running.get_model())
    running.scheduler.reset_cache()
    running.until(lambda: len(store.clients) == 4 and store.clients[3].complete)
    for name, raw in kept.items():
        tensor = running.get_model()._parameters[name]
        ctypes.memmove(tensor.data_ptr(), raw, tensor.nbytes)
    running.scheduler.reset_cache()
    running.until(lambda: len(store.clients) == 6 and store.clients[5].complete)
    running.step()
    assert running.load(Request("c", 25), LOADED) == 24


def test_weights_replaced_under_blocks_that_vllm_holds_neither_read_nor_save(
    running: Running, store: Store
) -> None:
    running.cached["hash"] = "of the old weights"
    train(running.get_model())
    before = dict(store.pages)
    request = Request("b", 25, salt="new")
    running.scheduler.on_new_request(request)
    running.compute(request, SAVED)
    running.end(request)
    assert running.load(Request("a2", 25), LOADED) == 0
    running.step(output())
    assert store.pages == before and len(store.clients) == 2
    running.cached.clear()
    running.finish(Request("a2", 25))
    running.save(store, Request("c", 25, salt="newer"), SAVED)
    assert len(store.clients) == 4


def test_an_engine_that_must_not_fail_a_load_looks_first(running: Running, store: Store) -> None:
    half = running.scheduler._scheduler
    assert half is not None
    half._engine = replace(half._engine, careful=True)
    train(running.get_model())
    unknown, request = Request("new", 25, salt="other"), Request("b", 25)
    assert running.scheduler.get_num_new_matched_tokens(unknown, 0) == (0, False), "at once"
    running.scheduler.on_new_request(request)
    assert running.scheduler.get_num_new_matched_tokens(request, 0) == (None, False)
    running.step()
    running.until(lambda: len(store.clients) == 4 and store.clients[3].complete)
    assert running.load(request, LOADED) == 0 and not running.errors


def test_engines_with_other_live_weights_do_not_share_from_the_start(
    running: Running, store: Store
) -> None:
    merged = model()
    replace_parameter(merged)
    other = Running(merged)
    assert other.load(Request("c", 25), LOADED) == 0
    other.close()


def test_an_engine_whose_memory_cannot_be_described_answers_a_look(store: Store) -> None:
    off = Pair(memory=np.zeros((2, 3, 16), np.uint8))
    off.scheduler.reset_cache()
    request = Request("a", 25)
    assert off.scheduler.get_num_new_matched_tokens(request, 0) == (None, False)
    off.until(lambda: off.scheduler.get_num_new_matched_tokens(request, 0) == (0, False))
    off.close()


def test_weights_whose_look_fails_are_not_taken_for_the_same(
    running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(running.get_model())
    running.scheduler.reset_cache()

    def fails(_: Any, *args: Any) -> bool:
        raise RuntimeError("no storage")

    monkeypatch.setattr(Weights, "look", fails)
    monkeypatch.setattr(Weights, "glance", fails)
    request = Request("b", 25)
    running.scheduler.on_new_request(request)
    running.step()
    loaded = running.load(request, LOADED)
    if loaded:
        running.step()
        running.until(lambda: "b" in running.received)
    assert not loaded or running.errors == set(LOADED), "what was loaded is KV of other weights"
    again = running.load(Request("d", 25), LOADED)
    assert again == 0, "all of its loads would fail, and under 'fail' their requests"
