"""`PegaKVConnector`: what vLLM loads. Two halves behind one boundary.

vLLM makes one connector in its scheduler and one in each worker; `Scheduler` and `Worker` do the
work. This file adds what both need: the boundary that nothing passes. An exception out of a
connector kills the engine, and a promise that is not kept hangs a request for ever. So every method
is `guarded`: what is thrown inside is logged (once per kind and minute), and the caller gets the
answer of a cache that has nothing. After MAX_ERRORS errors the scheduler half looks up and orders
nothing more; loads and held requests already under way are still reported.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from pegaflow.wire.units import Count, Seconds

from . import compat, kvgroups, plugin
from .metrics import Metrics, Stats, stats
from .orders import StepOrders
from .scheduler import Scheduler
from .settings import engine
from .worker import Worker

MAX_ERRORS: Count = 10
"""Errors before nothing new is taken on: a fault that comes back will not go away by itself."""

LOG_EVERY_S: Seconds = 60.0
"""One line per kind of error in this time."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


def guarded(answer: Callable[[Any], Any], *, work: bool = False) -> Callable[[_Method], _Method]:
    """A method that never raises: on an error, `answer(self)` is returned instead.

    Args:
        answer: makes the safe answer; it may keep promises, and is itself guarded.
        work: whether the method takes on new work, so that it is skipped after MAX_ERRORS.
    """

    def wrap(method: _Method) -> _Method:
        @functools.wraps(method)
        def run(self: "PegaKVConnector", *args: Any, **kwargs: Any) -> Any:
            if self._off or (work and self._errors >= MAX_ERRORS):
                return answer(_NO_HALVES)
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self._note(method.__name__, error)
            try:
                return answer(self)
            except Exception as error:
                self._note(f"{method.__name__} (safe answer)", error)
                return answer(_NO_HALVES)

        return cast(_Method, run)

    return wrap


class _NoHalves:
    """What a safe answer finds where there is no scheduler and no worker half."""

    _scheduler: Scheduler | None = None
    _worker: Worker | None = None
    _orders: StepOrders | None = None


_NO_HALVES = _NoHalves()

_Halves: TypeAlias = "PegaKVConnector | _NoHalves"


def _nothing(_: Any) -> None:
    return None


def _emergency(self: "_Halves") -> StepOrders:
    return self._scheduler.emergency() if self._scheduler else StepOrders()


def _lost_sight(self: "_Halves") -> None:
    if self._scheduler:
        self._scheduler.lost_sight()


def _let_go(self: "_Halves") -> tuple[bool, None]:
    _lost_sight(self)
    return False, None


def _drop_all(self: "_Halves") -> None:
    if self._worker:
        self._worker.drop_all()


def _report_unbegun(self: "_Halves") -> None:
    if self._worker:
        self._worker.report_unbegun(self._orders)


