"""The one error that is for people.

Whatever the user can put right (a flag, a directory, a size) is raised as `UserError` with one
clear line; the command line prints that line without a traceback and exits with
`UserError.exit_code`. Everything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right, in one line."""

    exit_code = 1

    def __init__(self, line: str) -> None:
        assert line and "\n" not in line, line
        super().__init__(line)


class CommandLineError(UserError):
    """The command line itself was wrong."""

    exit_code = 2
