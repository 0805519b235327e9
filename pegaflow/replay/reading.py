"""From files to a trace, whatever people have: see `read`.

One pass over the files, so that pipes will do. formats gives rows, fitting finds the block size,
tree keeps the blocks, and this module joins them and guards against reading a trace wrongly without
a word. What it refuses, with the place and the flag that decides:

- rows whose numbers of ids and tokens no block size explains (`--block-tokens`);
- ids that are said to name whole prefixes, and stand after other ids than before (`--ids`);
- ids that count up from the beginning in each of several files or conversations (`--ids`);
- sessions of which no later turn begins like the first one (`--format`).

Memory is bounded by the different blocks (`TREE_BYTES_PER_BLOCK`) and by the requests, not by the
ids that are read; besides, `BATCH_IDS` ids wait, and one value of the file is held parsed, which in
a Weka trace is one conversation.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from pegaflow.replay.formats.base import TOKENS_MAX
from pegaflow.wire.units import Count

from . import fitting, formats, source
from .errors import TraceError
from .formats import AUTO, Format, Row
from .guards import Anew, Turns
from .scopes import IdScope
from .trace import Trace
from .tree import NONE, Clash, Keys, Prompt, Tree, salt
from .words import count

BATCH_IDS: Count = 1 << 16
"""So many ids are put into the tree at a time: many enough for vector operations to pay."""

LOOK_VALUES: Count = 100
"""So many values of a file are looked at for one that tells its format."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a trace."""

    format: str = AUTO  # a name in formats.FORMATS
    block_tokens: int | None = None  # None: what the files say, or what fits
    ids: IdScope = IdScope.AUTO  # where an id means the same block
    limit: int | None = None  # only so many requests


_DEFAULT = Options()


