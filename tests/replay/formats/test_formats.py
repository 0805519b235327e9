"""Each format, in rows as its own tools write them, against an exact count by brute force."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from pegaflow.replay.ceiling import infinite
from pegaflow.replay.errors import TraceError
from pegaflow.replay.formats import FORMATS
from pegaflow.replay.reading import read
from pegaflow.replay.scopes import IdScope
from pegaflow.replay.trace import BUNDLED

from ..counting import Prompt, exact, read_one, score


def write(path: Path, values: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


class Growing:
    """Conversations whose prompts grow, branch and share a head: token sequences, hashed by block.

    `prompts` are the exact blocks; `row` the ids that a tracer would have written.
    """

    def __init__(self, seed: int, size: int, partial: bool) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.partial = partial  # whether an id stands for a part of a block too
        self.numbers: dict[tuple[int, ...], int] = {}
        self.head = self.text(3 * size + 1)

    def text(self, tokens: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(1 << 30) for _ in range(tokens))

    def conversations(self, count: int) -> list[list[tuple[int, ...]]]:
        """The prompts of each, as tokens."""
        found = []
        for _ in range(count):
            prompt = self.head + self.text(self.random.randrange(1, 4 * self.size))
            turns = [prompt]
            for _ in range(self.random.randrange(5)):
                kept = self.random.choice((len(prompt), len(prompt), len(self.head)))
                prompt = prompt[:kept] + self.text(self.random.randrange(1, 3 * self.size))
                turns.append(prompt)
            found.append(turns)
        return found

    def full(self, prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Its full blocks by content."""
        count = len(prompt) // self.size
        return [prompt[n * self.size : (n + 1) * self.size] for n in range(count)]

    def prefixes(self, prompt: tuple[int, ...]) -> list[int]:
        """Ids of whole prefixes, numbered as they come."""
        ends = list(range(self.size, len(prompt) + 1, self.size))
        if self.partial and len(prompt) % self.size:
            ends.append(len(prompt))
        return [self.numbers.setdefault(prompt[:end], len(self.numbers)) for end in ends]

    def contents(self, prompt: tuple[int, ...]) -> list[int]:
        """Ids of single blocks, and of the part of one at the end."""
        blocks = self.full(prompt)
        if rest := prompt[len(blocks) * self.size :]:
            blocks.append(rest)
        return [self.numbers.setdefault(one, len(self.numbers)) for one in blocks]


