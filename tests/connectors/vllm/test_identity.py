"""Who may share: files by content, settings by what they change, and what is in memory."""

import enum
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm import files, identity
from pegaflow.connectors.vllm.digests import Digests
from pegaflow.connectors.vllm.fields import COUNTS, IGNORED, UNREAD, ignored
from pegaflow.connectors.vllm.files import Unestablished, fingerprint, locate
from pegaflow.connectors.vllm.settings import engine

from .fakes import AttentionConfig, VllmConfig, config, kv_cache_config

TENSORS = 40
TENSOR_BYTES = 300_000


def safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    at, header = 0, {}
    for name, content in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(content)],
            "data_offsets": [at, at + len(content)],
        }
        at += len(content)
    said = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + b"".join(tensors.values()))


def checkpoint(path: Path, changed: str = "") -> Path:
    """A model of 12 MB: no file of its kind is read whole in these tests."""
    path.mkdir()
    (path / "config.json").write_text('{"layers": 4}')
    (path / "modeling_own.py").write_text("LAYERS = 4")
    (path / "tokenizer.json").write_text("{}")
    tensors = {f"layer.{i}": bytes([i]) * TENSOR_BYTES for i in range(TENSORS)}
    if changed:
        tensors[changed] = bytes([99]) * TENSOR_BYTES
    safetensors(path / "model.safetensors", tensors)
    return path


