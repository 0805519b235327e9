"""The scheduler half: asks the cache about requests, and orders loads and saves.

It runs in the engine's scheduling loop, so it never waits. What is in memory its client finds at
once, without a message: the step that asks has the answer. What only the session can say is asked
when a request arrives and collected when it is scheduled, within one small budget for all requests
of a step; what is not there yet is asked for again in the next step. The first requests of an
engine may come before all of its ranks have joined the session: they are held back like any whose
answer is not there, for as long as a lookup may take. The half owns one Client, without registered
memory, which opens the engine's session (opener.py), and another session in each epoch (watch.py);
the workers' clients join that session.

A step's decisions leave in a `StepOrders`, which vLLM carries to every worker. An order for a load
is kept until it has left in one: vLLM waits for each load it was promised. Should we fail in
between, `emergency` sends what is left as abandoned, and the workers report it failed.

The workers copy a save at once, but the service publishes it only when we commit it: when vLLM has
taken in the step's output and stands by what was computed (steps.py). That is said from here, over
our own connection, so it needs no further step: what the last step of an idle engine computed is
published as well.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pegaflow.client import Client, Lease, LookupDone
from pegaflow.connectors.common.requests import LoadOrder, Requests, SaveOrder, Tracked
from pegaflow.connectors.common.steps import Saving, Steps
from pegaflow.wire.status import Status
from pegaflow.wire.units import Seconds

from . import compat
from .adapters import Adapters
from .opener import Opener
from .settings import Engine, Reading
from .watch import Look

STEP_BUDGET_S: Seconds = 0.0002
"""Waiting for answers per step, all requests together: two round trips to the index and back."""

POLL_EVERY_S: Seconds = 0.05
"""A step that waits for no answer looks at the connection this often: a look costs 0.1 ms."""

CONNECT_S: Seconds = 1.0
"""Once, while the engine starts, which takes far longer: its first requests should not all miss.
Later nothing waits for a connection."""

FOR_EVER = float("inf")


@dataclass
class StepOrders(compat.Metadata):  # type: ignore[misc]
    """What the workers are to do in one step. Plain values: it may cross processes."""

    namespace: bytes = b""  # the scheduler's; a worker with another one does not work
    epoch: int = 0  # counts changes of the weights
    loads: tuple[LoadOrder, ...] = ()
    saves: tuple[SaveOrder, ...] = ()
    preempted: tuple[str, ...] = ()  # requests whose blocks are gone
    held: tuple[str, ...] = ()  # finished requests whose blocks wait for their saves
    let_go: tuple[str, ...] = ()  # held requests that need not be held any more
    dropped: tuple[int, ...] = ()  # saves whose blocks are written by somebody else from now on
    abandoned: tuple[tuple[str, tuple[int, ...]], ...] = ()  # loads to report failed: ids, blocks
    look: Look = Look()  # whether the weights are to be looked at


class Scheduler:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._requests = Requests(
            engine.block_tokens, engine.hash_tokens, engine.world, engine.settings.saves
        )
        self._steps = Steps(compat.processed_tokens)
        self._pool: Any = None  # vLLM's, which knows how many of its blocks are free
        self._epoch = 0  # counts changes of the weights, as the workers saw them
        self._look = Look()
        self._look_until = 0.0  # a request that must wait for it waits so long
        self._looked = 0  # the newest look that every worker has answered
        self._stale = False  # vLLM holds blocks of other weights: nothing is read or saved
        self._adapters = Adapters(
            engine.adapters, _no_keys, engine.settings.weights_hash is Reading.FULL
        )
        self._checked = False  # the worked-out hash seed was compared with vLLM's
        self._off = ""  # why nothing is asked or saved any more
        self._client = Opener(self._new_client)
        why = self._client.connect(CONNECT_S)
        if why:
            compat.logger().warning("pegaflow: no service: %s", why)
        # So long a session of which a rank is missing is waited for: from its first such answer on.
        self._early_until = FOR_EVER
        self._by_message: str | None = ""  # why lookups cost a message, as it was last logged
        self._spent = 0.0  # of STEP_BUDGET_S, in this step
        self._polled = 0.0  # when the client was last given the time to do its I/O
        # Loads promised to vLLM that no worker has been told of: request -> order or block ids.
        self._loads: dict[str, LoadOrder | tuple[int, ...]] = {}
        self._held: list[str] = []  # finished since the last step, to be reported by the workers
        self._allocated: dict[str, list[int]] = {}  # blocks given to requests since the last step
        self._blind = False  # more were given, nobody knows which

    def _new_client(self, epoch: int) -> Client:
        engine = self._engine
        return Client(
            engine.name,
            engine.space.base,
            probe=engine.space.probe,
            world=engine.world,
            generation=engine.generation(epoch),
            endpoint=engine.settings.endpoint,
            curve=engine.settings.curve,
            owner=engine.settings.owner,
            opens=True,
        )

    # lookups

    def new_request(self, request: Any) -> None:
        """A request arrived: ask the cache about it."""
        self._check_seed()
        self._track(request)
        self._ask(request)

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """What the cache has of a request.

        Args:
            computed: leading tokens that vLLM has itself.

        Returns:
            Tokens behind those that can be loaded, or None for "ask me later"; and whether they are
            loaded asynchronously.
        """
        name = request.request_id
        self._track(request)
        if self._look.number > self._looked and (self._look.reset or self._engine.careful):
            return (None if time.monotonic() < self._look_until else 0), False
        self._ask(request)
        tokens = self._requests.offer(name, computed)
        if tokens is None and self._spent < STEP_BUDGET_S:
            self._collect()
            tokens = self._requests.offer(name, computed)
        if tokens is None:
            return None, False
        tokens = min(tokens, request.num_tokens - computed)
        tokens -= tokens % self._engine.block_tokens
        return tokens, tokens > 0

    def _track(self, request: Any) -> Tracked:
        """The request's entry; with the first in an idle engine, weights are looked at again."""
        name, tracked = request.request_id, self._requests.tracked
        if name in tracked:
            return tracked[name]
        if not tracked:
            self._look_again(reset=False)
        return self._requests.add(name, self._adapters.source(request))

    def _look_again(self, reset: bool) -> None:
        before, clean = self._look, compat.holds_nothing(self._pool)
        if self._pool is None:  # a reset says it, until there is work
            clean = reset or (before.clean and before.number > self._looked)
        reset = reset or (before.reset and before.number > self._looked)
        self._look = Look(before.number + 1, reset, clean)
        self._look_until = time.monotonic() + self._engine.settings.timeout_s

    def _ask(self, request: Any) -> None:
        off = self._off or self._stale or not self._engine.settings.loads
        if off or time.monotonic() >= self._early_until:
            self._requests.settle(request.request_id)
        if off:
            return
        if getattr(request, "skip_reading_prefix_cache", False):
            return
        keys = self._requests.wants(request.request_id)
        found = self._client.find(keys) if keys else None
        if found is not None:
            self._requests.asked(request.request_id, found.ticket, time.monotonic())
            self._answer(found, time.monotonic())
        elif keys:
            timeout = self._engine.settings.timeout_s
            ticket = self._client.start_lookup(keys, timeout=timeout)
            if ticket is not None:
                self._requests.asked(request.request_id, ticket, time.monotonic())

    def _collect(self) -> None:
        """Read answers for as long as this step's budget lasts, if none is here at once."""
        start = time.monotonic()
        for done in self._client.poll(max(0.0, STEP_BUDGET_S - self._spent)):
            assert isinstance(done, LookupDone)
            if self._is_early(done.status, start):
                self._requests.early(done.ticket)
                continue
            self._answer(done, start)
        now = time.monotonic()
        self._spent += now - start
        self._polled = now
        self._requests.give_up(now - self._engine.settings.timeout_s)

    def _report(self) -> None:
        """One line for each change of how lookups go."""
        before, self._by_message = self._by_message, self._client.by_message
        if self._by_message and self._by_message != before:
            compat.logger().info("pegaflow: each lookup costs a message: %s", self._by_message)
        elif before and not self._by_message:
            compat.logger().info("pegaflow: lookups of what is in memory cost no message")

    def _answer(self, done: LookupDone, now: float) -> None:
        if done.status is Status.OK:
            self._early_until = 0.0  # all have been there
        in_time = done.status is not Status.EXPIRED
        unwanted = self._requests.answered(done.ticket, done.lease, in_time, now, disk=done.disk)
        self._release([unwanted] if unwanted else [])

    def _is_early(self, status: Status, now: float) -> bool:
        """Whether the session, or a rank of it, may still be on its way."""
        opening = status is Status.DISCONNECTED and self._client.on_its_way
        if not opening and status is not Status.NOT_ATTACHED:
            return False
        if self._early_until == FOR_EVER:
            self._early_until = now + self._engine.settings.timeout_s
        return now < self._early_until

    def _release(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._client.release(lease)

    def _check_seed(self) -> None:
        if not self._checked:
            self._checked = True
            if compat.parent_differs(self._engine.parent):
                self._off = "vLLM's hash seed is not what its configuration says"
                compat.logger().error("pegaflow: off: %s", self._off)

    # loads and saves

    def bind_pool(self, pool: Any) -> None:
        """vLLM's pool of blocks."""
        self._pool = pool

    def _free(self) -> int:
        """Blocks that nobody holds; -1 where it is not known."""
        return int(self._pool.get_num_free_blocks()) if self._pool is not None else -1

    def allocated(self, request: Any, blocks: Any, tokens: int) -> None:
        """vLLM has given a request its blocks.

        Args:
            blocks: vLLM's KVCacheBlocks, of the whole request.
            tokens: those that vLLM waits for, as `matched` has said; 0: none.
        """
        name, ids = request.request_id, compat.block_ids(blocks)
        tracked = self._track(request)
        self._allocated[name] = ids[tracked.local :] if tokens else ids
        if tokens:
            self._loads[name] = tuple(ids[tracked.local :])  # come what may, it is reported
        self._release(self._requests.allocated(name, ids, tokens))
        order = tracked.loading
        if tokens and order is not None:
            self._client.share(order.lease)
            self._loads[name] = order

    def sources(self, name: str, tokens: int) -> dict[Any, int]:
        """Which tiers the load just ordered comes from.

        Args:
            name: the request's id.
            tokens: of the load.

        Returns:
            vLLM's counts, as `compat.hit_sources`.
        """
        disk = min(tokens, self._requests.from_disk(name) * self._engine.block_tokens)
        return compat.hit_sources(tokens - disk, disk)

    def lost_sight(self) -> None:
        """Blocks were given to somebody, and we do not know which."""
        self._blind = True

    def begin_step(self) -> None:
        """A step is scheduled; `orders` or, should that fail, `emergency` has the workers' part."""
        self._steps.begin()

    def orders(self, output: Any) -> StepOrders:
        """Everything that this step brings, for the workers."""
        if time.monotonic() - self._polled > POLL_EVERY_S:
            self._spent = STEP_BUDGET_S
            self._collect()
            self._report()
        self._spent = 0.0
        preempted = tuple(getattr(output, "preempted_req_ids", None) or ())
        for name in preempted:
            self._release(self._requests.preempted(name))
        self._release(self._requests.stale(time.monotonic()))
        cold = self._stale and not (self._look.clean and self._look.number > self._looked)
        orders = self._outgoing()
        orders.preempted = preempted
        orders.saves = () if self._off or cold else tuple(self._saves(output))
        if self._blind:
            orders.dropped = self._requests.drop_loose()
        elif self._requests.loose:
            orders.dropped = self._requests.reused(self._given(output))
        orders.let_go = self._requests.relax(self._free())
        self._sent()
        return orders

    def emergency(self) -> StepOrders:
        """After an error: no new work, but every promise is kept."""
        for name, order in self._loads.items():
            if isinstance(order, LoadOrder):
                self._loads[name] = order.blocks
        orders = self._outgoing()
        orders.dropped = self._requests.drop_loose()
        self._sent()
        return orders

    def _outgoing(self) -> StepOrders:
        waiting = self._loads
        return StepOrders(
            namespace=self._engine.space.final,
            epoch=self._epoch,
            loads=tuple(o for o in waiting.values() if isinstance(o, LoadOrder)),
            held=tuple(self._held),
            abandoned=tuple((n, o) for n, o in waiting.items() if not isinstance(o, LoadOrder)),
            look=self._look,
        )

    def _sent(self) -> None:
        self._loads, self._held, self._allocated, self._blind = {}, [], {}, False

    def _rows(self, output: Any) -> Iterator[tuple[str, list[int], bool, int]]:
        """Of each scheduled request: its new blocks, whether they are all it has, and its tokens
        that are computed."""
        for new in output.scheduled_new_reqs:
            yield new.req_id, compat.block_ids(new.block_ids), True, new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
        for name, blocks, computed in rows:
            ids = compat.block_ids(blocks) if blocks is not None else []
            yield name, ids, name in cached.resumed_req_ids, computed

    def _given(self, output: Any) -> list[int]:
        """Blocks that this step, or a load that it starts, may write: all that their owner has not
        had before, but for those that it found in vLLM's own cache."""
        found: list[int] = []
        for _, blocks, replaced, computed in self._rows(output):
            found += blocks[computed // self._engine.block_tokens :] if replaced else blocks
        for name, blocks in self._allocated.items():
            if name not in output.num_scheduled_tokens:
                found += blocks
        return found

    def _saves(self, output: Any) -> list[SaveOrder]:
        scheduled: Mapping[str, int] = output.num_scheduled_tokens
        found = [
            self._requests.step(name, blocks, replaced, computed, scheduled=scheduled.get(name, 0))
            for name, blocks, replaced, computed in self._rows(output)
        ]
        orders = [order for order in found if order is not None]
        whole, tracked = self._engine.block_tokens, self._requests.tracked
        self._steps.ordered(
            Saving(o.order, tracked[o.request], o.first, (o.first + len(o.keys)) * whole)
            for o in orders
        )
        return orders

    # what the workers report

    def output(self, output: Any) -> None:
        """Failures first: a load that ended may have failed."""
        bad = getattr(output, "invalid_block_ids", None)
        if bad or getattr(output, "failed_recving", None):
            self._steps.void()
        if bad:
            self._requests.failed(bad)
        for name in output.finished_recving or ():
            self._requests.loaded(name)
        done = getattr(output, "kv_connector_worker_meta", None)
        for order, count in getattr(done, "saves", {}).items():
            self._requests.saved(order, count)
        for name in output.finished_sending or ():
            self._requests.sent(name)
        if done is not None:
            self._looked = max(self._looked, done.looked)
            self._stale = done.stale
            if done.epoch > self._epoch:
                self._begin_epoch(done.epoch)

    def passed(self) -> None:
        """vLLM has taken in the output of the oldest step."""
        stands, void = self._steps.passed()
        if stands:
            self._client.commit(stands)
        for saving in void:
            self._client.skip_save(saving.order)
            self._requests.void(saving.request, saving.first)

    def finished(self, name: str) -> bool:
        """The request ended; whether its blocks must wait for saves."""
        held, leases = self._requests.finished(name, self._free())
        self._release(leases)
        if held:
            self._held.append(name)
        return held

    def reset(self) -> bool:
        """The weights may have changed: the workers look before anything is loaded or saved."""
        self._look_again(reset=True)
        return True

    def _begin_epoch(self, epoch: int) -> None:
        """The weights have changed: nothing that the cache said so far holds."""
        self._epoch = epoch
        self._release(self._requests.clear_answers())
        self._client.reopen(epoch)
        self._early_until = FOR_EVER

    def close(self) -> None:
        """The engine stops."""
        self._client.close()


def _no_keys(adapter: str, why: str) -> None:
    compat.logger().warning(
        "pegaflow: requests with the adapter %r are neither read nor saved: %s", adapter, why
    )