def mixed(conversations: list[list[tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    """Turns of several conversations taking turns: (conversation, prompt)."""
    found = []
    for turn in range(max(map(len, conversations))):
        for number, turns in enumerate(conversations):
            if turn < len(turns):
                found.append((number, turns[turn]))
    return found


def test_mooncakes_own_slice() -> None:
    rows = [json.loads(line) for line in gzip.open(BUNDLED)]
    prompts: list[Prompt] = [("", r["hash_ids"][: r["input_length"] // 512]) for r in rows]
    assert infinite(read([BUNDLED])) == exact(prompts)


@pytest.mark.parametrize(("size", "partial"), [(512, True), (16, True), (64, False), (128, True)])
def test_mooncake_with_blocks_of_any_size(tmp_path: Path, size: int, partial: bool) -> None:
    source = Growing(1, size, partial)
    turns = mixed(source.conversations(20))
    rows = [
        {"timestamp": 27.0 * n, "input_length": len(p), "output_length": 5} for n, (_, p) in
        enumerate(turns)
    ]  # fmt: skip
    for row, (_, prompt) in zip(rows, turns, strict=True):
        row["hash_ids"] = source.prefixes(prompt)  # type: ignore[assignment]
    found = read_one(write(tmp_path / "moon", rows))
    assert infinite(found) == exact(("", source.full(prompt)) for _, prompt in turns)
    assert infinite(found).hit and f"Mooncake, {size} tokens a block" in found.about


@pytest.mark.parametrize("header", [False, True])
def test_dynamo(tmp_path: Path, header: bool) -> None:
    """Other names, sessions and delays; or a header, and ids that count within a play."""
    source = Growing(2, 32, True)
    values: list[dict[str, object]] = []
    prompts: list[Prompt] = []
    if header:
        values.append(
            {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 32,
             "hash_id_scope": "local", "source": {"format": "weka", "digest": "d"}}
        )  # fmt: skip
    for number, turns in enumerate(source.conversations(15)):
        if header:
            source.numbers.clear()
        for turn, prompt in enumerate(turns):
            ids = source.prefixes(prompt)
            row = {"session_id": f"s{number}", "output_tokens": 3, "hash_ids": ids}
            row |= {"input_tokens": len(prompt), "priority": None}
            timing: dict[str, object] = {"delay_ms": 12.5} if turn else {"created_time": 0.0}
            if header:
                timing = {"request_id": f"{number}.{turn}", "play_id": f"p{number}", "model": "m"}
                timing["not_before_ms"] = 0.5
            values.append(row | timing)
            prompts.append((number if header else "", source.full(prompt)))
    found = read_one(write(tmp_path / "dynamo", values))
    assert infinite(found) == exact(prompts) and infinite(found).hit
    assert "32 tokens a block" in found.about


def test_dynamos_recorded_requests(tmp_path: Path) -> None:
    source = Growing(3, 64, True)
    turns = mixed(source.conversations(10))
    values: list[dict[str, object]] = []
    for number, prompt in turns:
        hashes = [(2**64 - 1) - one for one in source.prefixes(prompt)]
        replay = {"trace_block_size": 64, "input_length": len(prompt)}
        request = {"request_id": "r", "replay": replay | {"input_sequence_hashes": hashes}}
        event = {"schema": "dynamo.request.trace.v1", "event_time_unix_ms": 1}
        context = {"session_id": f"s{number}"}
        values.append({"event": event | {"event_type": "tool_end", "tool": {}}})
        values.append({"event": event | {"event_type": "request_end", "request": request,
                                         "agent_context": context}})  # fmt: skip
    path = write(tmp_path / "recorded", values)
    assert score(path) == exact(("", source.full(prompt)) for _, prompt in turns)


def test_bailian(tmp_path: Path) -> None:
    """Ids of single blocks: the same text at two places has one id, and is two blocks."""
    source = Growing(4, 16, True)
    twice = source.text(16)
    conversations = source.conversations(20)
    conversations += [[twice + source.text(40)], [source.text(16) + twice + source.text(8)]]
    conversations += [[twice + twice + twice], [twice + source.text(16)]]
    turns = mixed(conversations)
    chats: dict[int, int] = {}
    rows = []
    for chat, (number, prompt) in enumerate(turns):
        parent = chats.get(number, -1)
        chats[number] = chat
        rows.append(
            {"chat_id": chat, "parent_chat_id": parent, "timestamp": 61.114 + chat,
             "input_length": len(prompt), "output_length": 132, "type": "text",
             "turn": 1, "hash_ids": source.contents(prompt)}
        )  # fmt: skip
    path = write(tmp_path / "qwen", rows)
    assert score(path) == exact(("", source.full(prompt)) for _, prompt in turns)
    each = exact((number, source.full(prompt)) for number, prompt in turns)
    assert score(path, ids=IdScope.CONVERSATION) == each
    assert "Bailian, 16 tokens a block" in read_one(path).about


def weka(source: Growing, number: int, turns: list[tuple[int, ...]], scope: str) -> object:
    """A trace as kv-cache-tester has it; a subagent in the middle of every third."""
    if scope == "local":
        source.numbers.clear()
        source.numbers[()] = 0  # its ids begin with 1

    def request(t: float, prompt: tuple[int, ...]) -> dict[str, object]:
        return {
            **{"t": t, "type": "s", "model": "m", "in": len(prompt), "out": 9},
            **{"hash_ids": source.prefixes(prompt), "input_types": ["text"]},
            **{"output_types": ["text"], "stop": "", "api_time": 1.5, "think_time": 0.0},
        }

    requests: list[dict[str, object]] = [request(float(n), p) for n, p in enumerate(turns)]
    if number % 3 == 0 and len(requests) > 1:
        inner, requests[1:2] = requests[1:2], []
        agent: dict[str, object] = {"t": 0.5, "type": "subagent", "agent_id": "agent_001"}
        agent |= {"subagent_type": "Explore", "status": "completed", "models": ["m"]}
        agent |= {"requests": inner}
        requests.insert(1, agent)
    return {"id": f"trace_{number:04}", "models": ["m"], "block_size": source.size,
            "hash_id_scope": scope, "tool_tokens": 1, "system_tokens": 2,
            "requests": requests, "totals": {}}  # fmt: skip


@pytest.mark.parametrize("scope", ["local", "global"])
def test_weka(tmp_path: Path, scope: str) -> None:
    """A file each, all in one file on lines or not: ids count within a trace, or everywhere."""
    source = Growing(5, 64, False)
    conversations = source.conversations(12)
    traces = [weka(source, n, turns, scope) for n, turns in enumerate(conversations)]
    wanted = exact(
        (n if scope == "local" else "", source.full(prompt))
        for n, turns in enumerate(conversations)
        for prompt in turns
    )
    files = [write(tmp_path / f"{n:02}.json", [one]) for n, one in enumerate(traces)]
    assert infinite(read(files)) == wanted and wanted.hit
    assert score(write(tmp_path / "lines", traces)) == wanted
    pretty = tmp_path / "pretty"
    pretty.write_text("\n".join(json.dumps(one, indent=1) for one in traces))
    assert score(pretty) == wanted
    listed = tmp_path / "listed"
    listed.write_text(json.dumps(traces, indent=2))
    assert score(listed) == wanted
    assert f"Weka, {source.size} tokens a block" in read(files).about


def test_ids_that_begin_anew_are_not_shared_by_mistake(tmp_path: Path) -> None:
    """As one scope the same files score far more than is true."""
    source = Growing(6, 64, False)
    conversations = source.conversations(12)
    traces = [weka(source, n, turns, "local") for n, turns in enumerate(conversations)]
    path = write(tmp_path / "all", traces)
    assert score(path, ids=IdScope.GLOBAL).rate > score(path).rate + 0.05


def test_aiperf_turns_hold_what_is_new(tmp_path: Path) -> None:
    """By brute force: a prompt is the list of its tokens, and answers are never alike."""
    chance = random.Random(7)
    size, first = 64, {"input_length": 200, "output_length": 30, "hash_ids": [0, 1, 2, 3]}
    rows: list[dict[str, object]] = []
    prompts: list[Prompt] = []
    for number in range(9):
        shared = chance.randrange(4)
        ids = [n if n < shared else 100 * number + n for n in range(1, 5)]
        rows.append(first | {"session_id": f"s{number}", "hash_ids": ids, "timestamp": 0})
        tokens = [f"{one} {n}" for one in ids for n in range(size)][:200]
        prompts.append(("", blocks(tokens, size)))
        tokens += [f"answer {number} {n}" for n in range(30)]
        for turn in range(chance.randrange(4)):
            new = chance.randrange(1, 300)
            ids = [10_000 + 100 * number + 10 * turn + n for n in range(-(-new // size))]
            rows.append({"session_id": f"s{number}", "delay": 2.5, "input_length": new,
                         "output_length": 7, "hash_ids": ids})  # fmt: skip
            tokens += [f"new {number} {turn} {n}" for n in range(new)]
            prompts.append(("", blocks(tokens, size)))
            tokens += [f"answer {number} {turn} {n}" for n in range(7)]
    path = write(tmp_path / "deltas", rows)
    assert score(path, format="aiperf", block_tokens=size) == exact(prompts)
    with pytest.raises(
        TraceError, match="no later turn of a session begins as its first: .*aiperf"
    ):
        read_one(path)
    alone = score(path, format="mooncake", block_tokens=size)
    assert alone.asked < exact(prompts).asked


def test_an_answer_too_long_is_no_prompt(tmp_path: Path) -> None:
    row = {"session_id": "s", "input_length": 512, "output_length": 1 << 26, "hash_ids": [1]}
    with pytest.raises(TraceError, match="long:2: with all before it a prompt of "):
        read_one(write(tmp_path / "long", [row, row]), format="aiperf")
    with pytest.raises(
        TraceError, match=r"512 tokens \(as is usual; --block-tokens says otherwise"
    ):
        read_one(write(tmp_path / "other", [row | {"hash_ids": [1, 2]}]), format="aiperf")


def test_an_aiperf_session_may_hold_whole_prompts(tmp_path: Path) -> None:
    row = {"session_id": "s", "input_length": 1024, "output_length": 3, "hash_ids": [1, 2]}
    row["context_mode"] = "message_array_with_responses"
    path = write(tmp_path / "whole", [row, row | {"input_length": 1536, "hash_ids": [1, 2, 3]}])
    assert score(path, format="aiperf") == exact([("", [1, 2]), ("", [1, 2, 3])])


def blocks(tokens: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[n * size : (n + 1) * size]) for n in range(len(tokens) // size)]


FOREIGN = {
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4808,10\n": "Azure LLM inference",
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n": "a BurstGPT trace",
    "a,b,c\n1,2,3\n": "a table that begins 'a,b,c'",
    '{"format": "satf", "sessions": []}': "a SATF trace: SATF is not read yet",
    '{"num_turns": 2, "assistant_response_length": [1, 2]}': "an Applied Compute agentic trace",
    '{"session_id": "s", "round_index": 0, "prefix_tokens": 3}': "a TraceLab trace",
    '[{"id": "x", "conversations": []}]': "ShareGPT's conversations",
    '{"session_id": "s", "turns": [{"text": "hello"}]}': "a file of conversations",
    '{"messages": [{"role": "user"}]}': "a file of chat requests",
    '{"text_input": "hello", "output_length": 4}': "a file of prompts",
    '{"chat_id": 1, "input_length": 5}': "a Bailian trace without hash_ids",
    '{"input_length": 5, "output_length": 4}': "a trace without hash_ids",
    '{"what": "ever"}': "no trace of a known format (aiperf, bailian, dynamo, mooncake, weka)",
    "hello\n": "no trace of a known format",
    "17\n": "no trace of a known format",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_what_cannot_be_replayed_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"foreign:1(, item 1)?: this is ") as caught:
        read_one(path)
    assert FOREIGN[text] in str(caught.value)


def test_a_format_asked_for_by_mistake_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "w", [{"block_size": 64, "requests": [{"in": 64, "hash_ids": [1]}]}])
    with pytest.raises(TraceError, match="w:1: this is a Weka trace, and --format says mooncake"):
        read_one(path, format="mooncake")
    (tmp_path / "azure").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(TraceError, match="azure:1: this is the Azure LLM inference trace"):
        read_one(tmp_path / "azure", format="bailian")


def test_rows_without_ids_are_left_out_and_said(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 1024, "output_length": 1}
    some = [row, row | {"hash_ids": [1, 2]}, row | {"hash_ids": None}, row | {"hash_ids": [1, 2]}]
    path = write(tmp_path / "some", some)
    found = read_one(path)
    assert infinite(found) == exact([("", [1, 2])] * 2)
    assert f"2 rows left out without hash_ids, the first at {path}:1" in found.about
    with pytest.raises(TraceError, match="none:1: no row has hash_ids.* cannot be replayed"):
        read_one(write(tmp_path / "none", [row, row]), format="mooncake")


def test_files_of_two_kinds_are_not_one_trace(tmp_path: Path) -> None:
    moon = write(tmp_path / "moon", [{"input_length": 512, "hash_ids": [5]}])
    qwen = write(tmp_path / "qwen", [{"chat_id": 1, "input_length": 16, "hash_ids": [5]}])
    with pytest.raises(TraceError, match="qwen is a Bailian trace, and the file before it is not"):
        read([moon, qwen])
    small, large = ({"block_size": n, "requests": [{"in": n, "hash_ids": [1]}]} for n in (16, 64))
    files = [write(tmp_path / "16", [small]), write(tmp_path / "64", [large])]
    with pytest.raises(TraceError, match="64:1, request 1: blocks of 64 tokens, and of 16"):
        read(files)


BROKEN = [
    ("weka", {"requests": [], "block_size": 0}, "'block_size' must be a whole number from 1"),
    ("weka", {"requests": 5, "block_size": 16}, "'block_size' and 'requests'"),
    ("weka", {"requests": [5], "block_size": 16}, "request 1: a request must be a JSON object"),
    ("weka", {"requests": [], "block_size": 16, "hash_id_scope": "x"}, "'local' or 'global'"),
    ("weka", {"requests": [{"type": "subagent"}], "block_size": 1}, "'requests' must be a list"),
    ("bailian", {"chat_id": 1, "input_length": "x", "hash_ids": []}, "'input_length' must be"),
    ("aiperf", {"session_id": "s", "input_length": 5, "hash_ids": [1]}, "no field 'output_length'"),
    ("dynamo", {"input_length": 5, "hash_ids": 7}, "'hash_ids' must be a list of block ids"),
]


@pytest.mark.parametrize(("format", "value", "why"), BROKEN)
def test_broken_values_are_named(format: str, value: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="broken:1") as caught:
        read_one(write(tmp_path / "broken", [value]), format=format)
    assert why in str(caught.value)


def test_every_format_can_be_asked_for() -> None:
    assert sorted(FORMATS) == ["aiperf", "bailian", "dynamo", "mooncake", "weka"]
    assert all(name == one.name for name, one in FORMATS.items())
