"""The settings as options of a command: one each, made from `settings.SETTINGS`.

So a setting is written down once, and the command line cannot lag behind the file and the
environment.  The help of an option names its variable and what holds without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from . import config, settings


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command with all settings and --config before its own options.

    `command` gets them as its first two arguments: a mapping of what was given (None: not given)
    and the path that --config names.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]

    def run(config_file: str | None, **given: Any) -> None:
        flags: Mapping[str, object] = {key: given.pop(key) for key in settings.SETTINGS}
        command(flags, config_file, **given)

    options = [_option(key, _typed(key), setting) for key, setting in settings.SETTINGS.items()]
    help_ = f"A TOML file of settings. [{config.variable('config')}; default: none]"
    file = typer.Option("--config", help=help_, metavar="FILE")
    parameters = [*options, _option("config_file", file, None), *own]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _typed(key: str) -> Any:
    setting = settings.SETTINGS[key]
    return typer.Option(
        help=f"{setting.help} [{config.variable(key)}; default: {config.default(key)}]",
        metavar=None if setting.choices else setting.metavar,
        show_default=False,
        case_sensitive=False,
    )


def _option(name: str, option: Any, setting: settings.Setting | None) -> inspect.Parameter:
    """An option that is None if it was not given; one without a metavar is a flag."""
    one: Any = str
    if setting is not None and setting.choices is not None:
        one = setting.choices
    elif option.metavar == "":
        one = bool
    elif setting is not None and setting.many:
        one = list[str]
    kind = one | None
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, option])
