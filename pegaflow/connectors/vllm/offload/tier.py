"""`PegaTier`: what vLLM's own offloading loads as a tier below its host memory.

vLLM calls it in the scheduler's thread, and a call that raises or waits is the engine's end or its
pause. So every method is `guarded`: what is thrown inside is logged, and the caller gets the answer
of a tier that has nothing. Copies and messages are the carrier's. A job that vLLM has submitted is
reported exactly once, whatever happens to the service or to us.

vLLM's memory is registered whole: chunk c is block c.

The weights cannot be seen from here. So the tier believes in two signs that they may be others:

    a reset of vLLM's cache     it goes on under a namespace that nobody else can have
    a call of the workers       (`contract.watch`) nothing is found or saved until a reset; if the
                                engine has done no step since the last one, as after a reset

In between vLLM's own caches hold blocks of the old weights, and what is computed on top of those
belongs to no weights.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import numpy as np

from pegaflow.client import Client
from pegaflow.connectors.common.hints import NO_HINTS, Hints, hints
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.units import Seconds

from .. import compat
from ..connector import LOG_EVERY_S, MAX_ERRORS
from ..mover import LET_GO_S, LOAD_TIMEOUT_S
from . import contract
from .carrier import Carrier, Fetch, Forget, Renew, Run, Store
from .contract import JobResult, LookupResult
from .identity import Tenant, tenant
from .told import Look, Told
from .verdicts import Ask, Verdicts

DRAIN_S: Seconds = LOAD_TIMEOUT_S + LET_GO_S
"""What vLLM waits for at a reset has ended by then: a load at its deadline, or by the death of the
session that was writing; a save is dropped at once."""

_KEPT: list[Any] = []
"""Memory into which the service may still write, at the end of an engine: it stays mapped."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


