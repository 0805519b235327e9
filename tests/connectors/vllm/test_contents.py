"""Pages are shared by engines whose memory is in other orders, exactly where they are the same."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.connectors.vllm import contents
from pegaflow.connectors.vllm.contents import BACKENDS, PLAIN, described, processor
from pegaflow.connectors.vllm.layout import Plan, Tensor, plan
from pegaflow.wire.layout import fingerprint, pieces

from .views import ORDERS, Shape, views

KEYS_AND_VALUES = PLAIN["keys and values"].split()
FLASH = "flash_attn.FlashAttentionBackend"
CPU = "cpu_attn.CPUAttentionBackend"


def config(tensors: list[Tensor], backend: str, chosen: Any = None) -> Any:
    """A VllmConfig whose layers are computed by a backend, by its name within BACKENDS."""
    module, name = f"{BACKENDS}{backend}".rsplit(".", 1)
    kind = type(name, (), {"__module__": module})
    layers = {one.layer: SimpleNamespace(get_attn_backend=lambda: kind) for one in tensors}
    return SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context=layers),
        attention_config=SimpleNamespace(backend=chosen),
    )


class Memory:
    """An engine's, whose bytes are numbers here, each as large as it likes."""

    def __init__(self, order: str, shape: Shape, *, backend: str, apart: bool) -> None:
        one = replace(shape, layers=1) if apart else shape
        numbers = range(shape.layers if apart else 1)
        made = [view for n in numbers for view in views(order, one, storage=n)]
        named = [replace(t, layer=f"layers.{n}", dtype="torch.float16") for n, t in enumerate(made)]
        self.tensors = described(named, config(named, backend), order)
        self.plan: Plan = plan(self.tensors, shape.blocks)
        self._storages = [np.zeros(one.bytes, np.int64) for _ in numbers]

    def layer(self, number: int) -> Any:
        """As vLLM sees it: [B, H, N, C], where B counts the backend's own blocks."""
        tensor = self.tensors[number]
        storage = self._storages[tensor.storage][tensor.offset :]
        strides = [stride * storage.itemsize for stride in tensor.stride]
        return np.lib.stride_tricks.as_strided(storage, tensor.shape, strides)

    def block(self, number: int) -> list[Any]:
        """Views of the runs of a block, in the order of the page."""
        found = pieces(self.plan.layout, number)
        return [self._storages[self.plan.storages[r]][o : o + n] for r, o, n, _ in found]


