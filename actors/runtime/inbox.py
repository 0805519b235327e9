"""The file at which an actor's inbox listens: made again when gone, removed only while ours."""

import os
from contextlib import suppress
from pathlib import Path

import zmq

from pegaflow.core.errors import UserError
from pegaflow.service.rundir import socket_at


class Inbox:
    """A socket that listens at a path, once `listen` was said.

    Args:
        socket: a ROUTER that is bound nowhere yet.
        path: of the socket file; what is there when we listen is removed.
    """

    def __init__(self, socket: zmq.Socket[bytes], path: Path) -> None:
        self.socket = socket
        self._path = path
        self._bound: tuple[int, int] | None = None  # device and inode of the file that is ours

    def listen(self) -> None:
        """Have the file made.

        Raises:
            UserError: it cannot be.
        """
        before = os.umask(0o177)
        try:
            self._path.unlink(missing_ok=True)
            self.socket.bind(f"ipc://{self._path}")
        except (zmq.ZMQError, OSError) as err:
            raise UserError(f"cannot listen at {self._path}: {err.strerror}") from None
        finally:
            os.umask(before)
        self._bound = socket_at(self._path)

    def is_bound(self) -> bool:
        """Whether the file at the path is ours."""
        return self._bound is not None and socket_at(self._path) == self._bound

    def bind_again(self) -> str:
        """Have a socket of ours at the path, if something else is there or nothing; '' or why that
        cannot be.  A second listener of the same inbox: to end the first would end the links that
        came through it."""
        if self.is_bound():
            return ""
        try:
            self.listen()
        except UserError as err:
            return str(err)
        return ""

    def unlink(self) -> None:
        """Remove the file, if it is still ours."""
        if self.is_bound():
            with suppress(OSError):
                self._path.unlink()
