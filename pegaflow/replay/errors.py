"""The error of a trace that cannot be read."""

from __future__ import annotations


class TraceError(ValueError):
    """The trace cannot be read or replayed; one line that names the file and the place in it."""
