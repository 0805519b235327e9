"""Our overrides beside what each vLLM declares (signatures.json), from 0.28 on.

`tests/connectors/vllm/real/test_versions.py` compares the record with the vLLM it runs in.
"""

import ast
import inspect
from typing import Any

import pytest

from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm.orders import SavesDone

from .fakes import Request, kv_cache_config, output, worker_output
from .signatures import record

RECORD = record()
OVERRIDES: dict[str, type] = {
    "KVConnectorBase_V1": PegaKVConnector,
    "SupportsHMA": PegaKVConnector,
    "KVConnectorWorkerMetadata": SavesDone,
}

LEFT = {
    "tells what vLLM keeps for us": """role clear_connector_metadata has_connector_metadata
        bind_kv_cache_manager""",
    "its default asks `get_finished`": "get_transfer_results",
    "its default counts every rank, each of which reports": "get_finished_count",
    "the KV memory is vLLM's own, as are copies to the host": """get_mem_pool_context
        set_host_xfer_buffer_ops""",
    "loads and saves do not run within the forward pass": """finish_forward reset_capture_state
        requires_piecewise_for_cudagraph""",
    "each layer is registered by itself": """register_cross_layers_kv_cache
        prefer_cross_layer_blocks""",
    "ranks meet in the service, not by themselves": """get_handshake_metadata
        set_xfer_handshake_metadata set_xfer_handshake_metadata_pp_aware""",
    "no event comes from a worker": "get_kv_connector_kv_cache_events",
    "several KV cache groups are off": """get_loaded_kv_cache_group_ids
        register_finished_partial_tail supports_divergent_local_hybrid_hits""",
    "no step is needed to publish, and blocks are held for moments": """has_pending_push_work
        has_pending_block_frees""",
    "its default is that we follow vLLM to sleep and back": "supports_sleep_mode",
}
"""Methods of vLLM whose default is right for us, under the reason why."""

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SINCE = {"failed_recving": "0.30", "hash_block_size": "0.32", "kv_hints": "0.31"}
"""What the stand-ins have and older versions do not; the connector reads it with a default."""


def known(version: str) -> dict[tuple[str, str], str]:
    """(class, method) -> what this vLLM declares."""
    classes = RECORD[version]["methods"]
    return {(kind, name): said for kind, names in classes.items() for name, said in names.items()}


def declared(said: str) -> tuple[set[str], inspect.Signature]:
    """Marks and parameters of a record."""
    marks, parameters = said[: said.index("(")].split(), said[said.index("(") :]
    (function,) = ast.parse(f"def declared{parameters}: ...").body
    scope: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), "signatures.json", "exec"), scope)
    return set(marks), inspect.signature(scope["declared"])


def kind_of(member: Any) -> str:
    """How a class has it."""
    if isinstance(member, property):
        return "property"
    return "classmethod" if isinstance(member, classmethod) else "method"


def objection(said: str, member: Any) -> str:
    """A call that vLLM may make and this override does not take; '' if there is none."""
    marks, theirs = declared(said)
    kind = next(iter(marks & {"property", "classmethod", "staticmethod"}), "method")
    if kind_of(member) != kind:
        return f"a {kind} is overridden by a {kind_of(member)}"
    if kind == "property":
        return ""
    ours = list(inspect.signature(getattr(member, "__func__", member)).parameters.values())
    for place, one in enumerate(theirs.parameters.values()):
        if one.kind in VARIABLE:
            if all(other.kind != one.kind for other in ours):
                return f"any number of {one.name} is not taken"
        elif [other.name for other in ours[place : place + 1]] != [one.name]:
            return f"{one.name} is not at place {place}"
        elif one.default is not one.empty and ours[place].default is one.empty:
            return f"{one.name} may be left out"
    for other in ours:
        fixed = other.kind not in VARIABLE and other.default is other.empty
        if fixed and other.name not in theirs.parameters:
            return f"{other.name} is never given"
    return ""


@pytest.mark.parametrize("version", RECORD)
def test_each_override_takes_every_call_that_is_declared(version: str) -> None:
    objections = {
        name: objection(said, vars(OVERRIDES[kind])[name])
        for (kind, name), said in known(version).items()
        if name in vars(OVERRIDES[kind])
    }
    assert len(objections) > 20
    assert not {name: why for name, why in objections.items() if why}


@pytest.mark.parametrize("version", RECORD)
def test_each_method_is_overridden_or_judged(version: str) -> None:
    left = {name for names in LEFT.values() for name in names.split()}
    own = {
        where: said
        for where, said in known(version).items()
        if where[1] not in vars(OVERRIDES[where[0]])
    }
    assert not {name for _, name in own} - left, "is its default right for us?"
    assert not [name for (_, name), said in own.items() if "abstractmethod" in said]


def test_nothing_is_overridden_or_judged_that_no_vllm_has() -> None:
    there = {name for version in RECORD for _, name in known(version)}
    ours = {
        name
        for kind in set(OVERRIDES.values())
        for name, member in vars(kind).items()
        if not name.startswith("_") and kind_of(member) and callable(getattr(kind, name, None))
    }
    assert not ours - there
    assert not {name for names in LEFT.values() for name in names.split()} - there


STEP = output(new=[("a", [1], 0, 4)], cached=[("b", [2], 4, 1)])
STAND_INS: dict[str, Any] = {
    "SchedulerOutput": STEP,
    "NewRequestData": STEP.scheduled_new_reqs[0],
    "CachedRequestData": STEP.scheduled_cached_reqs,
    "KVConnectorOutput": worker_output(),
    "Request": Request("a", 4),
    "KVCacheConfig": kv_cache_config(),
}


@pytest.mark.parametrize("version", RECORD)
def test_the_stand_ins_have_no_field_that_vllm_has_not(version: str) -> None:
    later = {name for name, since in SINCE.items() if parts(since) > parts(version)}
    for kind, stand_in in STAND_INS.items():
        fields = set(RECORD[version]["fields"][kind])
        assert vars(stand_in).keys() - {"salt"} - later <= fields, kind
        assert not later & fields, kind


def parts(version: str) -> list[int]:
    """A version's numbers, to be compared."""
    return [int(part) for part in version.split(".")[:2]]


BAD: list[tuple[str, Any]] = [
    ("(self, a)", lambda self: None),
    ("(self, a)", lambda self, b: None),
    ("(self, a, b)", lambda self, b, a: None),
    ("(self, a=...)", lambda self, a: None),
    ("(self)", lambda self, a: None),
    ("(self, **more)", lambda self: None),
    ("property (self)", lambda self: None),
    ("(self)", property(lambda self: None)),
    ("classmethod (cls)", lambda self: None),
]


@pytest.mark.parametrize(("said", "member"), BAD)
def test_a_bad_override_is_found(said: str, member: Any) -> None:
    assert objection(said, member)
    assert not objection("abstractmethod (self, a, b=...)", lambda self, a, b=1, c=2, **more: None)
