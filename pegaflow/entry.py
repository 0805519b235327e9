"""What the installed commands run: signals wait from the first line, and only then come imports."""

from pegaflow import signals


def pegaflow() -> None:
    """`pegaflow`."""
    signals.hold()
    from pegaflow import cli

    cli.main()


def pegaflow_server() -> None:
    """`pegaflow-server`."""
    signals.hold()
    from pegaflow import server

    server.main()
