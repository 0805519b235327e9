"""What a signal asks of a running service, done in its loop (pegaflow/service/signals.py has the
meanings).

SIGHUP opens the log file anew and reads the configuration again, with the command line and the
environment of the start.  What changes without a restart is the log level; what else differs is
named.  The keys for TCP are read at every handshake anyway, so what is said of them is a check.  A
configuration with a mistake in it changes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

from pegaflow.actors.runtime.loop import Loop
from pegaflow.core.errors import UserError
from pegaflow.wire.control import LogLevel
from pegaflow.wire.jobs import Relogging, Showing, Stopping

from . import keys, logs, signals
from .settings import SETTINGS, Settings


class Asked:
    """The signals of one service, and what they change.

    Args:
        settings: as of the start.
        read_again: reads them anew, from the same command line and environment.
    """

    def __init__(self, settings: Settings, read_again: Callable[[], Settings]) -> None:
        self._settings = settings  # as of the last time they were read
        self._started = settings
        self._read_again = read_again
        self._signals = signals.Signals()
        self._file = logs.file()
        self._debug = False  # asked for by SIGUSR2
        self._loop: Loop | None = None

    def attach(self, loop: Loop) -> None:
        """Hear from now on what has come and what comes."""
        self._loop = loop
        loop.watch(self._signals.fd, self._hear)

    def _hear(self) -> None:
        assert self._loop is not None
        for number, sender in self._signals.read():
            if number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGUSR1:
                self._loop.inform(Showing())
            elif number == signal.SIGUSR2:
                self._debug = not self._debug
                self._set_log("")
                logs.get_logger().info("log_level_set", log_level=self._level())
            elif number in signals.STOP or number == signal.SIGQUIT:
                logs.get_logger().info("stopping", signal=signals.name(number), sender=sender)
                self._loop.inform(Stopping(number == signal.SIGQUIT))
            else:
                name = signals.name(number)
                logs.get_logger().warning(
                    "signal_ignored", signal=name, sender=sender, repeats=name
                )

    def _level(self) -> LogLevel:
        return LogLevel.DEBUG if self._debug else self._settings.log_level

    def _set_log(self, file: str) -> None:
        assert self._loop is not None
        logs.set_level(self._level())
        os.environ["PEGAFLOW_LOG_LEVEL"] = self._level()  # of children that are spawned later
        self._loop.inform(Relogging(self._level(), file))

    def _reload(self) -> None:
        log = logs.get_logger()
        why = logs.reopen(self._file) if self._file else ""
        if why:
            log.warning("log_not_reopened", file=self._file, why=why)
        try:
            self._settings = self._read_again()
        except (UserError, OSError) as err:  # OSError: we have lost the directory we are in
            log.warning("config_not_read", why=str(err), then="everything stays as it is")
        self._debug = False
        self._set_log(self._file)
        if self._started.curve_dir is not None:
            keys.warn(Path(self._started.curve_dir))
        changed = [
            field.name
            for field in dataclasses.fields(Settings)
            if getattr(self._settings, field.name) != getattr(self._started, field.name)
        ]
        waiting = [name for name in changed if not SETTINGS[name].live]
        facts = {"after_a_restart": ", ".join(waiting)} if waiting else {}
        log.info("reloaded", log_level=self._level(), log_file=self._file or "-", **facts)