@pytest.fixture(autouse=True)
def sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weight files count as large; digests are remembered in a folder of the test's own."""
    monkeypatch.setattr(files, "WHOLE_BYTES", 100_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("number", range(TENSORS))
def test_every_tensor_of_a_checkpoint_counts(tmp_path: Path, number: int) -> None:
    same = fingerprint(str(checkpoint(tmp_path / "one")))
    assert fingerprint(str(checkpoint(tmp_path / "two", f"layer.{number}"))) != same


def test_a_small_tensor_of_a_large_file_counts(tmp_path: Path) -> None:
    large, small = bytes(20 << 20), b"x" * 64
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    safetensors(one, {"large": large, "norm": small, "more": large})
    safetensors(two, {"large": large, "norm": b"y" * 64, "more": large})
    assert fingerprint(str(one)) != fingerprint(str(two))


def test_the_same_files_elsewhere_are_the_same_model(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    original = checkpoint(tmp_path / "model")
    shutil.copytree(original, tmp_path / "copy")
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in original.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    (tmp_path / "link").symlink_to(original)
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (1, 1))
    (tmp_path / "copy" / "tokenizer.json").write_text("{ }")
    (tmp_path / "copy" / ".gitattributes").write_text("x")
    places = [original, tmp_path / "copy", snapshot, tmp_path / "link"]
    assert len({fingerprint(str(place)) for place in places}) == 1


@pytest.mark.parametrize("name", ["config.json", "modeling_own.py"])
def test_files_of_the_configuration_count_whole(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path / "model")
    before = fingerprint(str(path))
    (path / name).write_text((path / name).read_text().replace("4", "5"))
    assert fingerprint(str(path)) != before


def test_a_tensor_of_a_pytorch_file_counts_wherever_it_differs(tmp_path: Path) -> None:
    def torch_file(name: str, changed: int) -> str:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(20):
                content = bytearray(100_001)
                if number == changed:
                    content[50_123] = 1
                undated = zipfile.ZipInfo(f"model/data/{number}")  # as PyTorch writes them
                archive.writestr(undated, bytes(content))
        return str(path)

    same = fingerprint(torch_file("a.bin", -1))
    assert fingerprint(torch_file("b.bin", -1)) == same
    assert len({fingerprint(torch_file(f"{n}.bin", n)) for n in range(20)} | {same}) == 21


@pytest.mark.parametrize("content", [b"", b"short", (1 << 60).to_bytes(8, "little"), b"\xff" * 300])
def test_a_weight_file_that_is_none_is_read_all_the_same(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content + bytes(200_000))
    before = fingerprint(str(path))
    path.write_bytes(content + bytes(199_999) + b"1")
    assert fingerprint(str(path)) != before


def test_every_byte_counts_on_request(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model") / "model.safetensors"
    content = bytearray(path.read_bytes())
    at = len(content) - TENSOR_BYTES // 2 - 77
    before = fingerprint(str(path)), fingerprint(str(path), whole=True)
    content[at] ^= 1
    path.write_bytes(content)
    assert fingerprint(str(path)) == before[0], "this place is read, choose another"
    assert fingerprint(str(path), whole=True) != before[1]


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, folder = checkpoint(tmp_path / "model"), str(tmp_path / "known")
    later = Digests(folder, clock=lambda: 1e12)
    before = fingerprint(str(path), digests=later)
    later.save()
    assert os.stat(folder).st_mode & 0o777 == 0o700
    again = Digests(folder, clock=lambda: 1e12)
    os.chmod(folder, 0o770)
    assert fingerprint(str(path), digests=Digests(folder)) == before
    os.chmod(folder, 0o700)
    assert fingerprint(str(path), digests=again) == before and len(again._known) == 3
    weights = path / "model.safetensors"
    times = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(str(path), digests=Digests(folder, clock=lambda: 1e12)) != before


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    digests = Digests(None)
    fingerprint(str(checkpoint(tmp_path / "model")), digests=digests)
    assert digests._known == {}


def test_what_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path, folder = checkpoint(tmp_path / "model"), tmp_path / "known"
    made = Digests(str(folder), clock=lambda: 1e12)
    fingerprint(str(path), digests=made)
    made.save()
    said = json.loads((folder / "digests.json").read_text())
    (folder / "digests.json").write_text(json.dumps(dict.fromkeys(said, "00" * 16)))
    lied = fingerprint(str(path), digests=Digests(str(folder)))
    os.chmod(folder, 0o777)
    assert fingerprint(str(path), digests=Digests(str(folder))) == fingerprint(str(path)) != lied


def test_what_is_no_local_model_is_not_established(tmp_path: Path) -> None:
    with pytest.raises(Unestablished):
        locate("s3://bucket/model")
    with pytest.raises(Unestablished):
        fingerprint(str(tmp_path))


class Format(enum.Enum):
    FP8 = 8


@dataclass
class ModelConfig:
    """As vLLM's, with a field of a version to come."""

    model: str = ""
    dtype: str = "bfloat16"
    seed: int = 0
    brand_new: Any = None
    hf_config: Any = None
    hf_text_config: Any = None
    max_model_len: int = 2048
    revision: str | None = None
    model_weights: str = ""


def model_config(tmp_path: Path, load_format: str = "auto", **fields: Any) -> Any:
    """A VllmConfig with a model."""
    path = tmp_path / "model"
    if not path.exists():
        checkpoint(path)
    made = config()
    made.model_config = ModelConfig(**{"model": str(path), **fields})
    made.load_config = SimpleNamespace(load_format=load_format)
    return made


def base(vllm_config: Any) -> dict[str, str]:
    found = identity.facts(vllm_config, kv_cache_config())
    assert found.private == ""
    return found.base


def test_settings_count_unless_somebody_has_judged_that_they_do_not(tmp_path: Path) -> None:
    one = base(model_config(tmp_path))
    assert base(model_config(tmp_path, seed=1)) == one
    assert base(model_config(tmp_path, max_model_len=1)) == one
    different: list[dict[str, Any]] = [
        {"dtype": "float16"},
        {"brand_new": 1},
        {"brand_new": [Format.FP8]},
    ]
    found = [base(model_config(tmp_path, **fields)) for fields in different]
    assert all(others != one for others in found) and found[1] != found[2]


def test_an_attention_backend_counts_by_what_it_writes_alone(tmp_path: Path) -> None:
    """That is said with the memory (contents.py)."""
    made = [model_config(tmp_path) for _ in range(3)]
    made[1].attention_config = AttentionConfig(backend="FLEX_ATTENTION")
    made[2].attention_config = AttentionConfig(flash_attn_version=2)
    none, backend, version = map(base, made)
    assert none == backend != version


def test_no_field_is_judged_twice() -> None:
    for kind, names in COUNTS.items():
        assert not ignored(kind) & set(names.split()), kind
    for kind, reasons in IGNORED.items():
        listed = [name for names in reasons.values() for name in names.split()]
        assert len(listed) == len(set(listed)) and kind in COUNTS, kind
    assert not UNREAD.keys() & COUNTS.keys()


def test_a_variable_that_chooses_numbers_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = base(model_config(tmp_path))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert base(model_config(tmp_path)) == one
    monkeypatch.setenv("VLLM_FLOAT32_MATMUL_PRECISION", "medium")
    assert base(model_config(tmp_path)) != one


PRIVATE: dict[str, Callable[[Path], Any]] = {
    "random weights": lambda tmp: model_config(tmp, "dummy"),
    "streamed weights": lambda tmp: model_config(tmp, "runai_streamer"),
    "tensorizer": lambda tmp: model_config(tmp, "tensorizer"),
    "a loader of somebody's own": lambda tmp: model_config(tmp, "my_loader"),
    "weights elsewhere": lambda tmp: model_config(tmp, model_weights="s3://bucket/x"),
    "no such model": lambda tmp: model_config(tmp, model=str(tmp / "missing")),
    "a value without description": lambda tmp: model_config(tmp, brand_new=object()),
    "a function": lambda tmp: model_config(tmp, brand_new=lambda config: config),
}


@pytest.mark.parametrize("case", PRIVATE)
def test_where_identity_is_not_established_the_engine_is_private(tmp_path: Path, case: str) -> None:
    made = PRIVATE[case](tmp_path)
    one, warnings = engine(made, kv_cache_config())
    assert len([line for line in warnings if "what this one caches" in line]) == 1
    same, _ = engine(made, kv_cache_config())
    made.instance_id = "another start"
    other, _ = engine(made, kv_cache_config())
    assert one.space == same.space != other.space


def text_config(**fields: Any) -> Any:
    said = {"model_type": "llama", "rope_parameters": {"rope_type": "default"}, **fields}
    return SimpleNamespace(**said, to_dict=lambda: said)


def memory(**fields: Any) -> str:
    length = fields.pop("max_model_len", 2048)
    made = text_config(**fields)
    model = ModelConfig(hf_config=made, hf_text_config=made, max_model_len=length)
    said, why = identity.in_memory(VllmConfig(model_config=model))
    assert said and not why
    return said


def test_the_models_configuration_counts_as_it_is_in_memory() -> None:
    one = memory()
    assert memory(_name_or_path="/elsewhere", transformers_version="9") == one
    assert memory(max_model_len=4096) == one, "a limit"
    for rope in ("longrope", "dynamic", "of_tomorrow"):
        short, long = (
            memory(rope_parameters={"rope_type": rope, "factor": 2.0}, max_model_len=length)
            for length in (2048, 4096)
        )
        assert len({one, short, long}) == 3, rope
    nested = [
        memory(rope_parameters={"full": {"rope_type": "longrope"}}, max_model_len=length)
        for length in (2048, 4096)
    ]
    assert nested[0] != nested[1]
    assert memory(model_type="llama4", max_model_len=4096) != memory(model_type="llama4")
    assert memory(rms_norm_eps=1e-5) != one


def test_a_configuration_without_description_is_said() -> None:
    odd = text_config(hook=object())
    model = ModelConfig(hf_config=odd, hf_text_config=odd)
    assert identity.in_memory(VllmConfig(model_config=model))[1]
