"""KV events: what an engine says of its blocks in the cache, over a fake service.

With a vLLM in this environment the events are of vLLM's own types, and go over its wire and back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from pegaflow.client import Seen
from pegaflow.connectors.vllm import events, eventwords
from pegaflow.connectors.vllm.events import BLIND_S
from pegaflow.connectors.vllm.settings import engine as engine_of

from .fakes import BLOCK, FakeClient, Request, Store, config, kv_cache_config, output
from .pair import Pair

BELOW_IS_KNOWN = True
"""As long as a test does not say otherwise."""


@dataclass
class Spoken(Request):
    """A request with tokens."""

    @property
    def all_token_ids(self) -> list[int]:
        return [1000 + place for place in range(self.num_tokens)]


def see(client: FakeClient, keys: Sequence[bytes]) -> Seen | None:
    """What the store has, as Client.see."""
    if not client.store.finds:
        return None
    here = tuple(name in client.store.pages for name in client._named(keys))
    below = tuple(key in client.store.on_disk for key in keys)
    return Seen(here, below if BELOW_IS_KNOWN else None)


@pytest.fixture
def told(pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """An engine that publishes events."""
    monkeypatch.setattr(FakeClient, "see", see, raising=False)
    monkeypatch.setattr(eventwords, "are_wanted", lambda _: True)
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.0)
    made = Pair()
    pool = SimpleNamespace(
        cached_block_hash_to_block={}, num_gpu_blocks=61, get_num_free_blocks=lambda: 60
    )
    made.scheduler.bind_gpu_block_pool(pool)
    store.finds = True
    yield made
    assert made.scheduler._errors == 0
    made.close()


def hashes(request: Request) -> list[bytes]:
    return [eventwords.external(one) for one in request.block_hashes]


def forget(store: Store, request: Request, first: int = 0) -> None:
    """Evict the request's blocks from that one on."""
    for block in request.block_hashes[first:]:
        for name in [name for name in store.pages if name.endswith(block)]:
            del store.pages[name]


def test_whether_they_are_wanted() -> None:
    asked = config()
    assert not eventwords.are_wanted(asked)
    asked.kv_events_config = SimpleNamespace(enable_kv_cache_events=True)
    assert eventwords.are_wanted(asked)


