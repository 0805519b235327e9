"""The tables beside the peers: orders and answers, goals, and who cannot be had."""

from __future__ import annotations

import io
import json
import mmap
import os
import pickletools
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pegaflow.core.errors import UserError
from perf import bare
from perf.peers import contestants, copies, install, lookups, obey, original
from perf.peers.copies import Times
from perf.peers.host import Shared
from perf.shapes import Shape

SIZE = obey.Size(1 << 20, 4, 4096)


class Peer(obey.Contestant):
    """A peer that copies, and may forget a byte."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.saved: dict[tuple[bytes, ...], bytes] = {}
        self.wrong = 0

    def save_blocks(self, keys: list[bytes]) -> float:
        self.saved[tuple(keys)] = self.memory[: self.half]
        return 1.0

    def load_blocks(self, keys: list[bytes]) -> float:
        self.memory[self.half :] = self.saved[tuple(keys)]
        self.memory[self.half] ^= self.wrong
        return 2.0

    def lookups(self, keys: int, count: int, at_once: int) -> list[float]:
        raise obey.Failed("it finds nothing")

    def close(self) -> None:
        self.saved.clear()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_each_save_is_a_chain_of_its_own_and_what_is_loaded_is_compared(peer: Peer) -> None:
    assert peer.fill(3) == 3 and len(peer.saved) == 3
    assert peer.load() == 2.0
    assert peer.next_chain(2) == obey.keys_of(1, 2)
    assert [peer.next_chain(1) for _ in range(3)] == [obey.keys_of(n, 1) for n in (2, 3, 1)]
    peer.wrong = 2
    peer.memory[:1] = bytes([peer.memory[0] ^ 1])
    peer.memory[peer.half : peer.half + 4096] = peer.memory[:4096]
    peer.compare(1)
    with pytest.raises(obey.Failed, match="wrong bytes"):
        peer.compare(2)
    with pytest.raises(obey.Failed, match="wrong bytes"):
        peer.load()
    with pytest.raises(obey.Failed, match="nothing without"):
        peer.stopped(1, 1.0)


def test_threads_share_the_lookups() -> None:
    assert obey.in_threads(lambda: 1.0, 5, 1) == [1.0] * 5
    assert len(obey.in_threads(lambda: 1.0, 8, 4)) == 8


def contestant(code: str, folder: Path) -> contestants.Handle:
    """A process that answers as this code does."""
    said = folder / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    return contestants.Handle("someone", process, said)


def test_a_contestant_that_cannot_do_it_says_why(tmp_path: Path) -> None:
    code = 'import sys; print(sys.stdin.readline() and \'{"failed": "no room"}\', flush=True)'
    handle = contestant(code, tmp_path)
    with pytest.raises(UserError, match="^someone: no room$"):
        handle.ask("save")
    with pytest.raises(UserError, match="^someone has ended: it said nothing$"):
        handle.ask("save")
    handle.end()


def test_of_a_contestant_that_ends_the_last_line_is_shown(tmp_path: Path) -> None:
    handle = contestant("raise SystemExit('first\\nlast word')", tmp_path)
    with pytest.raises(UserError, match="^someone has ended: last word$"):
        handle.answer()
    handle.end()


def test_the_lines_that_both_ends_speak(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    orders = [["fill", [2]], ["load", []], ["lookups", [1, 1, 1]]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(o) + "\n" for o in orders)))
    monkeypatch.setattr(sys, "argv", ["peer", str(SIZE.pool), str(SIZE.blocks), str(SIZE.block)])
    kept, standard = signal.getsignal(signal.SIGTERM), os.dup(1)
    peer = Peer()
    try:
        obey.main(lambda size, stack: peer)
    finally:
        os.dup2(standard, 1)
        os.close(standard)
        signal.signal(signal.SIGTERM, kept)
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    said = [{"answer": "ready"}, {"answer": 2}, {"answer": 2.0}, {"failed": "it finds nothing"}]
    assert answers == said
    assert not peer.saved, "it was closed"


def test_a_peer_that_is_not_there_has_a_line(tmp_path: Path) -> None:
    ours, *peers = contestants.entries(None, tmp_path)
    assert ours.missing() == "" and [entry.name for entry in peers] == list(contestants.PEERS)
    for entry in peers:
        line = f"{entry.name}: not installed (python -m perf.peers.install {entry.name})"
        assert entry.missing() == line
    with contestants.all_running(peers, SIZE) as (handles, lines):
        assert handles == [] and lines == [entry.missing() for entry in peers]


def test_the_other_version_is_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkout of PegaFlow"):
        contestants.entries(str(tmp_path))
    (tmp_path / "pegaflow").mkdir()
    (tmp_path / "pegaflow" / "__init__.py").touch()
    _, before = contestants.entries(str(tmp_path))
    assert (before.name, before.path) == ("before", (str(tmp_path),))


def test_every_peer_is_pinned() -> None:
    for peer in contestants.PEERS.values():
        assert all("==" in wanted for wanted in peer.requirements)


def test_a_peer_that_needs_another_environment_says_which(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^lmcache needs --over PYTHON: an environment with vLLM"):
        install.install(tmp_path, "lmcache", None)
    with pytest.raises(UserError, match="is no Python"):
        install.site(tmp_path / "python")
    assert install.site(Path(sys.executable)).endswith("site-packages")
    assert not list(tmp_path.iterdir())


def test_goals_of_lookups_beside_the_original() -> None:
    third, slow = [100e-6] * 99 + [200e-6], [200e-6] * 99 + [900e-6]
    original = [300e-6] * 100
    assert lookups.goal((128, 1), third, original, 0) == "p50 miss (< 0.33), p99 pass (< 1)"
    assert lookups.goal((128, 1), slow, original, 0) == "p50 miss (< 0.33), p99 pass (< 1)"
    assert lookups.goal((1024, 1), slow, original, 0) == "p50 pass (< 0.8)"
    assert lookups.goal((128, 64), slow, original, 100e-6) == "p50/alone 2.00 miss (< 1.25)"
    assert lookups.goal((128, 1), third, [], 0) == ""


def test_rows_of_lookups() -> None:
    ours_found = lookups.Lookups([100e-6] * 10, wall=1e-3)
    times = {"ours": ours_found, "original": lookups.Lookups([400e-6] * 10, wall=0.25e-3)}
    ours, original = lookups.rows((128, 16), times, 100e-6)
    assert ours[:7] == ["128", "16", "ours", "100", "100", "10,000", "0.25"]
    assert original[2:8] == ["original", "400", "400", "40,000", "1.00", ""]
    ours_found.turn(lambda: [1.0])
    assert len(ours_found.seconds) == 11 and ours_found.wall > 1e-3
    lost = {"times": [], "loads": 0, "failed": {"lookups": 3, "loads": 0}}
    assert lookups.stopped_row(128, lost, 1.0)[3:5] == ["none", "none"]
    kept = {"times": [100e-6] * 4, "loads": 2, "failed": {"lookups": 0, "loads": 1}}
    row = lookups.stopped_row(128, kept, 100e-6)
    assert row[3] == "100" and "0 lookups and 1 of 2 loads failed" in row[7]


def test_the_pool_holds_all_chains_and_the_leases_under_way() -> None:
    size = lookups.size_for(lookups.QUICK_CHAINS)
    blocks = size.pool // size.block
    assert blocks > lookups.QUICK_CHAINS * lookups.CHAIN
    assert max(keys * at_once for keys, at_once in lookups.CASES) * 2 < blocks


def test_rows_and_goals_of_copies() -> None:
    shape = Shape(1024, 1, 64 << 10)
    ours = Times(fresh=[0.026], full=[0.02], load=[0.010])
    original = Times(fresh=[0.01], full=[0.01], load=[0.011])
    said = copies.goals(shape, ours, original)
    assert said == "fresh pass (< 1.3), save miss (< 1.2), load pass (< 1)"
    assert copies.goals(Shape(64, 1, 1 << 20), ours, None) == "fresh pass (< 1.3)"
    limit = Times(full=[0.005], load=[0.005])
    times = {"ours": ours, "original": original, "memcpy": limit, "gone": Times()}
    rows = copies.rows(shape, times)
    assert [row[1] for row in rows] == ["ours", "original", "memcpy"]
    assert rows[0][2:10] == ["26.0", "20.0", "10.0", "1.30", "3.4", "6.7", "2.00", "0.91"]
    assert rows[2][2:6] == ["", "5.0", "5.0", ""]


def test_the_kernel_moves_the_pieces_of_another_process() -> None:
    with bare.across(4096, 3000) as across:
        assert across.out() > 0 and across.back() > 0
    rows = bare.vectors(1 << 20, 4096, 3)
    assert rows.tolist() == [[(1 << 20) + n * 4096, 4096] for n in range(3)]
    assert rows.dtype == np.uint64


def test_the_originals_memory_is_registered_by_a_pickle_that_names_our_class() -> None:
    names = [
        (operation.name, argument)
        for operation, argument, _ in pickletools.genops(original.wrapper("/a/file", 4096))
    ]
    assert ("GLOBAL", "perf.peers.host Shared") in names
    assert ("UNICODE", "/a/file") in names and ("INT", 4096) in names


def test_what_stands_in_for_a_tensor_is_the_engines_file(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(mmap.PAGESIZE))
    tensor = Shared(str(path), mmap.PAGESIZE).to_tensor()
    tensor.mapped[:4] = b"here"
    assert path.read_bytes()[:4] == b"here"
    assert tensor.data_ptr() and tensor.untyped_storage().nbytes() == mmap.PAGESIZE
