"""Signs that a trace means something else than it seems to say, gathered while it is read.

Both are decided at the end and only where all of the trace agrees: a single conversation that
looks odd proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .scopes import IdScope
from .tree import Keys


@dataclass(slots=True)
class Anew:
    """Whether ids count up from the beginning in each file, or in each conversation.

    Whoever numbers blocks as they come gives 0, 1, 2, ... and then again what was there before. If
    that is so in every file by itself, then no file knew of the others' numbers.
    """

    _files: dict[str, int] = field(default_factory=dict)  # the next number; -1: they do not count
    _conversations: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, file: str, conversation: str | None, ids: Keys) -> None:
        """Look at the ids of one more request, in the order of the files.

        Args:
            conversation: its name in the file; None: it belongs to none.
        """
        self._files[file] = _next(self._files.get(file), ids)
        if conversation is not None:
            key = (file, conversation)
            self._conversations[key] = _next(self._conversations.get(key), ids)

    def verdict(self) -> IdScope | None:
        """In each of which the ids begin anew: FILE or CONVERSATION; None: in neither."""
        kinds = ((IdScope.FILE, self._files), (IdScope.CONVERSATION, self._conversations))
        for scope, counters in kinds:
            if len(counters) > 1 and all(following > 2 for following in counters.values()):
                return scope
        return None


def _next(following: int | None, ids: Keys) -> int:
    if following is None:
        if not len(ids) or ids[0] > 1:
            return -1
        following = int(ids[0])
    if following < 0:
        return -1
    new = ids[ids >= following]
    counted = np.arange(following, following + len(new), dtype=np.uint64)
    return following + len(new) if np.array_equal(new, counted) else -1


@dataclass(slots=True)
class Turns:
    """Whether the later turns of conversations hold only what is new in them."""

    _firsts: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # each conversation's first id
    _alike: int = 0  # later turns that begin as the first one of their conversation
    _other: int = 0

    def add(self, conversation: tuple[str, str], ids: Keys) -> None:
        """Look at the ids of one more request, in the order of the turns.

        Args:
            conversation: file, and name in it.
        """
        if not len(ids):
            return
        first = self._firsts.get(conversation)
        if first is None:
            self._firsts[conversation] = int(ids[0])
        elif first == int(ids[0]):
            self._alike += 1
        else:
            self._other += 1

    def new_only(self) -> bool:
        """There are later turns, and none of them begins as its conversation did."""
        return self._other > 0 and not self._alike
