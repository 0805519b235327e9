"""What the installed commands run: signals wait from the first line of ours, and then come imports.

The module that blocks them is the interpreter's own and there already; `signal` takes as long to
import as the interpreter to start.  What is left before is that start, with what the environment
adds to it, and the line or two of the installed script (which import `re`): some tens of
milliseconds.  Ctrl-C in those is answered by Python, with a traceback of KeyboardInterrupt.
"""

import _signal  # type: ignore[import-not-found]


def pegaflow() -> None:
    """`pegaflow`."""
    _hold()
    from . import cli

    cli.main()


def pegaflow_server() -> None:
    """`pegaflow-server`."""
    _hold()
    from . import server

    server.main()


def pegaflow_metaserver() -> None:
    """`pegaflow-metaserver`, for whoever has the original's start script."""
    _hold()
    from . import server

    server.metaserver()


def _hold() -> None:
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    from . import signals

    signals.hold(before)
