"""The settings as options of a command: one each, made from `config.SETTINGS`.

So a setting is written down once, and the command line cannot lag behind the file and the
environment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from pegaflow import config


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command with all settings and --config before its own options.

    `command` gets them as its first two arguments: a mapping of what was given (None: not given)
    and the path that --config names.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]

    def run(config_file: str | None, **given: Any) -> None:
        flags: Mapping[str, object] = {key: given.pop(key) for key in config.SETTINGS}
        command(flags, config_file, **given)

    options = [
        _option(key, typer.Option(help=setting.help, metavar=setting.metavar), setting.many)
        for key, setting in config.SETTINGS.items()
    ]
    file = typer.Option("--config", help="A TOML file of settings.", metavar="FILE")
    parameters = [*options, _option("config_file", file), *own]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _option(name: str, option: Any, many: bool = False) -> inspect.Parameter:
    """An option that is None if it was not given; one without a metavar is a flag."""
    one: Any = bool if option.metavar == "" else list[str] if many else str
    kind = one | None
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, option])
