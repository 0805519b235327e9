"""What this engine computes with, as facts: the part of its identity that its configuration has.

    base     settings of vLLM that count (fields.py), files by content (files.py), variables of the
             environment: the scheduler and every worker find the same
    memory   the model's own configuration as it is in memory, overrides and edits included: each
             worker says it with the memory that it registers, for building the model may change it
    live     the weights themselves (live.py), said in the same way

Values are rendered so that equal ones give equal text in every process. Where a value cannot be
rendered, or weights have no files that can be read (random ones, streamed ones, those of a loader
that we do not know), identity is not established: the engine is *private*, which means that its
namespace holds a number of this start, and a line says why.
"""

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

from . import compat, sizes
from .digests import Digests, default_folder
from .fields import COUNTS, ENVIRONMENT, FILE_FIELDS, ignored
from .files import Unestablished, file_digest, fingerprint, locate

FROM_FILES = frozenset(
    "auto hf safetensors fastsafetensors instanttensor mistral pt npcache bitsandbytes gguf"
    " sharded_state".split()
)
"""Values of load_format whose weights are what the model's local files hold."""

NOISE = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "transformers_version"})
"""Entries of a model's configuration that say where it came from. `auto_map`, too: it names code,
and that counts by its content."""

SAME_AT_ANY_LENGTH = frozenset({"default", "linear", "llama3", "yarn", "deepseek_yarn"})
"""Kinds of rope whose factors do not depend on max_model_len."""

LENGTH_IS_A_LIMIT = frozenset(
    "llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo2"
    " deepseek_v2 deepseek_v3 gpt_oss granite".split()
)
"""Model types that were seen to use max_model_len as a limit and nothing else. Others do more with
it (Llama 4 scales its queries by it), so of those it counts."""


@dataclass(slots=True)
class Facts:
    """Named strings, and why they do not tell who may share."""

    base: dict[str, str] = field(default_factory=dict)
    private: str = ""  # why identity is not established, in one line; '' if it is


def facts(vllm_config: Any, kv_cache_config: Any, whole: bool = False) -> Facts:
    """Everything that the scheduler and the workers see alike.

    Args:
        whole: read every byte of weight files, not spread pages.
    """
    found = Facts()
    found.base = {
        "hash algorithm": compat.hash_algorithm(vllm_config),
        "block tokens": str(sizes.block_tokens(vllm_config, kv_cache_config)),
        "hash tokens": str(sizes.hash_tokens(vllm_config, kv_cache_config)),
    }
    for name in sorted(ENVIRONMENT & os.environ.keys()):
        found.base[f"${name}"] = os.environ[name]
    try:
        found.base |= dict(_settings(vllm_config, ""))
        found.base |= _files(vllm_config, whole)
    except Unestablished as why:
        found.private = str(why)
    return found


def in_memory(vllm_config: Any) -> tuple[str, str]:
    """(digest of the model's configuration as this process holds it, why it cannot be told)"""
    digest = blake2b(digest_size=16)
    try:
        for where in ("model_config", "speculative_config.draft_model_config"):
            model = compat.attribute(vllm_config, where)
            for name in ("hf_config", "hf_text_config"):
                said = render(compat.attribute(model, name), name)
                digest.update(f"{where}.{name}={said}\n".encode())
            length = compat.attribute(model, "max_model_len") if _length_counts(model) else None
            digest.update(f"{where}.max_model_len={length}\n".encode())
    except Unestablished as why:
        return "", str(why)
    return digest.hexdigest(), ""


def adapter_settings(vllm_config: Any) -> str:
    """What the configuration says of all LoRA adapters; a number of this start where it cannot be
    told, so that no adapter's keys are anybody else's."""
    try:
        return render(compat.attribute(vllm_config, "lora_config"), "lora_config")
    except Unestablished:
        return compat.generation(vllm_config).hex()


def _length_counts(model: Any) -> bool:
    """Whether max_model_len may change what is computed."""
    config = compat.attribute(model, "hf_text_config")
    if compat.attribute(config, "model_type") not in LENGTH_IS_A_LIMIT:
        return True
    kinds = set()
    for name in ("rope_parameters", "rope_scaling"):
        said = compat.attribute(config, name) or {}
        if not isinstance(said, Mapping):
            return True
        for one in (said, *(part for part in said.values() if isinstance(part, Mapping))):
            kinds.add(str(one.get("rope_type") or one.get("type") or "default"))
    return not kinds <= SAME_AT_ANY_LENGTH


def _settings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, value) of each field that counts, down to what is no configuration class."""
    kind = type(value).__name__
    skipped = ignored(kind)
    for name in _names(value):
        inner, where = getattr(value, name, None), f"{path}{name}"
        if name in skipped:
            continue
        if name in FILE_FIELDS and inner:
            try:
                yield where, file_digest(str(inner)).hex()
            except OSError as error:
                raise Unestablished(f"{where} {inner}: {error.strerror}") from None
        elif type(inner).__name__ in COUNTS:
            yield from _settings(inner, f"{where}.")
        else:
            yield where, render(inner, where)


def _names(value: Any) -> list[str]:
    if is_dataclass(value):
        return [one.name for one in fields(value)]
    return sorted(vars(value)) if hasattr(value, "__dict__") else []


def render(value: Any, where: str) -> str:
    """Equal text for equal values, in every process.

    Args:
        where: the setting's path, for the error.

    Raises:
        Unestablished: the value has no such text.
    """
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = {render(k, where): v for k, v in value.items() if k not in NOISE | {"auto_map"}}
        return "{" + ",".join(f"{k}:{render(pairs[k], where)}" for k in sorted(pairs)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(render(one, where) for one in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(render(one, where) for one in value)) + "}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value)
    if hasattr(value, "to_dict"):
        return render(value.to_dict(), where)
    if is_dataclass(value) or isinstance(value, SimpleNamespace) or type(value).__name__ in COUNTS:
        return render(dict(_settings(value, "")), where)
    raise Unestablished(f"{where} is a {type(value).__name__}, which has no lasting description")


def _files(vllm_config: Any, whole: bool) -> dict[str, str]:
    """The content of every model's files."""
    digests = Digests(default_folder())
    model = compat.attribute(vllm_config, "model_config")
    found = {}
    if model is not None:
        loading = compat.attribute(vllm_config, "load_config")
        found["model files"] = _content(model, loading, whole, digests)
    draft = compat.attribute(vllm_config, "speculative_config.draft_model_config")
    if draft is not None:
        loading = compat.attribute(
            vllm_config, "speculative_config.draft_load_config"
        ) or compat.attribute(vllm_config, "load_config")
        found["draft model files"] = _content(draft, loading, whole, digests)
    digests.save()
    return found


def _content(model: Any, loading: Any, whole: bool, digests: Digests) -> str:
    how = str(compat.attribute(loading, "load_format", "auto"))
    if how not in FROM_FILES:
        raise Unestablished(f"load_format {how!r} takes its weights from no file that we can read")
    weights = compat.attribute(model, "model_weights") or compat.attribute(model, "model")
    if not weights:
        raise Unestablished("the model has no name")
    path = locate(
        str(weights),
        compat.attribute(model, "revision"),
        compat.attribute(loading, "download_dir"),
    )
    return fingerprint(path, whole, digests)