class PegaKVConnector(compat.ConnectorBase, compat.SupportsHMA):  # type: ignore[misc]
    """vLLM's KVConnectorBase_V1 over a PegaFlow service.

    SupportsHMA is what lets the engine of a hybrid model start at all. A model that cannot be
    served (compat.unsupported, kvgroups.unsupported) gets a connector that is off.
    """

    def __init__(
        self, vllm_config: Any, role: Any, kv_cache_config: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._scheduler: Scheduler | None = None  # present in the scheduler's connector
        self._worker: Worker | None = None  # present in a worker's connector
        self._off = True  # nothing is done at all: the engine cannot be served
        self._errors = 0  # caught at the boundary
        self._logged: dict[tuple[str, str], float] = {}  # (method, kind) -> when last logged
        try:
            self._set_up(vllm_config, role, kv_cache_config)
        except Exception as error:
            self._note("start", error)
            if not compat.is_scheduler(role):
                self._keep_promises(vllm_config, kv_cache_config, "")

    def _set_up(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        log = compat.logger()
        why = compat.unsupported(vllm_config, kv_cache_config) or kvgroups.unsupported(
            vllm_config, kv_cache_config
        )
        if why:
            if compat.is_scheduler(role):
                log.warning("pegaflow: off: %s", why)
            else:
                self._keep_promises(vllm_config, kv_cache_config, why)
            return
        made, warnings = engine(vllm_config, kv_cache_config)
        if compat.is_scheduler(role):
            for line in warnings:
                log.warning("pegaflow: %s", line)
            log.info("pegaflow: engine %s, %s", made.name, made.space.describe())
            self._scheduler = Scheduler(made)
        else:
            blocks = int(compat.attribute(kv_cache_config, "num_blocks", 0))
            order, grouped = compat.layout_name(kv_cache_config), kvgroups.layers(kv_cache_config)
            whole = kvgroups.are_several(kv_cache_config)
            self._worker = Worker(made, order, blocks, rank=made.rank, grouped=grouped, whole=whole)
        self._off = False

    def _keep_promises(self, vllm_config: Any, kv_cache_config: Any, why: str) -> None:
        """A worker that moves nothing, and reports whatever it is told to do: other ranks may be
        served, and the scheduler, which is told less of the layers, may find that it can serve."""
        whole = kvgroups.are_several(kv_cache_config)
        rank = compat.rank(vllm_config)
        self._worker = Worker(None, rank=rank, whole=whole, why=why)
        self._off = False

    def _note(self, where: str, error: Exception) -> None:
        self._errors += 1
        kind, now_s = (where, type(error).__name__), time.monotonic()
        if now_s - self._logged.get(kind, float("-inf")) >= LOG_EVERY_S:
            self._logged[kind] = now_s
            log = compat.logger()
            log.error("pegaflow: %s failed, the engine goes on: %r", where, error, exc_info=error)
        if self._errors == MAX_ERRORS:
            compat.logger().error("pegaflow: off after %d errors", MAX_ERRORS)

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """None is required. It is the first that vLLM asks, with its configuration, of us."""
        try:
            compat.withdraw(vllm_config)
        except Exception as error:
            compat.logger().error("pegaflow: the engine may not start: %r", error)
        return None

    @property
    def _orders(self) -> StepOrders | None:
        """This step's orders, while vLLM has them bound."""
        bound = self._connector_metadata
        return bound if isinstance(bound, StepOrders) else None

    @property
    def requires_kv_delivery(self) -> bool:
        """A dropped save is a future miss, nothing more."""
        return False

    # both halves

    @guarded(_nothing)
    def get_kv_connector_stats(self) -> Stats | None:
        """What this half has counted since the last step."""
        if self._scheduler:
            return self._scheduler.stats()
        return self._worker.tally.take() if self._worker else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        """The same from its plain values, in another process."""
        return stats(data)

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> Metrics | None:
        """What shows it on vLLM's /metrics."""
        try:
            return Metrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        except Exception as error:
            compat.logger().error("pegaflow: no metrics: %r", error)
            return None

    # scheduler half

    @guarded(_nothing, work=True)
    def on_new_request(self, request: Any) -> None:
        """A request arrived."""
        if self._scheduler:
            self._scheduler.new_request(request)

    @guarded(lambda _: (0, False), work=True)
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """(tokens the cache has beyond those, or None for "later"; always asynchronous)."""
        assert self._scheduler is not None
        return self._scheduler.matched(request, num_computed_tokens)

    @guarded(_nothing)
    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """vLLM's pool of blocks."""
        if self._scheduler:
            self._scheduler.bind_pool(gpu_block_pool)

    @guarded(_lost_sight)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has its blocks."""
        if self._scheduler:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    @guarded(_emergency)
    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """This step's orders."""
        assert self._scheduler is not None
        self._scheduler.begin_step()
        if self._errors >= MAX_ERRORS:
            return self._scheduler.emergency()
        return self._scheduler.orders(scheduler_output)

    @guarded(_nothing)
    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers reported."""
        if self._scheduler:
            self._scheduler.output(connector_output)

    @guarded(lambda _: ())
    def take_events(self) -> Sequence[Any]:
        """What routers are to be told. vLLM asks for each step, when it has taken in its output."""
        return self._scheduler.passed() if self._scheduler else ()

    @guarded(_let_go)
    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """`request_finished_all_groups`, of a vLLM without its hybrid manager."""
        return self._finished(request, (block_ids,))

    @guarded(_let_go)
    def request_finished_all_groups(
        self, request: Any, block_ids: Any
    ) -> tuple[bool, dict[str, Any] | None]:
        """Whether the request's blocks must wait for its saves."""
        return self._finished(request, block_ids)

    def _finished(self, request: Any, blocks: Any) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        return self._scheduler.finished(request, blocks), None

    @guarded(lambda _: {})
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        """Which tiers the load just ordered comes from."""
        if not self._scheduler:
            return {}
        return self._scheduler.sources(request.request_id, num_external_tokens)

    @guarded(lambda _: False)
    def reset_cache(self) -> bool | None:
        """The weights may have changed."""
        return self._scheduler.reset() if self._scheduler else None

    # worker half

    @guarded(_nothing)
    def register_kv_caches(self, kv_caches: Any) -> None:
        """The engine's KV memory."""
        if self._worker:
            self._worker.register(kv_caches, compat.calling_models())

    @guarded(_nothing)
    def unregister_kv_caches(self) -> None:
        """The engine is about to free its KV memory (sleep mode)."""
        if self._worker:
            self._worker.unregister()

    @guarded(_nothing)
    def restore_kv_caches(self) -> None:
        """The KV memory is back, at the same place."""
        if self._worker:
            self._worker.restore()

    @guarded(_drop_all)
    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Blocks are about to be overwritten."""
        if self._worker and isinstance(kv_connector_metadata, StepOrders):
            self._worker.preempted(kv_connector_metadata)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        """A step begins; not every version has said `handle_preemptions` before."""
        super().bind_connector_metadata(connector_metadata)
        self.handle_preemptions(connector_metadata)

    @guarded(_report_unbegun)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Once per step, before or after the forward pass."""
        if self._worker and self._orders:
            self._worker.begin(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All loads are asynchronous: nothing to wait for."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Blocks are saved whole after the forward pass."""

    @guarded(_nothing)
    def wait_for_save(self) -> None:
        """The forward pass is over; hands the step's saves to the mover and does not wait."""
        if self._worker and self._orders:
            self._worker.save(self._orders)

    @guarded(lambda _: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """(held requests that are saved, requests that are loaded)"""
        if not self._worker:
            return None, None
        sent, received = self._worker.finished(self._orders)
        return sent or None, received or None

    @guarded(lambda _: compat.transfer_results((), (), ()))
    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """`get_finished`, and which of the loaded requests have failed as a whole."""
        sent, received = self.get_finished(finished_req_ids)
        failed = self._worker.failed() if self._worker else ()
        return compat.transfer_results(sent or (), received or (), failed)

    @guarded(lambda _: set())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of this step's received requests that could not be loaded."""
        return self._worker.errors() if self._worker else set()

    @guarded(_nothing)
    def build_connector_worker_meta(self) -> Any:
        """Which saves are over."""
        return self._worker.report() if self._worker else None

    @guarded(_nothing)
    def shutdown(self) -> None:
        """The engine stops."""
        if self._scheduler:
            self._scheduler.close()
        if self._worker:
            self._worker.close()


if compat.INSTALLED:  # it looks the child of a MultiConnector up by its registered name
    plugin.register()
