"""Reading traces: what counts as a block, and what a broken line is told."""

import gzip
import json
from pathlib import Path

import pytest

from pegaflow.replay.trace import (
    BUNDLED,
    KEY_BYTES,
    TraceError,
    block_key,
    count_blocks,
    parse,
    read,
)


def line(tokens: int, ids: list[int]) -> str:
    fields = {"timestamp": 5, "input_length": tokens, "output_length": 7, "hash_ids": ids}
    return json.dumps(fields)


def test_only_full_blocks_count() -> None:
    (request,) = parse([line(1500, [4, 5, 6])])
    assert request.blocks == (4, 5)
    assert (request.index, request.timestamp_ms) == (0, 5)
    assert (request.input_tokens, request.output_tokens) == (1500, 7)


def test_blank_lines_take_no_index_and_a_limit_ends_the_reading() -> None:
    lines = [line(512, [1]), "\n", line(512, [2]), "not looked at"]
    assert [r.index for r in parse(lines, limit=2)] == [0, 1]


def test_plain_and_packed_files_read_the_same(tmp_path: Path) -> None:
    text = line(1024, [1, 2]) + "\n" + line(512, [1]) + "\n"
    (tmp_path / "plain").write_text(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "plain") == read(tmp_path / "packed")
    assert count_blocks(read(tmp_path / "plain")) == (3, 2)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be a JSON object"),
        ('{"input_length": "many"}', "'input_length' must be a whole number"),
        (line(512, [1]).replace("hash_ids", "ids"), "'hash_ids' must be a list"),
        (line(1024, [1]), "1 hash_ids for 2 full blocks"),
        (line(512, [-1]), "must hold whole numbers"),
        (line(512, [2**63]), "must hold whole numbers"),
        (line(512, [1]).replace("timestamp", "time"), "'timestamp' must be a whole number"),
    ],
)
def test_errors_name_the_line(broken: str, why: str) -> None:
    with pytest.raises(TraceError, match="^chat:2: .*") as caught:
        list(parse([line(512, [1]), broken], "chat"))
    assert why in str(caught.value)


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read(tmp_path / "none")
    (tmp_path / "cut").write_bytes(gzip.compress(line(512, [1]).encode())[:-9])
    with pytest.raises(TraceError, match="cut: "):
        read(tmp_path / "cut")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    with pytest.raises(TraceError, match="binary: "):
        read(tmp_path / "binary")


def test_keys_differ_and_stay() -> None:
    keys = {block_key(block) for block in range(1000)}
    assert len(keys) == 1000 and {len(key) for key in keys} == {KEY_BYTES}
    assert block_key(7).hex().startswith("be7d6b32bad2060b")


def test_the_bundled_slice_is_what_its_readme_says() -> None:
    requests = read(BUNDLED)
    assert len(requests) == 1500
    assert count_blocks(requests) == (40204, 29150)
    packed = BUNDLED.read_bytes()
    assert len(packed) < 150_000
    assert packed[3] & 8 == 0 and packed[4:8] == bytes(4)  # no file name, no time: reproducible
