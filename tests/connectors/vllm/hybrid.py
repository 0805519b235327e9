"""An engine of a model with windows, as the connector sees it: vLLM's hybrid manager in small.

It gives blocks of one pool to the groups of its requests, takes them away when they leave a window,
finds its own cached blocks again, preempts, and loads and saves through the real halves of the
connector over fake clients. What a block must hold is known from its group and its hash; whenever a
request computes, everything that it attends to is compared with that.
"""

import os
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import count
from math import lcm
from types import SimpleNamespace
from typing import Any

import numpy as np

from pegaflow.connectors.common.groups import Groups
from pegaflow.wire.identities import NO_KEY, Key

from .fakes import BLOCK, Store, config, worker_output
from .grouping import STATE, kv_config, seen_as, skipped
from .stages import connectors

SHAPE = (2, 16)
"""Layers, and bytes of a block in each."""

_lives = count()


@dataclass(eq=False)
class Asked:
    """vLLM's Request."""

    request_id: str
    prompt: list[int]
    output: list[int]  # what it will say
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    said: int = 0  # tokens of the output that are known
    tables: list[list[int]] = field(default_factory=list)
    state: str = "waits"
    found: int = 0  # tokens of the last hit in the cache
    chain: list[Key] = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + self.said

    @property
    def all_token_ids(self) -> list[int]:
        return self.prompt + self.output[: self.said]

    @property
    def block_hashes(self) -> list[Key]:
        if len(self.chain) < self.num_tokens // BLOCK:
            self.chain = names(self.all_token_ids)
        return self.chain


def names(tokens: list[int]) -> list[Key]:
    """The chain of hashes of full blocks."""
    found, parent = [], NO_KEY
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        content = repr(tokens[start : start + BLOCK]).encode()
        parent = Key(blake2b(parent + content, digest_size=32).digest())
        found.append(parent)
    return found


def kv(group: int, name: bytes) -> Any:
    """What a group's block of this hash holds."""
    size = SHAPE[0] * SHAPE[1]
    held = blake2b(b"%d" % group + name, digest_size=size).digest()
    return np.frombuffer(held, np.uint8).reshape(SHAPE)


