"""Paths that all processes spell alike.

A path of ours is said to engines, in JSON, in logs and to ZeroMQ, which all speak UTF-8.  A name of
other bytes, or one that this process's locale reads otherwise, would be another file for each of
them, or an error in the middle of something; so it is refused where it comes in.
"""

import os

from pegaflow.core.errors import UserError


def spelled(path: str) -> str:
    """This path.

    Raises:
        UserError: it is no UTF-8 text, or not in this locale.
    """
    try:
        alike = os.fsencode(path) == path.encode()
    except UnicodeEncodeError:
        alike = False
    if not alike:
        raise UserError(
            f"{path!a} is not UTF-8 in this locale: choose another path, or set LC_ALL=C.UTF-8"
        )
    return path
