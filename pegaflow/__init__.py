"""PegaFlow: an external KV-cache service for LLM inference that outlives the engines it serves.

The house, from the ground up (imports point down, and `tox -e static` checks it):

    wire        the language: messages, envelopes, nouns
    core        pure data structures with verbs, no messages
    actors      who does what: a package per process, pure but for the shell that runs them
    device      the only files that touch hardware
    client      what runs inside an engine, or any program
    connectors  what engines load, on top of the client
    observe     what operators are shown
    service     the program around it: command line, settings, run directory
    replay      traces and their replay, `pegaflow demo`

Nothing is imported here: an engine that loads the connector pays for the connector only.
docs/architecture.md has the whole picture.
"""


def __getattr__(name: str) -> str:
    if name == "__version__":
        from .version import installed

        return installed()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
