"""What the installed commands run: signals wait from the first line, and only then come imports."""

from . import signals


def pegaflow() -> None:
    """`pegaflow`."""
    signals.hold()
    from . import cli

    cli.main()


def pegaflow_server() -> None:
    """`pegaflow-server`."""
    signals.hold()
    from . import server

    server.main()