def read(paths: Sequence[Path], options: Options = _DEFAULT) -> Trace:
    """Read one trace, or several files as one, in this order; `-` is standard input.

    Raises:
        TraceError: one line that says where it is wrong, or what is to be decided.
    """
    reading = _Reading(options)
    for file in paths:
        if not reading.is_full:
            reading.file(file)
    return reading.trace()


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation of which later turns give only what is new."""

    turns: int = 0
    tokens: int = 0  # of all turns and answers so far
    end: int = NONE  # its last full block
    depth: int = 0


@dataclass(slots=True)
class _Reading:
    """A trace under way."""

    options: Options
    tree: Tree = field(default_factory=Tree)
    fit: fitting.Fit = field(default_factory=fitting.Fit)
    anew: Anew = field(default_factory=Anew)
    turns: Turns = field(default_factory=Turns)
    talks: dict[tuple[str, str], _Talk] = field(default_factory=dict)
    waiting: list[tuple[Row, Prompt]] = field(default_factory=list)  # to be put into the tree
    waiting_ids: int = 0
    ends: array[int] = field(default_factory=lambda: array("i"))
    depths: array[int] = field(default_factory=lambda: array("I"))  # ids, full blocks at the end
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    wheres: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the files
    format: Format | None = None
    size: int | None = None  # of a block, if it was said
    said: str = ""  # who said it
    is_local: bool = False
    left_out: int = 0  # rows without ids
    left_out_where: str = ""

    def __post_init__(self) -> None:
        if self.options.block_tokens is not None:
            self.size, self.said = self.options.block_tokens, "--block-tokens"

    @property
    def is_full(self) -> bool:
        return len(self.wheres) == self.options.limit

    def file(self, file: Path) -> None:
        name = source.shown(file)
        self.names.append(name)
        with source.opened(file) as values:
            for row in self._rows(values, name):
                if row.ids is None:
                    self.left_out += 1
                    self.left_out_where = self.left_out_where or row.where
                    continue
                self._row(row, row.ids, name)
                if self.is_full:
                    break
        self._flush()

    def trace(self) -> Trace:
        """The trace, when all files are read."""
        name = self.names[0] if len(self.names) == 1 else f"{len(self.names)} files"
        if self.left_out and not self.ends:
            raise TraceError(
                f"{self.left_out_where}: no row has hash_ids, so nothing says which prompts share "
                f"a prefix: this cannot be replayed"
            )
        if self.format is None or not self.ends:
            raise TraceError(f"{name} has no request")
        self._verdicts(name)
        size = self.size or self.fit.size(name, self.format.usual)
        self.tree.drop_tables()
        for index, (end, depth) in enumerate(zip(self.ends, self.depths, strict=True)):
            full = min(depth, self.tokens[index] // size)
            self.ends[index] = self.tree.up(end, depth - full)
            self.depths[index] = full
        if not any(self.depths):
            raise TraceError(f"{name} has no request with a full block of {count(size, 'token')}")
        return Trace(self.tree, self.ends, self.depths, self._about(self.format, size))

    def _rows(self, values: Iterator[source.Value], name: str) -> Iterator[Row]:
        """The rows of a file, in the format that was asked for or that it looks like."""
        seen = list(itertools.islice(values, 1))
        if self.options.format != AUTO:
            self.format = formats.FORMATS[self.options.format]
            if seen and (why := formats.mistaken(seen[0], self.format)):
                raise TraceError(why)
            return self.format.rows(itertools.chain(seen, values))
        if not seen:
            raise TraceError(f"{name} is empty")
        while (found := formats.recognized(seen[-1])) is None:
            more = list(itertools.islice(values, 1)) if len(seen) < LOOK_VALUES else []
            if not more:
                raise TraceError(formats.unknown(seen[0]))
            seen += more
        if self.format not in (None, found):
            raise TraceError(f"{name} is a {found.title} trace, and the file before it is not")
        self.format = found
        return found.rows(itertools.chain(seen, values))

    def _row(self, row: Row, given: Sequence[object], file: str) -> None:
        assert self.format is not None
        ids = _numbers(row, given)
        self._known_size(row, self.format)
        if self.size is None:
            self.fit.add(row.where, row.tokens, len(ids))
        else:
            fitting.check(row.where, row.tokens, len(ids), self.size, said=self.said)
        scope = self._scope(row, file)
        if self.options.ids is IdScope.AUTO and not row.local:
            self.anew.add(file, row.conversation, ids)
        if self.options.format == AUTO and self.format.prefixed and row.conversation is not None:
            self.turns.add((file, row.conversation), ids)
        if row.delta and row.conversation is not None:
            self._turn(row, (file, row.conversation), scope, ids)
            return
        self._request(row, Prompt(scope, ids), row.tokens)
        if self.waiting_ids > BATCH_IDS:
            self._flush()

    def _turn(self, row: Row, talk: tuple[str, str], scope: int, ids: Keys) -> None:
        """A turn of which only the new part is given: its prompt begins with all before it."""
        assert self.size is not None
        before = self.talks.get(talk, _Talk())
        tokens = before.tokens + row.tokens
        if tokens > TOKENS_MAX:
            raise TraceError(f"{row.where}: with all before it a prompt of {tokens} tokens")
        depth = tokens // self.size
        if before.turns:  # its blocks follow an answer that no trace has: they are its own
            ids = np.arange(depth - before.depth, dtype=np.uint64)
            ids += np.uint64(salt(*talk, f"turn {before.turns}"))
        else:
            ids = ids[:depth]
        self._request(row, Prompt(scope, ids, before.end, before.depth), tokens)
        self._flush()
        self.talks[talk] = _Talk(before.turns + 1, tokens + row.output, self.ends[-1], depth)

    def _request(self, row: Row, prompt: Prompt, tokens: int) -> None:
        self.wheres.append(row.where)
        self.tokens.append(tokens)
        self.depths.append(prompt.depth + len(prompt.ids))
        self.waiting.append((row, prompt))
        self.waiting_ids += len(prompt.ids)

    def _flush(self) -> None:
        """Put the requests that wait into the tree."""
        waiting, self.waiting, self.waiting_ids = self.waiting, [], 0
        if not waiting or self.format is None:
            return
        # Ids are to name whole prefixes where the format says so and nobody has said otherwise.
        check = (
            self.options.ids is IdScope.AUTO and self.format.prefixed and not waiting[0][0].local
        )
        ends = self.tree.add(len(self.ends), [prompt for _, prompt in waiting], check)
        if isinstance(ends, Clash):
            self._refuse(waiting[ends.request - len(self.ends)][0], ends)
        self.ends.extend(ends.tolist())

    def _refuse(self, row: Row, clash: Clash) -> NoReturn:
        assert row.ids is not None
        raise TraceError(
            f"{row.where}: block id {repr(row.ids[clash.position])[:40]} stands after other ids "
            f"than at {self.wheres[clash.elsewhere]}, so ids are no whole prefixes here: say --ids "
            f"file or --ids conversation if each of them counts anew, --ids global if an id names "
            f"one block's content wherever it stands"
        )

    def _known_size(self, row: Row, format: Format) -> None:
        """Take the file's word for the block size."""
        size, said = row.block_tokens, "as the trace says"
        if row.delta and self.size is None:  # what is new begins within a block: it must be known
            size, said = format.usual, "as is usual; --block-tokens says otherwise"
        if size is None or self.options.block_tokens is not None:
            return
        if self.size is None:
            self.size, self.said = size, said
        elif self.size != size:
            raise TraceError(
                f"{row.where}: blocks of {count(size, 'token')}, and of {self.size} {self.said}: "
                f"replay them one by one"
            )

    def _scope(self, row: Row, file: str) -> int:
        scope = self.options.ids
        if scope is IdScope.AUTO:
            scope = IdScope.CONVERSATION if row.local else IdScope.GLOBAL
        self.is_local = self.is_local or scope is not IdScope.GLOBAL
        if scope is IdScope.GLOBAL:
            return 0
        if scope is IdScope.FILE:
            return salt(file)
        if row.conversation is None:
            raise TraceError(f"{row.where}: --ids conversation, and this row names none")
        return salt(file, row.conversation)

    def _verdicts(self, name: str) -> None:
        if each := self.anew.verdict():
            raise TraceError(
                f"{name}: the block ids of each {each} count up from the beginning: say --ids "
                f"{each} if each {each} numbers its own blocks, --ids global if they share them"
            )
        if self.turns.new_only():
            raise TraceError(
                f"{name}: no later turn of a session begins as its first: say --format aiperf if "
                f"later turns hold only what is new in them, --format mooncake if each row is a "
                f"whole prompt"
            )

    def _about(self, format: Format, size: int) -> str:
        scope = self.options.ids
        if scope is IdScope.AUTO:
            scope = IdScope.CONVERSATION
        about = (
            f"{format.title}, {count(size, 'token')} a block ({self.said or 'it fits every row'}), "
        )
        about += (
            f"ids count anew in each {scope}" if self.is_local else "ids mean the same throughout"
        )
        if self.left_out:
            rows = count(self.left_out, "row")
            about += f"; {rows} left out without hash_ids, the first at {self.left_out_where}"
        return about


def _numbers(row: Row, given: Sequence[object]) -> Keys:
    """The ids of a row as 64-bit numbers: whole numbers below 2**64 are themselves."""
    if set(map(type, given)) <= {int}:
        try:
            return np.array(given, dtype=np.uint64)
        except OverflowError:
            pass
    return np.array([_number(one, row.where) for one in given], dtype=np.uint64)


def _number(one: object, where: str) -> int:
    if isinstance(one, float) and one.is_integer():
        one = int(one)
    if type(one) is int:
        return one if 0 <= one < 2**64 else salt("number", str(one))
    if isinstance(one, str) and one:
        return salt("text", one.lower())
    raise TraceError(f"{where}: a block id is a whole number or a text, and not {one!r}"[:300])
