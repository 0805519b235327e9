"""Reading a trace: what counts as a block, and what is refused rather than misread."""

import json
from pathlib import Path

import pytest

from pegaflow.replay import reading
from pegaflow.replay.ceiling import Score, infinite
from pegaflow.replay.errors import TraceError
from pegaflow.replay.reading import Options, read
from pegaflow.replay.scopes import IdScope
from pegaflow.replay.trace import BUNDLED

from .counting import exact, read_one, score


def line(tokens: int, ids: list[object], **more: object) -> str:
    fields = {"timestamp": 5, "input_length": tokens, "output_length": 7, "hash_ids": ids}
    return json.dumps(fields | more) + "\n"


def file(tmp_path: Path, *lines: str, name: str = "chat") -> Path:
    path = tmp_path / name
    path.write_text("".join(lines))
    return path


def test_only_full_blocks_count(tmp_path: Path) -> None:
    trace = read_one(file(tmp_path, line(1500, [4, 5, 6])))
    assert [len(request.blocks) for request in trace] == [2]


def test_two_rows_of_blocks_of_16_tokens(tmp_path: Path) -> None:
    """One of 64 blocks is shared; with blocks of 512 it would be one of two."""
    first, second = list(range(32)), [0, *range(100, 131)]
    path = file(tmp_path, line(512, [*first]), line(512, [*second]))
    assert score(path) == Score(64, 1)
    assert score(path, block_tokens=16) == Score(64, 1)
    with pytest.raises(TraceError, match="chat:1: 32 block ids for 512 tokens, where .* make 1"):
        read_one(path, block_tokens=512)
    with pytest.raises(
        TraceError, match="chat:3: 1 block id for 512 tokens, while .*chat:1 has 32"
    ):
        read_one(file(tmp_path, line(512, [*first]), line(512, [*second]), line(512, [7])))


def test_blank_lines_are_passed_over_and_a_limit_ends_the_reading(tmp_path: Path) -> None:
    path = file(tmp_path, line(512, [1]), "\n", line(512, [2]), "not looked at")
    assert len(read_one(path, limit=2)) == 2
    assert len(read([path, path], Options(limit=2))) == 2
    assert len(read([BUNDLED], Options(limit=40))) == 40


def test_no_field_of_time_matters(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"timestamp": 0.0}, {"timestamp": 1.5e9}, {"delay": 3}, {}]
    rows.append({"created_time": None})
    lines = [json.dumps({"input_tokens": 512, "hash_ids": [1]} | row) + "\n" for row in rows]
    assert score(file(tmp_path, *lines)) == Score(5, 4)


IDS: list[list[object]] = [
    [1.0, 2.0],
    [2**63, 2**64 - 1],
    [2**64, 2**200],
    [-1, -(2**63)],
    ["0xBEEF", "cafe"],
    ["b0", 7],
    ["\ud800", "x\n"],
]


@pytest.mark.parametrize("ids", IDS)
def test_ids_of_any_kind(ids: list[object], tmp_path: Path) -> None:
    path = file(tmp_path, line(1024, ids), line(1024, ids), line(1024, [ids[0], 12345]))
    assert score(path) == Score(6, 3)


def test_ids_that_differ_are_different(tmp_path: Path) -> None:
    alike = [1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -1, "1", "ff", "0xff", "-1"]
    path = file(tmp_path, *(line(512, [one]) for one in alike))
    assert score(path) == Score(len(alike), 0)
    path = file(tmp_path, line(512, ["ABC"]), line(512, ["abc"]), line(512, [3]), line(512, [3.0]))
    assert score(path) == Score(4, 2)


@pytest.mark.parametrize("broken", [[1.5], [True], [None], [[1]], [""], [{}], ["x", None]])
def test_ids_that_are_none_are_refused(broken: list[object], tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="chat:2: a block id is a whole number or a text, and not"):
        read_one(file(tmp_path, line(512, [1]), line(512 * len(broken), broken)))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("{", "Expecting property name"),
        ("5", "must be a JSON object"),
        ('{"input_length": "many", "hash_ids": []}', "'input_length' must be a whole number"),
        ('{"hash_ids": [1]}', "no field 'input_length'"),
        ('{"input_length": 1e300, "hash_ids": [1]}', "'input_length' must be a whole number"),
        ('{"input_length": NaN, "hash_ids": [1]}', "'input_length' must be a whole number"),
        (f'{{"input_length": {10**50}, "hash_ids": [1]}}', "'input_length' must be a whole"),
        (line(512, [1]).replace("[1]", "1"), "'hash_ids' must be a list"),
        (
            line(1024, [1]),
            "1 block id for 1024 tokens, where blocks of 512 tokens (--block-tokens) make 2",
        ),
    ],
)
def test_errors_name_the_line(broken: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="chat:2: ") as caught:
        read_one(file(tmp_path, line(512, [1]), broken), block_tokens=512)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_replay_is_said(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="chat has no request with a full block of 512 tokens"):
        read_one(file(tmp_path, line(5, [1])))
    with pytest.raises(TraceError, match="chat is empty"):
        read_one(file(tmp_path))
    with pytest.raises(TraceError, match="chat has no request"):
        read_one(file(tmp_path), format="weka")


