"""Numbers with labels and histograms, held against prometheus-client's own."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram as Theirs

from pegaflow.core import series
from pegaflow.core.series import LOAD, RESIDENCE, RPC, SSD_PREFETCH_RATE, SSD_WRITE_RATE, Histogram

ALL = (RPC, LOAD, RESIDENCE, SSD_WRITE_RATE, SSD_PREFETCH_RATE)

ORIGINALS_S = {
    RPC.name: "0.0005 0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2",
    LOAD.name: "0.01 0.05 0.1 0.5 1 2 5 10 30 60",
    RESIDENCE.name: "1 5 10 30 60 120 300 600 1800 3600 7200 21600 43200 86400",
    SSD_WRITE_RATE.name: "1e9 2e9 3e9 4e9 5e9 6e9 7e9 8e9 10e9 12e9 16e9 20e9 30e9 40e9",
}
"""Bounds that the original's metrics have, in the unit shown; ours may have more."""


@given(st.lists(st.integers(0, 1 << 40)))
def test_buckets_are_those_of_prometheus(values: list[int]) -> None:
    theirs = Theirs("x", "", buckets=[b / 1_000_000 for b in LOAD.bounds], registry=None)
    counts: Counter[str] = Counter()
    for value in values:
        LOAD.count(counts, value)
        theirs.observe(value / 1_000_000)
    (family,) = theirs.collect()
    bounds = {s.labels["le"]: s.value for s in family.samples if s.name == "x_bucket"}
    (found,) = LOAD.read(counts).values()
    assert {float(bound): n for bound, n in found.cumulative} == {
        float(bound): n for bound, n in bounds.items()
    }
    assert found.count == len(values)
    assert found.total == pytest.approx(sum(values) / 1_000_000)


@pytest.mark.parametrize("histogram", ALL, ids=lambda h: h.name)
def test_bounds_ascend_and_have_the_originals_among_them(histogram: Histogram) -> None:
    bounds = histogram.bounds
    assert list(bounds) == sorted(set(bounds))
    shown = [bound / histogram.per_unit for bound in bounds]
    for wanted in ORIGINALS_S.get(histogram.name, "").split():
        assert float(wanted) in shown, wanted


def test_labels_keep_histograms_apart() -> None:
    counts: Counter[str] = Counter()
    RPC.count(counts, 400, "lookup", "ok")
    RPC.count(counts, 400, "lookup", "expired", times=3)
    RPC.count(counts, 10**9, "save", "ok")
    found = RPC.read(counts)
    assert {labels: buckets.count for labels, buckets in found.items()} == {
        ("lookup", "ok"): 1,
        ("lookup", "expired"): 3,
        ("save", "ok"): 1,
    }
    assert [n for _, n in found["save", "ok"].cumulative][-2:] == [0, 1]
    assert LOAD.read(counts)[()].count == 0, "there before it has counted anything"
    assert len(counts) == 6, "only what has counted something is a number"


def test_what_is_no_bucket_of_it_is_left_out() -> None:
    names = ("rpc_us", "rpc_us|a", "rpc_us|a|b|c|500", "rpc_us|a|b|what", "rpc_usual|a|b|500")
    assert RPC.read(dict.fromkeys(names, 9)) == {("a", "b"): RPC.empty()}


def test_a_sum_stays_what_a_message_can_carry() -> None:
    counts: Counter[str] = Counter()
    for _ in range(3):
        SSD_WRITE_RATE.count(counts, 1 << 63)
    assert max(counts.values()) == series.VALUE_MAX


@pytest.mark.parametrize("path", ["/mnt/kv", "/mnt/a|b", "/mnt/\udcff", "/mnt/größe", ""])
def test_any_path_can_be_a_label(path: str) -> None:
    name = series.labelled("ssd_directory_blocks", path)
    name.encode()
    ((labels, value),) = series.labels_of("ssd_directory_blocks", {name: 7, "other": 8})
    assert (len(labels), value) == (1, 7)
    if "|" not in path and path.isprintable():
        assert labels == (path,)
