"""What the user configured, and what this engine is to the cache.

Both halves build an `Engine` from the same vLLM configuration, in the same process or in different
ones, and must come to the same result; the scheduler's namespace travels with every step so that a
worker can tell if they ever do not.
"""

import difflib
import enum
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pegaflow.client import Seen
from pegaflow.client.client import WAYS
from pegaflow.connectors.common.grouped import GroupedRequests
from pegaflow.connectors.common.groups import Groups
from pegaflow.connectors.common.hints import NO_HINTS, PREFIX, Hints
from pegaflow.connectors.common.requests import Requests
from pegaflow.connectors.common.tails import TailedRequests
from pegaflow.wire.gpu import Backend
from pegaflow.wire.identities import Key
from pegaflow.wire.units import Milliseconds

from . import compat, kvgroups, sizes
from .endpoint import choose
from .identity import adapter_settings, facts
from .namespace import Namespace, namespace
from .ranks import divided_by, replicas
from .tails import hash_of

BACKENDS = tuple(backend.name.lower() for backend in Backend)
"""What `transfer_backend` may be, under the original's names; the default first."""

DEFAULT_TIMEOUT_MS: Milliseconds = 1000
"""An unanswered lookup is a miss after a second: recomputing a few thousand tokens takes as
long."""


class Mode(enum.StrEnum):
    """What the cache is used for; the default first."""

    READ_WRITE = "read_write"
    SAVE_ONLY = "save_only"
    READ_ONLY = "read_only"


class Reading(enum.StrEnum):
    """What is read of weight files; the default first."""

    SPREAD = "spread"
    FULL = "full"


class Role(enum.StrEnum):
    """vLLM's kv_role."""

    BOTH = "kv_both"
    PRODUCER = "kv_producer"
    CONSUMER = "kv_consumer"


@dataclass(frozen=True, slots=True)
class Settings:
    """The `pegaflow.*` keys of kv_connector_extra_config."""

    endpoint: str | None  # None: the default run directory's front desk
    curve: str | None  # the key file for a TCP endpoint
    mode: Mode
    timeout_s: float  # after this long, a lookup is a miss
    way: str  # one of WAYS: how blocks move between the engine and the pool
    backend: Backend = Backend.AUTO  # what moves those of a GPU
    role: str = Role.BOTH  # vLLM's kv_role: a Role, or what another vLLM has
    weights_hash: Reading = Reading.SPREAD
    owner: int | None = None  # the user whose service is trusted, beside our own and root
    hints: Hints = NO_HINTS  # of requests that say nothing
    tail_save: bool = False  # prompts' last blocks are saved before they are full (common/tails.py)
    tail_load: bool = False  # and asked for

    @property
    def loads(self) -> bool:
        """Whether the cache is read."""
        return self.mode is not Mode.SAVE_ONLY and self.role != Role.PRODUCER

    @property
    def saves(self) -> bool:
        """Whether the cache is written."""
        return self.mode is not Mode.READ_ONLY and self.role != Role.CONSUMER


def settings(
    extra: Mapping[str, Any], env: Mapping[str, str], role: str = Role.BOTH
) -> tuple[Settings, list[str]]:
    """What the user has set.

    Args:
        extra: kv_connector_extra_config, as the user wrote it.
        env: the environment.
        role: vLLM's kv_role.

    Returns:
        The settings, and one warning per key or value that was not understood or is overruled.
    """
    names = "endpoint host port curve owner mode timeout_ms way weights_hash transfer_backend"
    flags = "wait_for_full_prefix pd_tail_save pd_tail_load"
    known = {f"{PREFIX}{name}" for name in f"{names} {flags}".split()}
    where = choose(extra, env)
    warnings = list(where.warnings)
    for key in extra:
        if key.startswith(PREFIX) and key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1, 0.0)[0]
            warnings.append(f"unknown key {key!r} is ignored; did you mean {near!r}?")

    def one_of(name: str, values: tuple[str, ...]) -> str:
        chosen = str(extra.get(f"{PREFIX}{name}", values[0]))
        if chosen in values:
            return chosen
        listed = ", ".join(values)
        warnings.append(f"{PREFIX}{name} {chosen!r} is none of {listed}; using {values[0]}")
        return values[0]

    def flag(name: str) -> bool:
        chosen = extra.get(f"{PREFIX}{name}", False)
        if not isinstance(chosen, bool):
            warnings.append(f"{PREFIX}{name} {chosen!r} is not true or false; using false")
        return chosen is True

    mode, way = Mode(one_of("mode", tuple(Mode))), one_of("way", tuple(WAYS))
    raw = extra.get(f"{PREFIX}timeout_ms", DEFAULT_TIMEOUT_MS)
    try:
        timeout = float(raw)
    except (TypeError, ValueError):
        timeout = -1.0
    if not 0 < timeout < float("inf"):
        warnings.append(f"{PREFIX}timeout_ms {raw!r} is no time; using {DEFAULT_TIMEOUT_MS}")
        timeout = float(DEFAULT_TIMEOUT_MS)
    reading = Reading(one_of("weights_hash", tuple(Reading)))
    made = Settings(
        endpoint=where.url,
        curve=where.curve,
        mode=mode,
        timeout_s=timeout / 1000,
        way=way,
        backend=Backend[one_of("transfer_backend", BACKENDS).upper()],
        role=role,
        weights_hash=reading,
        owner=where.owner,
        hints=Hints(wait_for_full_prefix=flag("wait_for_full_prefix")),
        tail_save=flag("pd_tail_save"),
        tail_load=flag("pd_tail_load"),
    )
    if f"{PREFIX}mode" in extra:
        said = f"{PREFIX}mode {mode} and kv_role {role} contradict each other"
        if mode is not Mode.SAVE_ONLY and not made.loads:
            warnings.append(f"{said}: nothing is loaded")
        if mode is not Mode.READ_ONLY and not made.saves:
            warnings.append(f"{said}: nothing is saved")
    return made, warnings