TWICE = ([0, 1, 2], [0, 3, 4, 5], [1, 4, 6])  # AIPerf's own example: 1 and 4 stand at two places


def test_one_parent_per_id_is_checked_and_not_promised(tmp_path: Path) -> None:
    rows = [line(512 * len(ids), [*ids]) for ids in TWICE]
    path = file(tmp_path, *rows)
    with pytest.raises(TraceError, match="chat:3: block id 1 stands after other .*chat:1,") as said:
        read_one(path)
    assert "--ids file" in str(said.value) and "--ids global" in str(said.value)
    wanted = exact(("", ids) for ids in TWICE)
    assert score(path, ids=IdScope.GLOBAL) == wanted == Score(10, 1)
    one = file(tmp_path, line(1024, [3, 3]))
    with pytest.raises(TraceError, match="block id 3 stands after other ids than at"):
        read_one(one)


def test_the_check_looks_across_files_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file(tmp_path, line(1024, [7, 8]), line(1536, [7, 8, 9]), name="one")
    second = file(tmp_path, line(1024, [7, 9]), name="two")
    for batch in (0, reading.BATCH_IDS):
        monkeypatch.setattr(reading, "BATCH_IDS", batch)
        with pytest.raises(TraceError, match="two:1: block id 9 .*one:2"):
            read([first, second])
    assert infinite(read([first, second], Options(ids=IdScope.FILE))) == Score(7, 2)
    assert infinite(read([first, second], Options(ids=IdScope.GLOBAL))) == Score(7, 3)


def test_files_that_each_count_from_the_beginning_are_not_taken_for_one(tmp_path: Path) -> None:
    """No id has two pasts here: only that every file counts gives it away."""
    files = [
        file(tmp_path, *(line(512 * n, [*range(n)]) for n in range(2, 9 + k)), name=f"f{k}")
        for k in range(3)
    ]
    with pytest.raises(
        TraceError, match="3 files: the block ids of each file count up .*--ids file"
    ):
        read(files)
    each = [(k, range(n)) for k in range(3) for n in range(2, 9 + k)]
    assert infinite(read(files, Options(ids=IdScope.FILE))) == exact(each)
    assert infinite(read(files, Options(ids=IdScope.GLOBAL))) == exact(("", ids) for _, ids in each)
    assert infinite(read(files[:1])).hit  # one file alone proves nothing


def test_conversations_that_each_count_from_the_beginning(tmp_path: Path) -> None:
    each = [(k, [*range(1, n)]) for k in range(3) for n in range(4, 9 + k)]
    rows = [line(512 * len(ids), [*ids], session_id=f"s{k}") for k, ids in each]
    path = file(tmp_path, *rows)
    with pytest.raises(TraceError, match="the block ids of each conversation count up"):
        read_one(path)
    assert score(path, ids=IdScope.CONVERSATION) == exact(each)
    with pytest.raises(TraceError, match="chat:1: --ids conversation, and this row names none"):
        read_one(file(tmp_path, line(512, [1])), ids=IdScope.CONVERSATION)


def test_files_of_numbers_of_their_own_are_not_taken_for_one_in_any_format(tmp_path: Path) -> None:
    """Bailian numbers the hashes of each file in order."""
    files = []
    for name, prompts in {"a": ([0, 1, 2], [3, 1, 4]), "b": ([0, 1, 2, 3], [4, 5, 0])}.items():
        rows = [{"chat_id": n, "input_length": 16 * len(ids), "hash_ids": ids}
                for n, ids in enumerate(prompts)]  # fmt: skip
        files.append(file(tmp_path, *(json.dumps(row) + "\n" for row in rows), name=name))
    with pytest.raises(TraceError, match="2 files: the block ids of each file count up"):
        read(files)
    assert infinite(read(files, Options(ids=IdScope.FILE))) == Score(13, 0)


def test_lines_for_people_are_lines_whatever_is_in_the_trace(tmp_path: Path) -> None:
    rows = (line(1024, [1, "a\nb" * 50]), line(512, ["a\nb" * 50]))
    path = file(tmp_path, *rows, name=f"a\nb{chr(0xDC80)}")
    with pytest.raises(TraceError, match="stands after other ids") as caught:
        read_one(path)
    line_said = str(caught.value)
    assert line_said.isprintable() and len(line_said) < 600
    line_said.encode()


def test_a_shared_head_alone_is_no_sign_of_that(tmp_path: Path) -> None:
    """A system prompt is shared by all; whoever numbers blocks for all gives new ones after it."""
    rows = [([0, 1, 2, 3], "a"), ([0, 1, 2, 9, 10], "b"), ([0, 1, 2, 3, 4], "a"), ([0, 1, 2], "c")]
    path = file(tmp_path, *(line(512 * len(ids), [*ids], session_id=s) for ids, s in rows))
    assert score(path) == exact(("", ids) for ids, _ in rows)