def test_what_is_saved_is_stored_in_memory_with_its_tokens(told: Pair, store: Store) -> None:
    request = Spoken("a", 25)
    told.save(store, request, [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    (event,) = told.told
    assert type(event).__name__.endswith("BlockStored")
    assert (event.block_hashes, event.parent_block_hash) == (hashes(request), None)
    assert event.token_ids == request.all_token_ids[:24] and event.block_size == BLOCK
    assert (event.medium, event.lora_id, event.lora_name) == ("CPU", None, None)
    assert event.extra_keys == [None] * 6 and event.group_idx == 0
    told.step()
    assert len(told.told) == 1, "once"


def test_a_longer_prompt_goes_on_from_its_parent(told: Pair, store: Store) -> None:
    told.save(store, Spoken("a", 9), [1, 2, 3])
    told.until(lambda: bool(told.told))
    longer = Spoken("b", 17)
    assert told.load(longer, [10, 11]) == 8
    told.until(lambda: told.received == ["b"])
    told.compute(longer, [10, 11, 12, 13, 14], 8)
    told.until(lambda: len(told.told) == 2)
    assert told.told[1].block_hashes == hashes(longer)[2:]
    assert told.told[1].parent_block_hash == hashes(longer)[1]
    assert told.told[1].token_ids == longer.all_token_ids[8:16]


def test_what_another_engine_has_saved_is_told_once_it_is_used(told: Pair, store: Store) -> None:
    other, request = Pair(), Spoken("b", 25)
    other.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    other.close()
    told.step()
    assert told.told == []
    assert told.load(request, [10, 11, 12, 13, 14, 15]) == 24
    told.until(lambda: bool(told.told))
    assert told.told[0].block_hashes == hashes(request)


def test_what_is_evicted_is_removed(told: Pair, store: Store) -> None:
    request = Spoken("a", 25)
    told.save(store, request, [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    forget(store, request, first=4)
    told.until(lambda: len(told.told) > 1)
    last = told.told[-1]
    assert type(last).__name__.endswith("BlockRemoved") and last.medium == "CPU"
    assert sorted(last.block_hashes) == sorted(hashes(request)[4:]) and last.group_idx == 0


def test_blocks_behind_one_that_is_gone_are_told_of_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is evicted between two steps, each of which adds a part of a request's blocks."""
    monkeypatch.setattr(eventwords, "are_wanted", lambda _: True)
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(events, "ADD_MAX", 3)
    request = Spoken("a", 25)
    here = set(request.block_hashes[:3])
    made = events.Events(
        engine_of(config(), kv_cache_config())[0],
        lambda keys: Seen(tuple(key in here for key in keys), None),
    )
    pool = SimpleNamespace(cached_block_hash_to_block={})
    made.add(request, 0, 3)
    made.take(pool)
    made.add(request, 0, 6)
    here.remove(request.block_hashes[2])
    (gone,) = made.take(pool)
    assert gone.block_hashes == hashes(request)[2:3]
    made.take(pool)
    here.update(request.block_hashes)
    assert [event.block_hashes for event in made.take(pool)] == [hashes(request)[2:]]


def test_what_goes_to_disk_is_there_before_memory_lets_go(told: Pair, store: Store) -> None:
    request = Spoken("a", 25)
    told.save(store, request, [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    store.on_disk = request.block_hashes[:5]
    told.until(lambda: len(told.told) == 2)
    assert (told.told[1].medium, told.told[1].block_hashes) == ("DISK", hashes(request)[:5])
    assert told.told[1].token_ids == request.all_token_ids[:20]
    forget(store, request)
    told.until(lambda: len(told.told) == 3)
    assert (told.told[2].medium, len(told.told[2].block_hashes)) == ("CPU", 6)


def test_while_it_is_unknown_what_is_on_disk_nothing_of_it_changes(
    told: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Spoken("a", 25)
    told.save(store, request, [1, 2, 3, 4, 5, 6, 7])
    store.on_disk = request.block_hashes[:5]
    told.until(lambda: len(told.told) == 2)
    monkeypatch.setattr(f"{__name__}.BELOW_IS_KNOWN", False)
    store.on_disk = ()
    forget(store, request)
    told.until(lambda: len(told.told) == 3)
    told.step()
    assert [event.medium for event in told.told] == ["CPU", "DISK", "CPU"]


def test_routers_forget_all_tiers_with_vllms_own_cache_and_are_told_again(
    told: Pair, store: Store
) -> None:
    told.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    assert told.scheduler._scheduler is not None
    told.scheduler._scheduler._pool.cached_block_hash_to_block = {}
    told.until(lambda: len(told.told) == 2)
    assert told.told[0] == told.told[1] or vars(told.told[0]) == vars(told.told[1])


def test_without_a_service_it_is_taken_back_after_a_while(
    told: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    store.finds = False
    told.step()
    assert len(told.told) == 1, "it may be back at once"
    monkeypatch.setattr(events, "BLIND_S", -1.0)
    told.step()
    assert len(told.told) == 2 and len(told.told[1].block_hashes) == 6
    assert BLIND_S > 1


def test_other_weights_take_back_what_was_told(told: Pair, store: Store) -> None:
    told.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    assert told.scheduler._scheduler is not None
    told.scheduler._scheduler._begin_epoch(1)
    told.step()
    assert type(told.told[1]).__name__.endswith("BlockRemoved")


def test_a_step_that_is_void_is_never_told(told: Pair, store: Store) -> None:
    request = Spoken("a", 25)
    told.scheduler.on_new_request(request)
    step = output(new=[("a", [1, 2, 3, 4, 5, 6, 7], 0, request.num_tokens)])
    told.execute(told.schedule(step), bad={60})
    for _ in range(20):
        told.step()
    assert store.pages == {} and told.told == []


@pytest.mark.parametrize("why", ["no events", "save_only"])
def test_who_publishes_nothing_does_nothing(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(FakeClient, "see", see, raising=False)
    monkeypatch.setattr(eventwords, "are_wanted", lambda _: why != "no events")
    made = Pair("save_only" if why == "save_only" else "read_write")
    made.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    made.step()
    assert made.scheduler._scheduler is not None
    assert made.told == [] and not made.scheduler._scheduler._events._spans
    made.close()


def test_an_error_ends_the_events_and_nothing_else(told: Pair, store: Store) -> None:
    told.save(store, Spoken("a", 25), [1, 2, 3, 4, 5, 6, 7])
    told.until(lambda: bool(told.told))
    del store.pages
    told.step()
    assert told.scheduler._errors == 1
    told.step()
    assert told.scheduler._errors == 1
    told.scheduler._errors = 0
    store.pages = {}
