"""Where one id of a trace is one block."""

from __future__ import annotations

import enum


class IdScope(enum.StrEnum):
    """Within what an id means the same block."""

    AUTO = "auto"  # what the trace says, or its format
    GLOBAL = "global"  # all files
    FILE = "file"
    CONVERSATION = "conversation"