class Hybrid:
    """One engine.

    Args:
        store: of its clients; None: they are real, and `extra` says where the service is.
        windows: tokens of each group's window; None: full attention.
        blocks: of its memory, of which the first is none.
        sizes: tokens of a block of each group; none: BLOCK, as a hash has.
        chunk: tokens of a request that are computed in a step, at most.
        caches: whether it finds its own blocks again.
        stages: pipeline stages among which its layers are parted.
    """

    def __init__(
        self,
        store: Store | None,
        windows: list[int | None],
        *,
        sizes: list[int] | None = None,
        blocks: int = 700,
        chunk: int = 64,
        caches: bool = True,
        seed: int = 0,
        mode: str = "read_write",
        extra: dict[str, Any] | None = None,
        policy: str = "recompute",
        stages: int = 1,
    ) -> None:
        self.store, self.chunk, self.caches = store, chunk, caches
        # A state is taken away when a window of two tokens would be.
        self.windows = [2 if w == STATE else w for w in windows]
        self.sizes = sizes or [BLOCK] * len(windows)
        self.step_tokens = lcm(*self.sizes)  # it resumes at multiples of them
        self.recurrent = {n for n, w in enumerate(windows) if w == STATE}
        self.policy = policy
        self.draw = random.Random(seed)
        self.memory = np.zeros((SHAPE[0], blocks, SHAPE[1]), np.uint8)
        self.groups = Groups(map(seen_as, range(len(windows)), windows, self.sizes))
        life = f"hybrid{os.getpid()}.{next(_lives)}"
        how: dict[str, Any] = {"life": life, "policy": policy, "world": stages, "pipeline": stages}
        cache = kv_config(windows, blocks, self.sizes)
        seen = partial(config, mode, extra, **how)
        self.scheduler, self.worker = connectors(seen, cache, self.memory, stages)
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))
        self.users = dict.fromkeys(range(blocks), 0)
        self.holds: dict[int, tuple[int, bytes]] = {}  # block -> what vLLM's own cache has there
        self.cached: dict[tuple[int, bytes], int] = {}
        self.requests: dict[str, Asked] = {}
        self.held: dict[str, Asked] = {}  # have ended, and their blocks are kept
        self.new: deque[Any] = deque()
        self.failed: list[str] = []  # loads
        self.taken: list[int] = []  # blocks that the next step may write
        self.preemptions = self.local = self.external = 0
        self.squeezed = False  # somebody needs the memory of the next request that runs
        pool = SimpleNamespace(get_num_free_blocks=lambda: len(self.free), hash_block_size=BLOCK)
        self.scheduler.bind_gpu_block_pool(pool)

    # blocks

    def _take(self, number: int) -> list[int]:
        taken = [self.free.popitem(last=False)[0] for _ in range(number)]
        for block in taken:
            self.users[block] = 1
            self.cached.pop(self.holds.pop(block, (0, b"")), None)
        self.taken += taken
        return taken

    def _touch(self, block: int) -> int:
        if not self.users[block]:
            del self.free[block]
        self.users[block] += 1
        return block

    def _give_back(self, blocks: list[int]) -> None:
        for block in blocks:
            self.users[block] -= 1
            if not self.users[block]:
                self.free[block] = None

    def _release(self, request: Asked) -> None:
        for table in request.tables:
            self._give_back([block for block in reversed(table) if block])
        request.tables = []

    def _slide(self, request: Asked) -> None:
        """Take away what is out of the windows."""
        done = request.num_computed_tokens - request.num_in_flight_tokens
        for window, size, table in zip(self.windows, self.sizes, request.tables, strict=False):
            if window is not None:
                gone = min(skipped(window, done) // size, len(table))
                self._give_back([block for block in table[:gone] if block])
                table[:gone] = [0] * gone

    def _local(self, request: Asked) -> int:
        """Tokens at which the request can resume with vLLM's own cache."""
        for place in range((request.num_tokens - 1) // self.step_tokens, 0, -1):
            needed = self.groups.needed(place)
            if self.caches and all(
                self._name(request, g.number, b) in self.cached for g, b in needed
            ):
                return place * self.step_tokens
        return 0

    def _name(self, request: Asked, group: int, block: int) -> tuple[int, Key]:
        """What vLLM calls a block: its group, and the last hash that it covers."""
        return group, request.block_hashes[(block + 1) * (self.sizes[group] // BLOCK) - 1]

    def _grow(self, request: Asked, end: int) -> list[list[int]] | None:
        """Blocks for tokens up to there; None: there is no room."""
        pairs = zip(request.tables, self.sizes, strict=True)
        missing = [-(-end // size) - len(table) for table, size in pairs]
        if sum(missing) > len(self.free):
            return None
        new = [self._more(group, number) for group, number in enumerate(missing)]
        for table, blocks in zip(request.tables, new, strict=True):
            table += blocks
        return new

    def _more(self, group: int, number: int) -> list[int]:
        """So many more entries of a group's table."""
        return self._take(number)

    def _tokens(self, request: Asked, computed: int) -> int:
        """So many are computed in the next step."""
        return min(self.chunk, request.num_tokens - computed)

    # a step

    def step(self) -> None:
        """Schedule and execute one, and take its output in."""
        out, rows = self._schedule()
        orders = self.scheduler.build_connector_meta(out)
        self.worker.handle_preemptions(orders)
        self.worker.bind_connector_metadata(orders)
        for block in self.taken:
            self.memory[:, block] = self.draw.randrange(256)
        self.taken.clear()
        for request, computed, tokens in rows:
            self._compute(request, computed, tokens)
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        results = self.worker.get_transfer_results(set())
        assert self.worker.get_block_ids_with_load_errors() == set(), "vLLM would raise"
        meta = self.worker.build_connector_worker_meta()
        self.worker.clear_connector_metadata()
        said = worker_output(results.finished_recving, (), meta, results.finished_sending)
        said.failed_recving = results.failed_recving
        self.scheduler.update_connector_output(said)
        self._received(results)
        for request, _, tokens in rows:
            request.num_in_flight_tokens -= tokens
            if request.num_computed_tokens >= request.num_tokens:
                self._says(request)
        self.scheduler.take_events()

    def _schedule(self) -> tuple[Any, list[tuple[Asked, int, int]]]:
        new: list[Any] = []
        cached: list[tuple[Asked, Any, int]] = []
        preempted: set[str] = set()
        rows: list[tuple[Asked, int, int]] = []
        running = [r for r in self.requests.values() if r.state == "runs"]
        if self.squeezed and running:
            self._preempt(running[-1], preempted)
            self.squeezed = False
        for request in running:
            if request.state != "runs":
                continue
            computed = request.num_computed_tokens
            tokens = self._tokens(request, computed)
            self._slide(request)
            blocks = self._grow(request, computed + tokens)
            while blocks is None:
                victim = [r for r in self.requests.values() if r.state == "runs"][-1]
                self._preempt(victim, preempted)
                if victim is request:
                    break
                cached = [row for row in cached if row[0] is not victim]
                rows = [row for row in rows if row[0] is not victim]
                blocks = self._grow(request, computed + tokens)
            if blocks is not None:
                cached.append((request, tuple(blocks), computed))
                rows.append((request, computed, tokens))
        waiting = [r for r in self.requests.values() if r.state in ("waits", "loaded")]
        for request in sorted(waiting, key=lambda r: r.state == "waits"):
            if preempted or not self._admit(request, new, rows):
                break
        for request, _, tokens in rows:
            request.num_computed_tokens += tokens
            request.num_in_flight_tokens += tokens
        out = SimpleNamespace(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[r.request_id for r, _, _ in cached],
                new_block_ids=[blocks if any(blocks) else None for _, blocks, _ in cached],
                num_computed_tokens=[computed for _, _, computed in cached],
                resumed_req_ids=set(),
            ),
            num_scheduled_tokens={r.request_id: tokens for r, _, tokens in rows},
            preempted_req_ids=preempted,
        )
        return out, rows

    def _preempt(self, request: Asked, preempted: set[str]) -> None:
        self._release(request)
        request.state, request.num_computed_tokens = "waits", 0
        preempted.add(request.request_id)
        self.preemptions += 1

    def _admit(self, request: Asked, new: list[Any], rows: list[Any]) -> bool:
        """Begin a request that waits; whether others may be begun, too."""
        local = external = 0
        if request.state == "waits":
            local = self._local(request)
            asked, late = self.scheduler.get_num_new_matched_tokens(request, local)
            if asked is None:
                return True
            external = asked
            assert late == bool(external) and local + external < request.num_tokens
            if not self._hold(request, local, external):
                return False
            request.num_computed_tokens = local + external
            self.local += local
        if external:
            request.state, request.found = "loads", external
            self._allocated(request, external)
            return True
        computed = request.num_computed_tokens
        tokens = self._tokens(request, computed)
        self._slide(request)
        if self._grow(request, computed + tokens) is None:
            if request.state == "waits":
                self._release(request)
                request.num_computed_tokens = 0
            return False
        self._allocated(request, 0)
        request.state = "runs"
        tables = tuple(list(table) for table in request.tables)
        name = request.request_id
        new.append(SimpleNamespace(req_id=name, block_ids=tables, num_computed_tokens=computed))
        rows.append((request, computed, tokens))
        return True

    def _hold(self, request: Asked, local: int, external: int) -> bool:
        """Give it the blocks that are found, and room for those that are to be loaded."""
        end = local + external
        spans = [  # of each group: the first block that is needed, the first to load, and the end
            (skipped(window, end) // size, local // size, end // size)
            for window, size in zip(self.windows, self.sizes, strict=True)
        ]
        missing = sum(max(0, last - max(first, here)) for first, here, last in spans)
        missing += self._reserved() if external else 0
        found = [
            [self.cached[self._name(request, group, block)] for block in range(first, here)]
            for group, (first, here, _) in enumerate(spans)
        ]
        if missing + sum(not self.users[b] for blocks in found for b in blocks) > len(self.free):
            return False
        request.tables = [
            [0] * min(first, last) + [self._touch(block) for block in blocks]
            for (first, _, last), blocks in zip(spans, found, strict=True)
        ]
        for table, (_, _, last) in zip(request.tables, spans, strict=True):
            table += self._take(last - len(table))
        return True

    def _reserved(self) -> int:
        """Blocks kept free for the next step of whoever loads, one more request included: they hold
        memory, and nobody takes it from them, so each must be able to go on."""
        loading = sum(request.state in ("loads", "loaded") for request in self.requests.values())
        return (loading + 1) * len(self.windows) * (-(-self.chunk // BLOCK) + 1)

    def _allocated(self, request: Asked, tokens: int) -> None:
        tables = tuple(list(table) for table in request.tables)
        blocks = SimpleNamespace(get_block_ids=lambda: tables)
        self.scheduler.update_state_after_alloc(request, blocks, tokens)

    def _compute(self, request: Asked, computed: int, tokens: int) -> None:
        for group, (window, table) in enumerate(zip(self.windows, request.tables, strict=True)):
            size = self.sizes[group]
            first = skipped(window, computed) // size
            for block in range(first, computed // size):
                assert table[block], f"{request.request_id}: {block} of group {group} is away"
                right = kv(*self._name(request, group, block))
                assert (self.memory[:, table[block]] == right).all(), (request.request_id, block)
            for block in range(computed // size, (computed + tokens) // size):
                if table[block]:
                    name = self._name(request, group, block)
                    self.memory[:, table[block]] = kv(*name)
                    if self.caches and name not in self.cached:
                        self.cached[name] = table[block]
                        self.holds[table[block]] = name

    def _received(self, results: Any) -> None:
        for name in results.finished_recving:
            request = self.requests.get(name)
            if request is None:  # it was aborted while it was loaded
                self._release(self.held.pop(name))
            elif name in results.failed_recving:
                self.failed.append(name)
                self._release(request)
                request.state, request.num_computed_tokens = "waits", 0
                if self.policy == "fail":
                    self._end(request)
            else:
                self.external += request.found
                request.state = "loaded"
        for name in results.finished_sending:
            self._release(self.held.pop(name))

    def _says(self, request: Asked) -> None:
        if request.said == len(request.output):
            self._end(request)
        else:
            request.said += 1

    def _end(self, request: Asked) -> None:
        del self.requests[request.request_id]
        loads = request.state == "loads"
        self._slide(request)
        tables = tuple(list(table) for table in request.tables)
        held, params = self.scheduler.request_finished_all_groups(request, tables)
        assert params is None and not (held and loads)
        if held or loads:
            self.held[request.request_id] = request
        else:
            self._release(request)

    # what a test does

    def ask(self, name: str, prompt: list[int], output: list[int]) -> Asked:
        """A request arrives."""
        request = self.requests[name] = Asked(name, prompt, output)
        self.scheduler.on_new_request(request)
        return request

    def abort(self, request: Asked) -> None:
        """Its user has gone."""
        if request.request_id in self.requests:
            self._end(request)

    def drain(self, steps: int = 20_000) -> None:
        """Until everything is answered, saved and given back."""
        for _ in range(steps):
            if not self.busy:
                return
            self.step()
        raise AssertionError(f"{list(self.requests)} hang, {list(self.held)} are held")

    @property
    def busy(self) -> bool:
        """Whether something is not answered, saved or given back."""
        return bool(self.requests or self.held or self._open)

    @property
    def _open(self) -> bool:
        half = self.scheduler._scheduler
        assert half is not None
        return bool(half._requests._open or getattr(half._requests, "_late", ()))

    def close(self) -> None:
        """The engine stops."""
        self.scheduler.shutdown()
        self.worker.shutdown()
