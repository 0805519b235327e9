"""What a trace is: its blocks, their keys, and the bundled one."""

from pathlib import Path

from pegaflow.replay.ceiling import infinite
from pegaflow.replay.reading import read
from pegaflow.replay.trace import BUNDLED, KEY_BYTES, Saved, block_key


def test_keys_differ_and_stay() -> None:
    keys = {block_key(block) for block in range(1000)}
    assert len(keys) == 1000 and {len(key) for key in keys} == {KEY_BYTES}
    assert block_key(7).hex().startswith("be7d6b32bad2060b")


def test_the_bundled_slice_is_what_its_readme_says() -> None:
    trace = read([BUNDLED])
    assert len(trace) == 1500
    score = infinite(trace)
    assert (score.asked, score.missed) == (40204, 29150)
    packed = BUNDLED.read_bytes()
    assert len(packed) < 150_000
    assert packed[3] & 8 == 0 and packed[4:8] == bytes(4)  # no file name, no time: reproducible


def test_another_process_gets_the_same_keys(tmp_path: Path) -> None:
    trace = read([BUNDLED])
    trace.save(tmp_path)
    saved = Saved(tmp_path)
    for request in trace:
        keys = [block_key(trace.keys[block]) for block in request.blocks]
        assert saved.block_keys(trace.ends[request.index]) == keys
        assert len(keys) == trace.depths[request.index]


def test_a_block_has_one_key_in_every_slice_of_a_trace() -> None:
    """So replays of one name find each other's blocks."""
    whole = read([BUNDLED])
    again = read([BUNDLED])
    assert list(whole.keys) == list(again.keys)
