"""What is shown of the engines: their questions, loads and saves, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator

from pegaflow.core.series import LOAD, RPC, Buckets
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, SESSION, SUPERVISOR

from .shown import Shown
from .view import Sample, View

REASONS = (
    *(Status.NO_SPACE, Status.TOO_LARGE, Status.DROPPED, Status.EXPIRED, Status.PEER_GONE),
    *(Status.BUSY, Status.NOT_ATTACHED, Status.COPY_FAILED, Status.STALE_CLAIM),
    Status.BAD_REQUEST,
)
"""Why blocks of a save are not published: shown from the start, each at 0."""


def _rpc(view: View) -> dict[tuple[str, ...], Buckets]:
    """Questions by kind and outcome; no kind is answered by two kinds of actors."""
    return {**view.histogram(SESSION, RPC), **view.histogram(SUPERVISOR, RPC)}


def _requests(view: View) -> Iterator[Sample]:
    for labels, buckets in sorted(_rpc(view).items()):
        yield labels, buckets.count


def _saves(view: View) -> dict[tuple[str, ...], Buckets]:
    """Saves that ended well: a save is one question, from its keys to Saved."""
    found = view.histogram(SESSION, RPC).get(("save", Status.OK.label))
    return {(): found or RPC.empty()}


def _lookups(view: View) -> Iterator[Sample]:
    yield ("client",), view.total(SESSION, "lookups_client")
    yield ("session",), view.total(SESSION, "lookups_local")
    yield ("index",), view.total(SESSION, "lookups_by_message")


def _dropped(view: View) -> Iterator[Sample]:
    found = {reason.label: 0 for reason in REASONS}
    for (reason,), blocks in view.labelled(SESSION, "save_blocks_dropped").items():
        found[reason] = blocks
    for reason, blocks in found.items():
        yield (reason,), blocks


ENGINE_METRICS = (
    Shown(
        "pegaflow_rpc_requests_total",
        "session, supervisor",
        "Questions of engines and of the command line that were answered, by kind and outcome.",
        _requests,
        labels=("method", "status"),
    ),
    Shown(
        "pegaflow_rpc_duration_seconds",
        "session, supervisor",
        "Time from such a question to its answer; a save is answered when its blocks are visible, "
        "an open_session when there is a session.",
        _rpc,
        labels=("method", "status"),
        histogram=True,
    ),
    Shown(
        "pegaflow_lookups_total",
        SESSION,
        "Lookups of engines by who has answered them: the engine's client by itself, from shared "
        "memory, its session likewise, or the index, which that has asked.",
        _lookups,
        labels=("by",),
    ),
    Shown(
        "pegaflow_save_duration_seconds",
        SESSION,
        "Time from an engine's question for a save to its end, of each save that ended well.",
        _saves,
        histogram=True,
    ),
    Shown(
        "pegaflow_load_duration_seconds",
        SESSION,
        "Time from an engine's question to the end of its copy, of each load that succeeded.",
        lambda v: v.histogram(SESSION, LOAD),
        histogram=True,
    ),
    Shown(
        "pegaflow_save_dropped_blocks_total",
        SESSION,
        "Blocks that engines wanted to save and that were not published, by reason.",
        _dropped,
        labels=("reason",),
    ),
    Shown(
        "pegaflow_inflight_gc_cleaned_total",
        SESSION,
        "Blocks of saves that not every rank of an engine had saved in time; also counted as "
        "dropped, with the reason `expired`.",
        lambda v: v.labelled(SESSION, "save_blocks_dropped").get((Status.EXPIRED.label,), 0),
    ),
    Shown(
        "pegaflow_leases",
        "index, session",
        "Leases on blocks that engines hold.",
        lambda v: v.gauge(INDEX, "leases") + v.gauge(SESSION, "session_leases_own"),
    ),
    Shown(
        "pegaflow_engines",
        SUPERVISOR,
        "Engines with a session.",
        lambda v: sum(bool(p.engine) for p in v.processes),
    ),
    Shown(
        "pegaflow_engines_waiting",
        SUPERVISOR,
        "Engines that wait for a session.",
        lambda v: v.gauge(SUPERVISOR, "opens_waiting"),
    ),
    Shown(
        "pegaflow_engine_leases",
        SESSION,
        "Leases of each engine, by its seat; `pegaflow status` says who has which.",
        lambda v: v.by_seat("session_leases"),
        labels=("seat",),
    ),
    Shown(
        "pegaflow_engine_leased_bytes",
        SESSION,
        "Bytes of the pool that the leases of each engine keep from eviction, each block counted "
        "once.",
        lambda v: v.by_seat("session_pinned_bytes"),
        labels=("seat",),
    ),
    Shown(
        "pegaflow_engine_pins_too_much",
        SESSION,
        "1 for each engine that asks for more than --max-pinned lets it hold by leases.",
        lambda v: v.by_seat("session_greedy"),
        labels=("seat",),
    ),
    Shown(
        "pegaflow_pinned_bytes",
        INDEX,
        "Bytes of the pool that leases keep from eviction: those of the index, each block counted "
        "once, and those that sessions keep by hazards, each block counted once.",
        lambda v: v.gauge(INDEX, "pinned_bytes", "hazard_pinned_bytes"),
    ),
    Shown(
        "pegaflow_unpinned_blocks_total",
        "index, session",
        "Blocks that lookups found and did not get: the engine, or all together, held too much.",
        lambda v: v.total(INDEX, "blocks_unpinned") + v.total(SESSION, "blocks_unpinned"),
    ),
    Shown(
        "pegaflow_hazard_files",
        INDEX,
        "Sessions whose hazards are read before anything is evicted: they find what is in memory "
        "without asking the index.",
        lambda v: v.gauge(INDEX, "hazard_files"),
    ),
    Shown(
        "pegaflow_evictions_turned_back_total",
        INDEX,
        "Blocks that were to be evicted and stayed, since a session was using them.",
        lambda v: v.total(INDEX, "evictions_turned_back"),
    ),
    Shown(
        "pegaflow_engine_inflight_bytes",
        SESSION,
        "Bytes of pages that each engine's session holds for saves, its spare pages included.",
        lambda v: v.by_seat("session_held_bytes"),
        labels=("seat",),
    ),
    Shown(
        "pegaflow_loads_open",
        SESSION,
        "Loads under way.",
        lambda v: v.gauge(SESSION, "session_loads_open"),
    ),
    Shown(
        "pegaflow_saves_open",
        SESSION,
        "Saves under way.",
        lambda v: v.gauge(SESSION, "session_saves_open"),
    ),
)
