"""The worker half: carries out a step's orders through the `Mover`, and reports what became of
them.

Every method runs in the engine's thread and only moves entries between lists. Its promises to vLLM:

- Every load is reported exactly once, as received; failed blocks are named in the same step. This
  holds without a Mover (the KV memory cannot be described, or is given up), after its death, and
  for abandoned loads. It is not reported while a session may still write into its blocks.
- Every held request is reported exactly once, as sent, as soon as no save of it is open or the
  scheduler lets it go. After HOLD_S its saves are dropped, so that nothing is held for longer.
- Blocks that somebody else will write are not saved any more once a step's orders are in this
  process (orders.py); not every model runner calls `preempted` before it writes them.

Results are collected once per step, at its first call, so that all its reports agree with each
other.

Of an engine with several ranks each makes these reports by itself. vLLM waits until all of them
have reported a request as received or sent, adds their failed blocks up, and computes again from
the first one that any rank names. A block is published only when every rank has saved its part, or
one of those has that hold the same bytes, and the scheduler has committed its order: never that of
a step in which any rank reports errors (steps.py).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pegaflow.client import Client, GpuBuffers
from pegaflow.connectors.common.tracked import LoadOrder, SaveOrder
from pegaflow.wire.layout import Layout
from pegaflow.wire.units import Seconds

from . import compat, gpu
from .contents import described
from .identity import in_memory
from .layout import Unrepresentable, sound_plan
from .memory import buffers, tensors, weights_of
from .metrics import Tally
from .mover import LET_GO_S, LOAD_TIMEOUT_S, Load, Mover, Reset, Save, Skip
from .orders import SavesDone, StepOrders, Taken
from .settings import Engine
from .watch import Seen, Watch

HOLD_S: Seconds = 2.0
"""Longest hold of a finished request's blocks: a save takes milliseconds, and whoever waits for the
memory so long has more use of it than a later request has of the blocks."""

DEAD_LOAD_S: Seconds = 5.0
"""A load of a dead Mover that could not even have the session give the memory up is reported failed
this much later: the client's end is the session's, which by then has stopped or is killed."""

GIVE_WAY_S: Seconds = 0.001
"""A step sleeps so long while a load is past its deadline.  The Mover and the session end it within
milliseconds if they run at all, and an engine that waits for it spins: its ranks pass empty steps
to each other, and a kernel may leave nobody else their cores for many seconds."""

FAREWELL_S: Seconds = LET_GO_S + 1.0
"""Before KV memory is freed, the Mover's goodbye is waited for so long: as long as it takes to part
from a session that hangs, and to stop what it is doing."""


class Worker:
    """See the module.

    Args:
        engine: None: there is none to be served, and nothing is moved; promises are kept.
        order: vLLM's own name of the order of axes in memory; '' where it has none.
        blocks: how many the engine has.
        rank: this worker's.
        grouped: which layers are in which group (kvgroups.layers).
        whole: vLLM hears of a load that has failed by the request's name, not by the blocks.
        why: there is no engine, in one line, which is said if the scheduler has one.
    """

    def __init__(
        self,
        engine: Engine | None,
        order: str = "",
        blocks: int = 0,
        *,
        rank: int,
        grouped: str = "",
        whole: bool,
        why: str = "",
    ) -> None:
        self._engine = engine  # None: there is none; nothing is moved, promises are kept
        self._why = why  # what is still to be said of that
        self._order = order
        self._grouped = grouped
        self._blocks = blocks  # how many the engine has
        self._rank = rank
        self._whole = whole
        self._memory: tuple[Layout, list[Any] | GpuBuffers] | None = None  # the Mover is given it
        self._export: Callable[..., gpu.Exported] | None = None  # of memory on a GPU: names it
        self._mark: Callable[[], None] = lambda: None  # before loads and saves are ordered (gpu.py)
        self._mover: Mover | None = None  # None: nothing can be moved
        self._asleep = False  # vLLM has taken the KV memory away
        self._again = False  # it is back, and the session has not let go of what it was before
        self._disagrees = False  # the scheduler has another namespace: nothing is moved any more
        self._dead_since_s: float | None = None  # when the Mover was found dead
        self._watch: Watch | None = None  # present once memory is registered
        self._told = (0, 0, 0)  # what the scheduler knows: look answered, epoch, stale
        self._orders: StepOrders | None = None  # of the step that runs, or ran last
        self._refusing = False  # this step's loads would bring KV of other weights
        self._taken = Taken(engine.generation(0) if engine else b"")
        self._loads: dict[str, Load] = {}  # not yet reported
        self._saves: dict[str, list[Save]] = {}  # open, by request; no empty lists
        self._held: dict[str, float] = {}  # request -> when its saves are dropped
        self._received: set[str] = set()  # to be reported in this step
        self._errors: set[int] = set()  # to be reported in this step
        self._failed: set[str] = set()  # to be reported in this step; those of `_received`
        self._ended: set[int] = set()  # save orders to be reported to the scheduler
        self.tally = Tally()

    def register(self, caches: Mapping[str, Any], models: Sequence[Any] = ()) -> None:
        """The engine's KV memory; from now on it is offered to the service.

        Args:
            caches: by layer, as vLLM registers them.
            models: those that compute it, for their weights; none: the weights are not known.
        """
        if self._engine is None:
            return
        groups = self._engine.groups
        overlaid = bool(groups.states or not groups.alike) if groups is not None else None
        try:
            given = described(tensors(caches), self._engine.config, self._order)
            planned = sound_plan(given, self._blocks, self._grouped, overlaid)
        except Unrepresentable as error:
            compat.logger().error("pegaflow: off: the KV memory cannot be described: %s", error)
            return
        if gpu.holds(caches):
            self._export = partial(gpu.exported, caches, planned.storages, planned.layout)
            self._memory = planned.layout, []  # named with each restore
        else:
            self._memory = planned.layout, buffers(caches, planned.storages)
        said, why = in_memory(self._engine.config)
        if why:
            compat.logger().warning("pegaflow: no other engine will find what is cached: %s", why)
        private = self._engine.private or why
        weights, whole = weights_of(models), not self._engine.divided_by
        self._watch = Watch(said, private, weights, self._engine.generation, whole=whole)
        self.restore()

    def unregister(self) -> None:
        """The engine frees its KV memory: it is left alone when this returns."""
        if self._mover is None:
            return
        self._asleep, self._again = True, False
        released = self._mover.stop(FAREWELL_S)
        self.drop_all()
        if released:
            self._part()
        else:
            compat.logger().error("pegaflow: off: the service has not let go of the KV memory")

    def restore(self) -> None:
        """The KV memory is there, for the first time or again."""
        mover, self._asleep = self._mover, False
        self._again = mover is not None and mover.stopping and not mover.released
        if mover is not None and mover.stopping and mover.released:
            self._part()
        if self._mover is None and self._memory is not None and self._engine is not None:
            self._dead_since_s = None
            if self._export is not None:  # what a driver called it before is freed by now
                on_gpu = self._export(self._engine.settings.backend)
                self._memory, self._mark = (self._memory[0], on_gpu.buffers), on_gpu.mark
            epoch = self._watch.epoch if self._watch else 0
            self._mover = Mover(self._engine, self._named(), self._memory[1], Client, epoch=epoch)
            self._mover.start()

    def _part(self) -> None:
        """Nobody touches the KV memory any more: what is still open has failed."""
        self._mover = None
        self._fail_loads()

    def _fail_loads(self) -> None:
        for name in list(self._loads):
            self._finish(name, self._loads.pop(name).order.blocks)

    def _named(self) -> Layout:
        """The layout of the registered memory, under the name of what is computed with."""
        assert self._memory is not None and self._watch is not None and self._engine is not None
        layout, ranks = self._memory[0], self._engine.divided_by
        divided = f" tp={ranks}" if ranks else ""
        return replace(layout, name=f"{layout.name} {self._watch.name()}{divided}")

    @property
    def _moves(self) -> bool:
        """Whether loads and saves can be started."""
        return self._mover is not None and not self._is_off

    @property
    def _is_off(self) -> bool:
        """Whether none can be, and will not be for now; not while the engine sleeps."""
        if self._mover.stopping if self._mover is not None else not self._asleep:
            return True
        return self._disagrees or (self._watch is not None and self._watch.stale)

    # a step, in vLLM's order

    def preempted(self, orders: StepOrders) -> None:
        """Blocks are about to be overwritten: of these requests or saves, or of any."""
        self._follow(orders)
        for name in orders.preempted:
            self._drop(name)
        if orders.dropped:
            for saves in list(self._saves.values()):
                self._drop_saves([s for s in saves if s.order.order in orders.dropped])
            self._ended.update(orders.dropped)  # those, too, of which a failed step has not told us
            self._taken.orders.difference_update(orders.dropped)

    def drop_all(self) -> None:
        """Any block may be about to be overwritten."""
        for name in list(self._saves):
            self._drop(name)

    def begin(self, orders: StepOrders) -> None:
        """Collect what has ended, and start this step's loads."""
        self._follow(orders)
        self._collect()
        for name, blocks in orders.abandoned:
            self._finish(name, blocks)
        for order in orders.loads:
            self._load(order)
        self._start(orders.late)

    def _follow(self, orders: StepOrders) -> None:
        """Go on under the scheduler's namespace."""
        if orders is self._orders:  # vLLM names a step's orders several times
            return
        self._orders = orders
        if self._engine is None and self._why and orders.namespace:
            compat.logger().error("pegaflow: off: %s", self._why)
            self._why = ""
        if self._engine is None or self._disagrees:
            return
        if orders.namespace != self._engine.space.final:
            compat.logger().error("pegaflow: off: scheduler and worker differ in their namespace")
            self._disagrees = True
            self.drop_all()
            if self._mover is not None:
                self._mover.stop(0.0)
        elif self._watch is not None:
            try:
                self._see(self._watch, orders)
            except Exception:  # nobody knows what is computed with
                self._disagrees = True
                self.drop_all()
                for load in self._loads.values():
                    load.spoiled = True
                raise

    def _see(self, watch: Watch, orders: StepOrders) -> None:
        """Whether the weights are still those of what was saved and is loaded."""
        was_stale = watch.stale
        seen = watch.see(orders.look, orders.epoch)
        self._refusing = orders.epoch < watch.epoch
        if seen is Seen.SAME or (was_stale and seen is Seen.STALE):
            return
        if seen is Seen.STALE:
            compat.logger().warning(
                "pegaflow: the weights were changed under blocks that vLLM's prefix cache still"
                " holds: nothing is read or saved until that cache has been reset"
            )
        self.drop_all()
        for load in self._loads.values():
            load.spoiled = True  # it brings KV of other weights
        if seen is Seen.MOVED and self._mover is not None:
            compat.logger().info("pegaflow: other weights: %s", watch.name())
            self._mover.submit(Reset(watch.epoch, self._named()))

    def _load(self, order: LoadOrder) -> None:
        if self._mover is None or not self._moves or self._refusing:
            self._finish(order.request, order.blocks)
            return
        self._mark()
        load = Load(order, time.monotonic() + LOAD_TIMEOUT_S)
        self._loads[order.request] = load
        self._mover.submit(load)

    def save(self, orders: StepOrders) -> None:
        """The step's KV is computed: start its saves, and note who waits for theirs."""
        self._start(orders.saves)

    def _start(self, orders: Sequence[SaveOrder]) -> None:
        if self._mover is None or not orders:
            self._ended.update(order.order for order in orders)
        elif self._moves:
            self._mark()
            saves = tuple(Save(order, self._taken.orders) for order in orders)
            for save in saves:
                self._saves.setdefault(save.order.request, []).append(save)
            self._mover.submit(saves)
        else:
            self._ended.update(order.order for order in orders)
            if not self._mover.dead:
                self._mover.submit(*(Skip(order.order) for order in orders))

    def finished(self, orders: StepOrders | None) -> tuple[set[str], set[str]]:
        """What has ended, each request once.

        Args:
            orders: of this step; None: there are none.

        Returns:
            Held requests whose saves are over, and requests whose load is over.
        """
        now_s = time.monotonic()
        if any(now_s >= load.until_s for load in self._loads.values()):
            time.sleep(GIVE_WAY_S)
        for name in orders.held if orders else ():
            self._held[name] = now_s + HOLD_S
        for name, until_s in self._held.items():
            if now_s >= until_s:
                self._drop(name)
        sent = {name for name in self._held if name not in self._saves}
        if orders:
            sent.update(self._held.keys() & orders.let_go)
        for name in sent:
            del self._held[name]
        received, self._received = self._received, set()
        return sent, received

    def errors(self) -> set[int]:
        """Engine blocks that this step's received requests do not have, where that is asked for."""
        errors, self._errors = self._errors, set()
        return set() if self._whole else errors

    def failed(self) -> set[str]:
        """Those of this step's received requests that have to be computed anew."""
        failed, self._failed = self._failed, set()
        return failed if self._whole else set()

    def report(self) -> SavesDone | None:
        """What the scheduler half should know; None: nothing new."""
        watch, asked = self._watch, self._orders.look.number if self._orders else 0
        epoch, bit = watch.epoch if watch else 0, 1 << self._rank
        stale = bit if self._is_off else 0
        if not self._ended and (asked, epoch, stale) == self._told:
            return None
        self._told, ended = (asked, epoch, stale), dict.fromkeys(self._ended, bit)
        self._ended.clear()
        return SavesDone(ended, looked=asked, epoch=epoch, stale=stale, sound=bit & ~stale)

    def report_unbegun(self, orders: StepOrders | None) -> None:
        """After an error in `begin`: loads it did not get to are reported failed, saves over."""
        if orders is None:
            return
        for name, blocks in (*orders.abandoned, *((o.request, o.blocks) for o in orders.loads)):
            if name not in self._loads and name not in self._received:
                self._finish(name, blocks)
        self._ended.update(order.order for order in orders.late)

    def close(self) -> None:
        """The engine stops, and with it its KV memory goes."""
        self.unregister()

    # inside

    def _collect(self) -> None:
        mover = self._mover
        while mover is not None and mover.done:
            job = mover.done.popleft()
            if isinstance(job, Save):
                self._count(job)
                self._end(job)
            elif self._loads.pop(job.order.request, None) is not None:
                failed = job.order.blocks if job.spoiled else job.failed
                self._finish(job.order.request, failed, job)
        if mover is not None and mover.stopping:
            self._give_up(mover)

    def _give_up(self, mover: Mover) -> None:
        """It will not report what is open."""
        now_s = time.monotonic()
        self.drop_all()
        if mover.dead and self._dead_since_s is None:
            self._dead_since_s = now_s
        lost = self._dead_since_s is not None and now_s >= self._dead_since_s + DEAD_LOAD_S
        if mover.released or lost:
            self._fail_loads()
        if mover.released and self._again:
            self.restore()

    def _finish(self, name: str, failed: Sequence[int], load: Load | None = None) -> None:
        self._received.add(name)
        self._errors.update(failed)
        if failed:
            self._failed.add(name)
            self.tally.count("load_failure")
        elif load is not None:
            self.tally.moved("load", load.took_s, len(load.order.blocks))

    def _count(self, save: Save) -> None:
        if save.missing:
            self.tally.count("save_failure")
        elif save.missing is not None:
            self.tally.moved("save", save.took_s, len(save.order.keys))

    def _drop(self, name: str) -> None:
        self._drop_saves(list(self._saves.get(name, ())))

    def _drop_saves(self, saves: Iterable[Save]) -> None:
        for save in saves:
            save.dropped = True
            self._end(save)

    def _end(self, save: Save) -> None:
        """A save is over, once: a dropped one is reported by the Mover again."""
        name = save.order.request
        saves = self._saves.get(name, [])
        if save not in saves:
            return
        saves.remove(save)
        if not saves:
            del self._saves[name]
        self._ended.add(save.order.order)
