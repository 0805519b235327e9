"""How a child process has ended, in words."""

import signal


def words(code: int) -> str:
    """`code` as subprocess gives it: an exit status, or a signal's number below zero."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
