"""The scheduler half: asks the cache about requests, and orders loads and saves.

It runs in the engine's scheduling loop, so it never waits. What is in memory its client finds at
once, without a message: the step that asks has the answer. What only the session can say is asked
when a request arrives and collected when it is scheduled, within one small budget for all requests
of a step; what is not there yet is asked for again in the next step. The half owns one Client,
without registered memory, which opens the session, a new one in each epoch (opener.py).

A step's decisions leave in a `StepOrders`, which vLLM carries to every worker. An order for a load
is kept until it has left in one: vLLM waits for each load it was promised. Should we fail in
between, `emergency` sends what is left as abandoned, and the workers report it failed.

The workers copy a save at once, but the service publishes it only when we commit it: when vLLM has
taken in the step's output and stands by what was computed (steps.py). That is said from here, over
our own connection, so it needs no further step, which an idle engine does not have.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pegaflow.client import Client, Lease, LookupDone
from pegaflow.connectors.common.hints import hints
from pegaflow.connectors.common.steps import Steps
from pegaflow.connectors.common.tracked import Brought, LoadOrder, Lookup, SaveOrder, Tracked
from pegaflow.wire.identities import Key
from pegaflow.wire.status import Status
from pegaflow.wire.units import Seconds

from . import compat
from .adapters import Adapters
from .events import Events
from .metrics import SchedulerTally, Stats
from .opener import Opener
from .orders import StepOrders
from .settings import Engine, Reading, requests
from .tables import Tables
from .watch import Look

STEP_BUDGET_S: Seconds = 0.0002
"""Waiting for answers per step, all requests together: two round trips to the index and back."""

POLL_EVERY_S: Seconds = 0.05
"""A step that waits for no answer looks at the connection this often: a look costs 0.1 ms."""

CONNECT_S: Seconds = 1.0
"""Once, while the engine starts, which takes far longer: its first requests should not all miss.
Later nothing waits for a connection."""

IGNORED_EVERY_S: Seconds = 60.0
"""One line in this time on what requests ask for and is not understood."""

FOR_EVER = float("inf")


class Scheduler:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tally = SchedulerTally(engine.settings.timeout_s)
        self._requests, self._grouped = requests(engine, lambda keys: self._client.see(keys))
        self._tables = Tables(engine.group_tokens, engine.groups is not None)
        self._steps = Steps(compat.processed_tokens, compat.steps_under_way(engine.config))
        self._pool: Any = None  # vLLM's, which knows how many of its blocks are free
        self._epoch = 0  # counts changes of the weights, as the workers saw them
        self._look = Look()
        self._look_until_s = 0.0  # a request that must wait for it waits so long
        self._looked = 0  # the newest look that every worker has answered
        self._stale = 0  # ranks, a bit each, that move nothing: nothing is asked or saved
        self._adapters = Adapters(
            engine.adapters, _no_keys, engine.settings.weights_hash is Reading.FULL
        )
        self._checked = False  # there was a request, by which vLLM can be looked at
        self._off = ""  # why nothing is asked or saved any more
        self._client = Opener(self._new_client)
        self._events = Events(engine, self._client.see)
        if why := self._client.connect(CONNECT_S):
            compat.logger().warning("pegaflow: no service: %s", why)
        self._early_until_s = FOR_EVER  # so long a session or rank that is missing is waited for
        self._by_message: str | None = ""  # why lookups cost a message, as it was last logged
        self._spent_s = 0.0  # of STEP_BUDGET_S, in this step
        self._ignored_s = -FOR_EVER  # when it was last logged that a request was not understood
        self._polled_s = 0.0  # when the client was last given the time to do its I/O
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
        self._tables.local[name] = computed
        self._track(request)
        looks = self._look.number > self._looked
        unseen = None if time.monotonic() < self._look_until_s else 0
        if looks and self._look.reset:
            return unseen, False
        self._ask(request)
        tokens = self._requests.offer(name, computed)
        if tokens is None and self._spent_s < STEP_BUDGET_S:
            self._collect()
            tokens = self._requests.offer(name, computed)
        if tokens and looks and self._engine.careful:
            tokens = unseen
        if tokens is not None and tokens > (rest := request.num_tokens - computed):
            tokens = rest - rest % self._engine.block_tokens
        return tokens, bool(tokens)

    def _track(self, request: Any) -> Tracked:
        """The request's entry; with the first in an idle engine, weights are looked at again."""
        name, tracked = request.request_id, self._requests.tracked
        if name in tracked:
            return tracked[name]
        self._check(request)
        if not tracked:
            self._look_again(reset=False)
        asked, ignored = hints(*compat.said(request), self._engine.settings.hints)
        if ignored and time.monotonic() >= self._ignored_s + IGNORED_EVERY_S:
            self._ignored_s = time.monotonic()
            compat.logger().warning("pegaflow: of what request %s asks: %s", name, ignored)
        return self._requests.add(name, self._adapters.source(request), asked)

    def _look_again(self, reset: bool) -> None:
        before, clean = self._look, compat.holds_nothing(self._pool)
        if self._pool is None:  # a reset says it, until there is work
            clean = reset or (before.clean and before.number > self._looked)
        if clean and self._grouped:
            self._grouped.drop_late()  # computed before the look: with other weights, maybe
        reset = reset or (before.reset and before.number > self._looked)
        self._look = Look(before.number + 1, reset, clean)
        self._look_until_s = time.monotonic() + self._engine.settings.timeout_s

    def _ask(self, request: Any) -> None:
        off = self._off or self._stale or not self._engine.settings.loads
        name, now_s = request.request_id, time.monotonic()
        if off or now_s >= self._early_until_s:
            self._requests.settle(name, Lookup.EARLY)
        if off:
            self._requests.settle(name, Lookup.SHORT)
            return
        if getattr(request, "skip_reading_prefix_cache", False):
            return
        keys = self._requests.wants(name, now_s)
        while keys:
            found = self._client.find(keys)
            if found is None:
                self._ask_session(name, keys, now_s)
                return
            self._requests.asked(name, found.ticket, now_s)
            self._answer(found, now_s)
            keys = self._grouped.wants_next(name) if self._grouped else ()

    def _ask_session(self, name: str, keys: Sequence[Key], now_s: float) -> None:
        ticket = self._client.start_lookup(keys, timeout=self._engine.settings.timeout_s)
        if ticket is not None:
            self._requests.asked(name, ticket, now_s)
            self._tally.asked(ticket, now_s)
        else:
            self._requests.settle(name, Lookup.SHORT)

    def _collect(self) -> None:
        """Read answers for as long as this step's budget lasts, if none is here at once."""
        start = time.monotonic()
        for done in self._client.poll(max(0.0, STEP_BUDGET_S - self._spent_s)):
            assert isinstance(done, LookupDone)
            self._tally.answered(done.ticket, time.monotonic(), done.blocks)
            if self._is_early(done.status, start):
                self._requests.early(done.ticket)
                continue
            self._answer(done, start)
        self._polled_s = now_s = time.monotonic()
        self._spent_s += now_s - start
        self._requests.give_up(now_s - self._engine.settings.timeout_s)

    def _report(self) -> None:
        """One line for each change of how lookups go."""
        before, self._by_message = self._by_message, self._client.by_message
        if self._by_message and self._by_message != before:
            compat.logger().info("pegaflow: each lookup costs a message: %s", self._by_message)
        elif before and not self._by_message:
            compat.logger().info("pegaflow: lookups of what is in memory cost no message")

    def _answer(self, done: LookupDone, now_s: float) -> None:
        if done.status is Status.OK:
            self._early_until_s = FOR_EVER
        in_time = done.status is not Status.EXPIRED
        brought = Brought(done.disk, done.peers)
        unwanted = self._requests.answered(done.ticket, done.lease, in_time, now_s, brought=brought)
        self._release([unwanted] if unwanted else [])

    def _is_early(self, status: Status, now_s: float) -> bool:
        """Whether the session, or a rank of it, was still on its way, and may be here by now."""
        lost = status is Status.DISCONNECTED and not self._client.refused
        if not lost and status is not Status.NOT_ATTACHED:
            return False
        if self._early_until_s == FOR_EVER:
            self._early_until_s = now_s + self._engine.settings.timeout_s
        return now_s < self._early_until_s

    def _release(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._client.release(lease)

    def _check(self, request: Any) -> None:
        """With the first request, whether vLLM is what the start of the engine took it for."""
        if self._checked:
            return
        self._checked = True
        engine = self._engine
        self._off = compat.unlike(request, self._pool, engine.parent, engine.hash_tokens)
        if self._off:
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
        name, tables = request.request_id, self._tables.of(blocks)
        tracked = self._track(request)
        given = self._tables.ids(tables, tracked.local * self._engine.block_tokens if tokens else 0)
        self._allocated[name] = given
        if tokens:
            self._loads[name] = tuple(given)  # come what may, it is reported
        self._release(self._requests.allocated(name, tables, tokens))
        order = tracked.loading
        if tokens and order is not None:
            self._client.share(order.lease)
            self._loads[name] = order
            self._tally.found(len(order.blocks), *map(order.among, tracked.brought))
            loaded = -(-tokens // self._engine.block_tokens)
            self._events.add(tracked.source, 0, tracked.local + loaded)

    def sources(self, name: str, tokens: int) -> dict[Any, int]:
        """Which tiers the load just ordered comes from, as `compat.hit_sources` says it.

        Args:
            name: the request's id.
            tokens: of the load.
        """
        each, (disk, peers) = self._engine.block_tokens, self._requests.brought(name)
        disk = min(tokens, disk * each)
        return compat.hit_sources(tokens, disk, min(tokens - disk, peers * each))

    def stats(self) -> Stats | None:
        """What was counted since the last step."""
        return self._tally.step(time.monotonic())

    def lost_sight(self) -> None:
        """Blocks were given to somebody, and we do not know which."""
        self._blind = True

    def begin_step(self) -> None:
        """A step is scheduled; `orders` or, should that fail, `emergency` has the workers' part."""
        self._steps.begin()

    def orders(self, output: Any) -> StepOrders:
        """Everything that this step brings, for the workers."""
        if time.monotonic() - self._polled_s > POLL_EVERY_S:
            self._spent_s = STEP_BUDGET_S
            self._collect()
            self._report()
        self._spent_s = 0.0
        preempted = tuple(getattr(output, "preempted_req_ids", None) or ())
        for name in preempted:
            self._release(self._requests.preempted(name))
        self._release(self._requests.stale(time.monotonic()))
        cold = self._stale and not (self._look.clean and self._look.number > self._looked)
        orders = self._outgoing()
        orders.preempted = preempted
        if self._blind:
            orders.dropped = self._requests.lose_sight()
        elif self._requests.loose:
            given = self._tables.given(output, self._allocated)
            orders.dropped = self._requests.reused(given)
        if self._grouped:
            orders.late = tuple(self._grouped.late(orders.dropped))
            self._note(orders.late)
        orders.saves = () if self._off or cold else tuple(self._saves(output))
        orders.let_go = self._requests.relax(self._free())
        self._sent(orders)
        return orders

    def emergency(self) -> StepOrders:
        """After an error: no new work, but every promise is kept."""
        for name, order in self._loads.items():
            if isinstance(order, LoadOrder):
                self._loads[name] = order.blocks
                self._release([order.lease])
        orders = self._outgoing()
        if self._grouped:
            self._grouped.drop_late()
        orders.dropped = self._requests.lose_sight()
        self._sent(orders)
        return orders

    def _outgoing(self) -> StepOrders:
        return StepOrders(
            namespace=self._engine.space.final,
            engine=self._engine.generation(0),
            epoch=self._epoch,
            loads=tuple(o for o in self._loads.values() if isinstance(o, LoadOrder)),
            held=tuple(self._held),
            abandoned=tuple((n, o) for n, o in self._loads.items() if not isinstance(o, LoadOrder)),
            look=self._look,
        )

    def _sent(self, orders: StepOrders) -> None:
        orders.arrive()
        self._loads, self._held, self._allocated, self._blind = {}, [], {}, False
        self._tables.local.clear()

    def _saves(self, output: Any) -> list[SaveOrder]:
        scheduled: Mapping[str, int] = output.num_scheduled_tokens
        states = self._tables.states(output) if self._grouped else {}
        orders: list[SaveOrder] = []
        for name, blocks, replaced, computed in self._tables.rows(output):
            tokens = scheduled.get(name, 0)
            orders += self._requests.stepped(name, blocks, replaced, computed, scheduled=tokens)
            if self._grouped and name in states:
                orders += self._grouped.states(name, states[name], computed + tokens)
        self._note(orders)
        return orders

    def _note(self, orders: Sequence[SaveOrder]) -> None:
        """These leave with the step."""
        savings = [self._requests.saving(order) for order in orders]
        self._steps.ordered(savings)
        for saving in savings:
            self._tally.saving(saving.order, saving.request)
            last = saving.end // self._engine.block_tokens
            self._events.add(saving.request.source, saving.first, last)

    # what the workers report

    def output(self, output: Any) -> None:
        """Failures first: a load that ended may have failed."""
        bad = getattr(output, "invalid_block_ids", None)
        done = getattr(output, "kv_connector_worker_meta", None)
        if bad or getattr(output, "failed_recving", None) or getattr(done, "stale", 0):
            self._steps.void()
        if bad:
            self._requests.failed(bad)
        if self._grouped:
            self._grouped.refused(output.failed_recving)
        for name in output.finished_recving or ():
            self._requests.loaded(name)
        for order, ranks in getattr(done, "saves", {}).items():
            self._requests.saved(order, ranks)
        for name in output.finished_sending or ():
            self._requests.sent(name)
        if done is not None:
            self._looked = max(self._looked, done.looked)
            self._stale = self._stale & ~done.sound | done.stale
            if done.epoch > self._epoch:
                self._begin_epoch(done.epoch)

    def passed(self) -> list[Any]:
        """vLLM has taken in the output of the oldest step; what routers are to be told."""
        stands, void = self._steps.passed()
        if stands:
            self._client.commit(stands)
        for saving in void:
            self._client.skip_save(saving.order)
            self._requests.void(saving.request, saving.first)
        return self._events.take(self._pool)

    def finished(self, request: Any, blocks: Sequence[Sequence[int]]) -> bool:
        """The request ended, with these blocks of each group; whether they must wait for saves."""
        name = request.request_id
        try:
            if self._grouped and not (self._off or self._stale):
                self._grouped.ends(name, blocks, compat.processed_tokens(request))
            held, leases = self._requests.finished(name, self._free())
        except Exception:
            self._release(self._requests.finished(name, sys.maxsize)[1])
            raise
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
        self._events.lost()
        self._release(self._requests.clear_answers())
        self._client.reopen(epoch)
        self._early_until_s = FOR_EVER

    def close(self) -> None:
        """The engine stops."""
        self._client.close()


def _no_keys(adapter: str, why: str) -> None:
    compat.logger().warning(
        "pegaflow: requests with the adapter %r are neither read nor saved: %s", adapter, why
    )