def cut(values: Any, kernel_blocks: int) -> Any:
    """[B, H, N, C] as the blocks of a backend that has several for each."""
    blocks, heads, tokens, content = values.shape
    parts = values.reshape(blocks, heads, kernel_blocks, -1, content).transpose(0, 2, 1, 3, 4)
    return parts.reshape(blocks * kernel_blocks, heads, tokens // kernel_blocks, content)


@st.composite
def engines(draw: st.DrawFn, shape: Shape) -> tuple[Memory, int]:
    """An engine with layers of this shape, and how many blocks its backend makes of one."""
    order = draw(st.sampled_from(sorted(ORDERS)))
    kernel = draw(st.sampled_from((1, 2))) if order in ("LBHNC", "LBNHC") else 1
    backend = draw(st.sampled_from(KEYS_AND_VALUES))
    blocks, apart = draw(st.integers(5, 7)), draw(st.booleans()) and order[0] == "L"
    shape = replace(shape, blocks=blocks, kernel_blocks=kernel)
    return Memory(order, shape, backend=backend, apart=apart), kernel


@given(st.data(), *[st.integers(1, 3)] * 3, st.sampled_from((2, 4)))
def test_names_are_equal_exactly_where_pages_are(
    data: st.DataObject, layers: int, heads: int, content: int, tokens: int
) -> None:
    shape = Shape(layers, 1, heads, tokens, content=content)
    (one, cut_by), (other, cut_as) = data.draw(engines(shape)), data.draw(engines(shape))
    values = np.arange(1, 1 + shape.page).reshape(1, heads, tokens, content)
    for layer in range(layers):
        one.layer(layer)[2 * cut_by : 3 * cut_by] = cut(values + layer * 1000, cut_by)
    page = np.concatenate(one.block(2))
    for run in other.block(4):
        run[:], page = page[: len(run)], page[len(run) :]
    assert len(page) == 0
    same = all(
        (other.layer(layer)[4 * cut_as : 5 * cut_as] == cut(values + layer * 1000, cut_as)).all()
        for layer in range(layers)
    )
    assert (fingerprint(one.plan.layout) == fingerprint(other.plan.layout)) == same


LLAMA = Shape(2, 5, 4, 16, content=8)


def names(backend: str = FLASH, shape: Shape = LLAMA) -> dict[str, bytes]:
    """The fingerprint of an engine's layout in each order."""
    made = {o: Memory(o, shape, backend=backend, apart=False).plan.layout for o in ORDERS}
    return {order: fingerprint(layout) for order, layout in made.items()}


def test_orders_that_differ_outside_of_a_page_share() -> None:
    found = names()
    heads_first = {"LBHNC", "LHBNC", "BLHNC", "BHLNC"}
    assert {order for order in ORDERS if found[order] == found["LBHNC"]} == heads_first
    assert {order for order in ORDERS if found[order] == found["BLNHC"]} == {"LBNHC", "BLNHC"}
    assert len({*names(shape=replace(LLAMA, heads=1)).values()}) == 1


@pytest.mark.parametrize("kind", PLAIN)
def test_backends_that_write_the_same_share(kind: str) -> None:
    found = {backend: names(backend)["LBNHC"] for backend in PLAIN[kind].split()}
    assert len({*found.values()}) == 1 and len(found) > 3
    assert found.keys().isdisjoint({CPU})


def test_backends_of_which_that_is_not_known_share_with_nobody_else() -> None:
    found = {**names(), **{f"{order} {CPU}": name for order, name in names(CPU).items()}}
    found |= {f"{o} another": name for o, name in names("rocm_attn.RocmAttentionBackend").items()}
    assert len({*found.values()}) == len(ORDERS) * 2 + 2
    assert len({names(PLAIN[kind].split()[0])["LBHNC"] for kind in PLAIN}) == len(PLAIN)


def content(backend: str = FLASH, order: str = "LBHNC", *, dtype: str, **more: Any) -> str:
    (tensor,) = views("LBHNC", replace(LLAMA, layers=1))
    tensor = replace(tensor, dtype=dtype)
    return described([tensor], config([tensor], backend, **more), order)[0].content


def test_numbers_of_few_bits_are_the_backends_affair() -> None:
    assert content(dtype="torch.bfloat16") == "keys and values"
    for dtype in ("torch.uint8", "torch.float8_e4m3fn", "torch.int8"):
        assert content(dtype=dtype) == f"{BACKENDS}{FLASH} LBHNC"
    assert content(order="", dtype="torch.bfloat16") == f"{BACKENDS}{FLASH} -", "before 0.30"


def test_on_a_cpu_the_processors_instructions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU attention packs keys by them, so two hosts may differ in nothing else."""
    assert len(processor().split()) == 2
    found = {content(CPU, dtype="torch.bfloat16")}
    monkeypatch.setattr(contents, "processor", lambda: "x86_64 amx_bf16,amx_tile,avx2")
    found.add(content(CPU, dtype="torch.bfloat16"))
    assert len(found) == 2
    assert content(dtype="torch.bfloat16") == "keys and values", "on a GPU they do not"


def test_where_vllm_does_not_name_a_layers_backend_the_setting_counts() -> None:
    (tensor,) = views("LBHNC", replace(LLAMA, layers=1))
    for layers in ({}, {tensor.layer: object()}, None):
        seen = SimpleNamespace(
            compilation_config=SimpleNamespace(static_forward_context=layers),
            attention_config=SimpleNamespace(backend="FLASHINFER"),
        )
        assert described([tensor], seen, "LBHNC")[0].content == "? FLASHINFER LBHNC"
    assert described([tensor], SimpleNamespace(), "")[0].content == "?  -"
    assert described([tensor], SimpleNamespace(), "")[0].axes == ""


def test_a_name_says_nothing_of_axes_that_vllm_does_not_name() -> None:
    """Before 0.30: kernel blocks, whose tokens may be any axis, are said."""
    memory = np.zeros((10, 4, 8))
    (tensor,) = views("LBNHC", Shape(1, 5, 1, 4, content=8))
    plain = replace(tensor, shape=(5, 4, 8), stride=(32, 8, 1))
    halves = replace(tensor, shape=(10, 2, 8), stride=(16, 8, 1))
    found = {fingerprint(plan([one], 5).layout) for one in (plain, halves)}
    assert len(found) == 2 and memory.size == 2 * 5 * 32