@dataclass(frozen=True, slots=True)
class Engine:
    """This engine, as both halves know it."""

    name: str
    config: Any  # vLLM's configuration, for the generation
    settings: Settings
    block_tokens: int  # from one place at which requests resume to the next
    hash_tokens: int
    group_tokens: tuple[int, ...]  # of a block of each group
    world: int  # ranks that hold a part of every block
    rank: int  # this process's; 0 in the scheduler
    replicas: int  # consecutive ranks that hold the same bytes
    divided_by: int  # tensor parallel ranks that share the KV out; 0: none does (ranks.py)
    parent: bytes | None  # what hash chains start from, if it can be known beforehand
    space: Namespace
    private: str  # why nobody else may have this namespace; '' if others may
    adapters: str  # what the configuration says of LoRA adapters
    groups: Groups | None  # None: one of full attention
    careful: bool  # a load that fails ends its request

    def generation(self, epoch: int) -> bytes:
        """16 bytes, new with every start and every epoch."""
        return compat.generation(self.config, epoch)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an engine may exchange blocks with."""

    parent: bytes | None  # what hash chains start from, if it can be known beforehand
    space: Namespace
    private: str  # why nobody else may have this namespace; '' if others may


def identity(
    vllm_config: Any, kv_cache_config: Any, whole: bool, more: Mapping[str, str] | None = None
) -> tuple[Identity, list[str]]:
    """Whom an engine of this configuration may exchange blocks with.

    Args:
        whole: every byte of weight files is read, not spread pages.
        more: facts beside those of the configuration.

    Returns:
        That, and warnings for the log.
    """
    warnings = []
    algorithm = compat.hash_algorithm(vllm_config)
    parent = compat.first_parent(algorithm)
    if parent is None:
        # Nobody else can have this seed, so nobody else may have this namespace.
        probe = compat.generation(vllm_config)
        warnings.append(
            f"{algorithm} hashes have a random seed in every process, so no other engine, and not"
            " this one after a restart, will find what it caches; set PYTHONHASHSEED to the same"
            f" value for all engines{compat.other_cure(algorithm)}"
        )
    else:
        probe = compat.probe(algorithm, parent)
    found = facts(vllm_config, kv_cache_config, whole)
    found.base |= more or {}
    if found.private:
        warnings.append(f"no other engine will find what this one caches: {found.private}")
        found.base["private"] = compat.generation(vllm_config).hex()
    return Identity(parent, namespace(found.base, probe), found.private), warnings


def engine(vllm_config: Any, kv_cache_config: Any) -> tuple[Engine, list[str]]:
    """What this engine is to the cache; the same in the scheduler and in every worker.

    Returns:
        This engine, and warnings for the log.
    """
    role = str(compat.attribute(vllm_config, "kv_transfer_config.kv_role", Role.BOTH))
    chosen, warnings = settings(compat.extra_config(vllm_config), os.environ, role)
    careful = compat.failure_policy(vllm_config) == "fail"
    if careful:
        warnings.append(
            "kv_load_failure_policy is 'fail': a block that cannot be loaded ends its request with"
            " an error; set it to 'recompute'"
        )
    whole = chosen.weights_hash is Reading.FULL
    groups = kvgroups.groups(vllm_config, kv_cache_config)
    if groups and (chosen.tail_save or chosen.tail_load):
        warnings.append(
            f"{PREFIX}pd_tail_save and {PREFIX}pd_tail_load are ignored: the model has windows or"
            " several KV cache groups, and its tails are not handed over"
        )
    facts = {"kv groups": kvgroups.describe(kv_cache_config)} if groups else {}
    known, more = identity(vllm_config, kv_cache_config, whole, facts)
    warnings += more
    made = Engine(
        name=compat.engine_id(vllm_config),
        config=vllm_config,
        settings=chosen,
        block_tokens=sizes.block_tokens(vllm_config, kv_cache_config),
        hash_tokens=sizes.hash_tokens(vllm_config, kv_cache_config),
        group_tokens=sizes.all_tokens(vllm_config, kv_cache_config),
        world=compat.world(vllm_config),
        rank=compat.rank(vllm_config),
        replicas=replicas(vllm_config, kv_cache_config),
        divided_by=divided_by(vllm_config, kv_cache_config),
        parent=known.parent,
        space=known.space,
        private=known.private,
        adapters=adapter_settings(vllm_config),
        groups=groups,
        careful=careful,
    )
    return made, warnings


def requests(
    engine: Engine, see: Callable[[Sequence[Key]], Seen | None]
) -> tuple[Requests, GroupedRequests | None]:
    """The book of an engine's requests; and once more, if it is one of several groups.

    Args:
        see: the client's.
    """
    args = (engine.block_tokens, engine.hash_tokens, engine.world, engine.settings.saves)
    chosen = engine.settings
    patience_s = chosen.timeout_s
    if engine.groups is not None:
        made = GroupedRequests(
            *args,
            patience_s=patience_s,
            groups=engine.groups,
            see=see,
            processed=compat.processed_tokens,
        )
        return made, made
    if chosen.tail_save or chosen.tail_load:
        named = hash_of(compat.hash_algorithm(engine.config), engine.hash_tokens)
        tails = (chosen.tail_save, chosen.tail_load)
        return TailedRequests(*args, patience_s=patience_s, hash_of=named, tails=tails), None
    return Requests(*args, patience_s=patience_s), None