def guarded(answer: Callable[[], Any]) -> Callable[[_Method], _Method]:
    """A method that never raises: on an error, `answer()` is returned instead."""

    def wrap(method: _Method) -> _Method:
        @functools.wraps(method)
        def run(self: "PegaTier", *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self._note(method.__name__, error)
            return answer()

        return cast(_Method, run)

    return wrap


class PegaTier(contract.TierBase):  # type: ignore[misc]
    """vLLM's SecondaryTierManager over a PegaFlow service.

    Args:
        offloading_spec: of the connector; its `config` says how chunks are made.
        primary_kv_view: vLLM's host memory, one row for each chunk.
        tier_type: what the user calls this tier.
        backpressure_detector: vLLM's, or None.
        locality: of vLLM's tiers; this one is always local.
        enable_kv_events: routers are told which chunks the pool has, where vLLM publishes events.
        options: the `pegaflow.*` keys of the connector, with or without that beginning.
    """

    medium: ClassVar[Any] = contract.Medium.CPU

    def __init__(
        self,
        *,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        locality: str | None = None,
        enable_kv_events: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            offloading_spec=offloading_spec,
            primary_kv_view=primary_kv_view,
            tier_type=tier_type,
            backpressure_detector=backpressure_detector,
        )
        self.locality = contract.Locality.LOCAL
        self._carrier: Carrier | None = None  # None: the tier is off
        self._tenant: Tenant | None = None
        self._verdicts = Verdicts(frozenset(), 0.0)
        self._jobs: dict[int, Fetch | Store] = {}  # submitted, not reported
        self._results: list[Any] = []  # to be reported
        self._parents: dict[str, dict[int, bytes]] = {}  # by request and group: the last key stored
        self._asked: dict[str, Hints] = {}  # by request, if anything is asked for it
        self._told: Told | None = None  # None: routers are told nothing
        self._worked = False  # the engine has done a step since vLLM's caches were empty
        self._stale = False  # they hold blocks of weights that may have been exchanged
        self._errors = 0
        self._logged: dict[str, float] = {}  # kind of line -> when one was logged last
        try:
            self._set_up(offloading_spec, primary_kv_view, options)
            if enable_kv_events:
                self._tell(offloading_spec)
        except Exception as error:
            self._note("start", error)

    def _set_up(self, spec: Any, view: memoryview, options: Mapping[str, Any]) -> None:
        made, lines = tenant(spec.config, options, *contract.calling_configs())
        for line in lines:
            compat.logger().warning("pegaflow: %s", line)
        if made is None:
            return
        compat.logger().info("pegaflow: tier %s, %s", made.name, made.space.describe())
        chunks, row_bytes = view.shape or (0, 0)
        memory = np.frombuffer(cast(Any, view.obj), np.uint8)
        if memory.nbytes != view.nbytes:
            raise ValueError(f"{view.nbytes} bytes of {memory.nbytes} are vLLM's host memory")
        rows = LayerLayout(region=0, offset=0, block_stride=row_bytes, segment_bytes=row_bytes)
        self._tenant, self._row_bytes = made, row_bytes
        windows = (
            group.group_id
            for group in spec.config.groups
            if group.sliding_window_size_in_chunks is not None
        )
        self._verdicts = Verdicts(frozenset(windows), made.settings.timeout_s)
        layout = Layout(chunks, (rows,), "uint8", "vllm offload chunk")
        self._carrier = Carrier(self._maker(made, os.urandom(16), fresh=True), layout, memory)
        self._carrier.start()
        core = contract.calling_core()
        if core is None:
            compat.logger().warning("pegaflow: tier: other weights are noticed at resets only")
        else:
            contract.watch(core, self._exchanged)

    def _tell(self, spec: Any) -> None:
        if not spec.kv_events_config.enable_kv_cache_events:
            line = "pegaflow: tier: enable_kv_events has no effect: vLLM publishes no KV events"
            compat.logger().warning(line)
        elif self._tenant is not None and self._tenant.settings.loads:
            self._told = Told(self.tier_type, self.locality)

    def _maker(self, made: Tenant, generation: bytes, fresh: bool) -> Callable[[], Client]:
        space = made.space if fresh else made.space_of(generation)
        return lambda: Client(
            made.name,
            space.base,
            probe=space.probe,
            generation=generation,
            endpoint=made.settings.endpoint,
            curve=made.settings.curve,
            owner=made.settings.owner,
            way=made.settings.way,
        )

    def _is_due(self, line: str) -> bool:
        """Whether a line of this kind may be logged again."""
        now_s = time.monotonic()
        due = now_s - self._logged.get(line, float("-inf")) >= LOG_EVERY_S
        if due:
            self._logged[line] = now_s
        return due

    def _note_ignored(self, request: str, ignored: str) -> None:
        if self._is_due("of what is asked"):
            line = "pegaflow: tier: of what request %s asks: %s"
            compat.logger().warning(line, request, ignored)

    def _note(self, where: str, error: Exception) -> None:
        self._errors += 1
        if self._is_due(where):
            log = compat.logger()
            log.error("pegaflow: tier: %s failed: %r", where, error, exc_info=error)
        if self._errors == MAX_ERRORS:
            compat.logger().error("pegaflow: tier: off after %d errors", MAX_ERRORS)

    @property
    def _serving(self) -> Carrier | None:
        """The carrier, if there is a use in giving it work."""
        carrier = self._carrier
        usable = carrier is not None and carrier.attached and self._errors < MAX_ERRORS
        return carrier if usable and not self._stale else None

    # what vLLM asks

    @guarded(lambda: LookupResult.MISS)
    def lookup(self, key: bytes, req_context: Any) -> Any:
        """Whether a chunk is there; RETRY in the steps until that is known."""
        if self._serving is None or self._tenant is None or not self._tenant.settings.loads:
            return LookupResult.MISS
        if self._asked.get(req_context.req_id, NO_HINTS).skip_load:
            return LookupResult.MISS
        self._collect()
        place = req_context.get_offload_key_position(key) or 0
        found = self._verdicts.of(req_context.req_id, bytes(key), place, now_s=time.monotonic())
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    @guarded(lambda: None)
    def submit_load(self, job_metadata: Any) -> None:
        """Bring chunks into vLLM's memory."""
        until_s = time.monotonic() + LOAD_TIMEOUT_S
        number = int(job_metadata.job_id)
        request = job_metadata.req_context.req_id
        self._submit(number, lambda: Fetch(number, request, _runs(job_metadata, {}), until_s))

    @guarded(lambda: None)
    def submit_store(self, job_metadata: Any) -> None:
        """Save chunks of vLLM's memory."""
        number, request = int(job_metadata.job_id), job_metadata.req_context.req_id
        skipped = self._asked.get(request, NO_HINTS).skip_save
        if skipped or (self._tenant is not None and not self._tenant.settings.saves):
            self._results.append(JobResult(number, True, transfer_bytes=0))
            return
        parents = self._parents.setdefault(request, {})
        self._submit(number, lambda: Store(number, _runs(job_metadata, parents)))

    def _submit(self, number: int, make: Callable[[], Fetch | Store]) -> None:
        """Hand a job over; whatever fails, it has a result."""
        carrier = self._serving
        try:
            if carrier is not None:
                job = make()
                self._jobs[number] = job
                carrier.submit(job)
                return
        except Exception as error:
            self._note("submit", error)
            self._jobs.pop(number, None)
        self._results.append(JobResult(number, False))

    @guarded(tuple)
    def get_finished_jobs(self) -> Iterable[Any]:
        """What has ended since the last call."""
        self._collect()
        ended, self._results = self._results, []
        return ended

    def _collect(self) -> None:
        """Take in what the carrier has done."""
        carrier = self._carrier
        while carrier is not None and carrier.done:
            job = carrier.done.popleft()
            if isinstance(job, Ask):
                self._verdicts.answered(job)
            elif isinstance(job, Look):
                if self._told is not None:
                    self._told.looked(job, time.monotonic())
            elif self._jobs.pop(job.number, None) is job:
                self._report(job)

    def _report(self, job: Fetch | Store) -> None:
        try:
            self._results.append(self._result(job))
        except Exception as error:
            self._note("result", error)
            self._results.append(JobResult(job.number, False))

    def _result(self, job: Fetch | Store) -> Any:
        keys = [key for run in job.runs for key in run.keys]
        took_s = time.monotonic() - job.begun_s if job.begun_s else None
        if isinstance(job, Store):
            moved = job.saved * self._row_bytes
            whole = job.there == len(keys)
            if self._told is not None and job.there and not self._stale:
                self._told.stored(keys, job.saved == len(keys), time.monotonic())
            return JobResult(job.number, whole, transfer_time=took_s, transfer_bytes=moved)
        missing = [key for key in keys if key not in job.loaded]
        self._verdicts.missed(job.request, missing)
        return JobResult(
            job.number,
            not missing,
            tuple(key for key in keys if key in job.loaded) or None if missing else None,
            transfer_time=took_s,
            transfer_bytes=len(job.loaded) * self._row_bytes,
        )

    @guarded(tuple)
    def take_events(self) -> Iterable[Any]:
        """What routers are to be told. vLLM asks for each step."""
        told, self._told = self._told, None  # for good, should this fail
        if told is None:
            return ()
        if self._errors >= MAX_ERRORS or self._carrier is None:
            told.lost()
        elif (look := told.look(time.monotonic())) is not None:
            self._carrier.submit(look)
        self._told = told
        return told.take()

    # what vLLM tells

    @guarded(contract.RequestOffloadingContext)
    def on_new_request(self, req_context: Any) -> Any:
        """Nothing is wished for: chunks are saved as they are computed. What is asked for the
        request is kept."""
        asked, ignored = hints(*compat.said(req_context), NO_HINTS)
        if ignored:
            self._note_ignored(req_context.req_id, ignored)
        if asked != NO_HINTS:
            self._asked[req_context.req_id] = asked
        return contract.RequestOffloadingContext()

    @guarded(lambda: None)
    def on_request_finished(self, req_context: Any) -> None:
        """No more calls for this request."""
        self._parents.pop(req_context.req_id, None)
        self._asked.pop(req_context.req_id, None)
        self._forget([req_context.req_id])

    @guarded(lambda: None)
    def on_schedule_end(self, context: Any) -> None:
        """A step is scheduled: what was asked in it goes out. Who is scheduled will ask no more,
        and who is preempted asks anew."""
        self._worked = True
        asked = self._verdicts.questions(time.monotonic())
        if asked and self._carrier is not None:
            self._carrier.submit(*asked)
        self._forget([*context.new_req_ids, *context.preempted_req_ids])

    def _forget(self, requests: Iterable[str]) -> None:
        asks = [ask for request in requests for ask in self._verdicts.forget(request)]
        if asks and self._carrier is not None:
            self._carrier.submit(Forget(asks))

    @guarded(lambda: None)
    def drain_jobs(self) -> None:
        """vLLM resets its cache: end every job, then go on under another namespace."""
        carrier = self._carrier
        if carrier is None:
            return
        try:
            self._drain(carrier, time.monotonic() + DRAIN_S)
        finally:
            self._verdicts.forget_all()
            self._parents.clear()
            self._tell_lost()
            self._stale = self._worked = False
            self._renew(carrier)

    @guarded(lambda: None)
    def _exchanged(self) -> None:
        """The workers' weights may be others from now on."""
        if self._worked and not self._stale:
            self._stale = True
            self._tell_lost()
            compat.logger().warning(
                "pegaflow: tier: weights may have been exchanged; nothing is found or saved until"
                " vLLM's caches are reset (reset_prefix_cache with reset_connector)"
            )
        elif not self._worked and self._carrier is not None:
            self._renew(self._carrier)

    def _tell_lost(self) -> None:
        if self._told is not None:
            self._told.lost()

    def _renew(self, carrier: Carrier) -> None:
        made = self._tenant
        if made is not None:
            carrier.submit(Renew(self._maker(made, os.urandom(16), fresh=False)))

    def _drain(self, carrier: Carrier, until_s: float) -> None:
        carrier.drop([job for job in self._jobs.values() if isinstance(job, Store)])
        while True:
            carrier.news.clear()
            self._collect()
            if not self._jobs:
                return
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            carrier.news.wait(left_s)
        compat.logger().error("pegaflow: tier: off: %d jobs do not end", len(self._jobs))
        self._errors = max(self._errors, MAX_ERRORS)
        while self._jobs:
            self._report(self._jobs.popitem()[1])

    @guarded(lambda: None)
    def shutdown(self) -> None:
        """The engine stops, and unmaps its memory unless somebody holds on to it."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None and not carrier.stop(2 * LET_GO_S):
            _KEPT.append(carrier.memory)


def _runs(job: Any, parents: dict[int, bytes]) -> list[Run]:
    """A job's keys and chunks, by KV cache group.

    Args:
        parents: by group, the key before the first; the last key afterwards.
    """
    groups: dict[int, tuple[list[bytes], list[int]]] = {}
    for key, chunk in zip(job.keys, job.chunk_ids, strict=True):
        keys, chunks = groups.setdefault(contract.group_of(key), ([], []))
        keys.append(bytes(key))
        chunks.append(int(chunk))
    made = []
    for group, (keys, chunks) in groups.items():
        made.append(Run(keys, chunks, parents.get(group, b"")))
        parents[group] = keys[-1]
    return made
