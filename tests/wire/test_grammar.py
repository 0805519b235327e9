"""Who says what to whom stands in one place, and all of it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pegaflow import wire
from pegaflow.actors.roster import ROSTER
from pegaflow.wire.values import CLIENT, SUPERVISOR

from .samples import MESSAGES

ON_A_SOCKET = [cls for cls in MESSAGES if cls.TAG < 200]
SPEAKERS = {spec.name for spec in ROSTER} | {CLIENT, SUPERVISOR, "child"}
LINES = [line[4:] for line in (wire.__doc__ or "").splitlines() if line.startswith("    ")]


def said() -> set[str]:
    """The messages that are said by themselves, and are no part of another."""
    parts = {
        name
        for cls in ON_A_SOCKET
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        for name in re.findall(r"\w+", str(field.type))
    }
    return {cls.__name__ for cls in ON_A_SOCKET} - parts


def test_every_message_stands_in_the_grammar_and_nothing_else() -> None:
    assert set(re.findall(r"[A-Z]\w+", "\n".join(LINES))) == said()


@pytest.mark.parametrize("line", LINES)
def test_every_line_says_who_speaks_to_whom(line: str) -> None:
    speaker, to, hearers = re.split(r" +(→) ", line, maxsplit=1)
    heard = re.findall(r"[a-z]+(?!\.py)\b", re.split(r"  +[A-Z]", hearers)[0])
    assert {speaker, *heard} <= SPEAKERS and heard, line


@pytest.mark.parametrize("cls", ON_A_SOCKET, ids=lambda cls: cls.__name__)
def test_every_message_stands_in_its_conversation(cls: type) -> None:
    module = __import__(cls.__module__, fromlist=["__doc__"])
    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("    ")]
    assert cls.__name__ not in said() or re.search(rf"\b{cls.__name__}\b", "\n".join(lines))
