"""What is set and what the limits are: every one is shown, with where it is from or why it is."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from pegaflow import version
from pegaflow.core.segments.plan import Admission
from pegaflow.observe import inventory
from pegaflow.observe.inventory import Limit
from pegaflow.replay.formats import AUTO, FORMATS
from pegaflow.replay.scopes import IdScope
from pegaflow.service import cli, config, settings
from pegaflow.service.logs import LogFormat
from pegaflow.wire.control import LogLevel
from tests.test_tidy import python_sources


def test_every_number_of_the_code_is_shown_with_its_reason() -> None:
    shown = {(limit.module, limit.name) for limit in inventory.all_limits()}
    missing = [
        f"{source.path}: {name} has no reason below it"
        for source in python_sources()
        if source.is_shipped
        for name in numbers_of(source.tree)
        if (source.module, name) not in shown
    ]
    assert missing == []


def numbers_of(tree: ast.Module) -> list[str]:
    """Public module constants whose value is written with a number and nothing but arithmetic, and
    that are not declared to limit nothing."""
    arithmetic = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.Name, ast.operator)
    found = []
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        if isinstance(node, ast.AnnAssign) and "Constant" in ast.unparse(node.annotation):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name, parts = ast.unparse(target), list(ast.walk(node.value))
        plain = all(isinstance(p, (*arithmetic, ast.unaryop, ast.Load)) for p in parts)
        values = [p.value for p in parts if isinstance(p, ast.Constant)]
        numeric = any(isinstance(v, int | float) for v in values)
        text = any(isinstance(v, str | bytes | bool) for v in values)
        if (
            name.isidentifier()
            and name.isupper()
            and name[0] != "_"
            and plain
            and numeric
            and not text
        ):
            found.append(name)
    return found


def test_a_number_without_a_reason_is_found() -> None:
    source = 'A: Count = 5\nB = 2 * MS\nC = "x"\nD = f(1)\n_E = 1\nF = (1, 2)\nb = 3\nG = -1.5\n'
    source += "H: Constant = 1\nI: tuple[Constant, ...] = (1, 2)\n"
    assert numbers_of(ast.parse(source)) == ["A", "B", "F", "G"]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("Nanoseconds", 500_000_000, "500 ms"),
        ("Milliseconds", 1500, "1.5 s"),
        ("Seconds", 2.5, "2.5 s"),
        ("Nanoseconds", (0, 2_000_000_000), "0 s, 2 s"),
        ("Bytes", 8 << 20, "8 MiB"),
        ("Count", 1024, "1,024"),
        ("Share", 0.25, "25%"),
        ("Share", 1 / 8, "12.5%"),
        ("Bytes", 107, "107 B"),
    ],
)
def test_a_limit_is_shown_in_its_unit(kind: str, value: float, shown: str) -> None:
    assert Limit("NAME", "m", value, kind, reason="why").shown() == shown


def test_every_limit_declares_its_unit_and_its_reason() -> None:
    limits = inventory.all_limits()
    assert len(limits) > 200 and not [limit for limit in limits if not limit.reason]
    assert {limit.kind for limit in limits} == set(inventory._UNITS)


NAMED = {
    "_NS": "Nanoseconds", "_MS": "Milliseconds", "_S": "Seconds", "_SECONDS": "Seconds",
    "_BYTES": "Bytes", "_BYTES_MAX": "Bytes", "_SHARE": "Share",
}  # fmt: skip
"""What a name says of its unit."""


def test_a_limit_is_declared_in_the_unit_of_its_name_and_of_its_reason() -> None:
    wrong = [
        f"{limit.full_name} is declared as {limit.kind}"
        for limit in inventory.all_limits()
        if any(limit.name.endswith(end) and limit.kind != kind for end, kind in NAMED.items())
        or limit.reason.startswith("Bytes ")
        and limit.kind != "Bytes"
    ]
    assert wrong == []


def test_limits_are_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    inventory.show_limits(as_json=False)
    table = capsys.readouterr().out
    assert "SILENT_NS" in table and "longer than any pause" in table
    inventory.show_limits(as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["wire.message.BODY_BYTES_MAX"]["value"] == 8 << 20
    assert rows["wire.message.BODY_BYTES_MAX"]["unit"] == "bytes"


def test_no_two_limits_have_one_name_and_those_of_nobodys_affair_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    everything = inventory.all_limits()
    names = [limit.full_name for limit in everything]
    assert len(set(names)) == len(names)
    inventory.show_limits(as_json=True)
    shown = {row["name"] for row in json.loads(capsys.readouterr().out)}
    inventory.show_limits(as_json=True, inner=True)
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(names)
    assert "core.pool.ledger.MAX_SHARDS" in names and "core.pool.ledger.MAX_SHARDS" not in shown
    assert {
        "actors.supervisor.restarts.ENGINES_MAX",
        "actors.supervisor.attach.ENGINES_MAX",
    } <= shown
    useless = {
        entry
        for entry in inventory.INNER
        if not any(n == entry or n.startswith(f"{entry}.") for n in names)
    }
    assert useless == set()


ROWS = [("a_name", "1", "short"), ("another.name", "v" * 30, "why " * 30), ("b", "2", "")]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_line_is_never_longer_than_the_terminal(width: int) -> None:
    text = inventory.laid_out(ROWS, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.split() == " ".join(" ".join(row) for row in ROWS).split()


def test_everything_of_one_limit_is_on_one_line_for_a_program() -> None:
    assert len(inventory.laid_out(ROWS, None).splitlines()) == len(ROWS)


def test_a_long_value_in_a_pipe_does_not_push_the_reasons_of_all_others_away() -> None:
    rows = [("short", "1 s", "why"), ("long", "1, " * 90 + "2", "why")]
    short, long = inventory.laid_out(rows, None).splitlines()
    assert short == "short  1 s  why"
    assert long.endswith("2  why")


def test_values_that_are_all_long_have_a_line_each_all_the_same() -> None:
    rows = [("long", "1, " * 90 + "2", "why")]
    assert inventory.laid_out(rows, None).endswith("2  why")


def test_the_tables_fit_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch.object(sys.stdout, "isatty", lambda: True, create=True),
        mock.patch.dict(os.environ, {"COLUMNS": "80", "PEGAFLOW_RUN_DIR": "/long/" * 20}),
    ):
        inventory.show_limits(as_json=False)
        assert config_show("--origin") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 100
    assert [line for line in lines if len(line) > 80 and "/long/" not in line] == []


def config_show(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.app(["config", "show", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file and a variable; the path of the file."""
    path = tmp_path / "pegaflow.toml"
    path.write_text('log_level = "error"\nspares = 1\n')
    monkeypatch.setenv("PEGAFLOW_SPARES", "5")
    monkeypatch.setenv("PEGAFLOW_RUN_DIR", "/r")
    return path


def test_each_setting_says_where_it_is_from(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(environment), "--pool-size", "1g", "--format", "json"]
    assert config_show(*arguments, "--origin") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["pool_size"] == {"value": 1 << 30, "origin": "flag", "name": "--pool-size"}
    assert shown["spares"] == {"value": 5, "origin": "environment", "name": "PEGAFLOW_SPARES"}
    assert shown["log_level"] == {"value": "error", "origin": "file", "name": str(environment)}
    assert shown["log_format"] == {"value": "auto", "origin": "default", "name": ""}
    assert config_show(*arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain == {key: part["value"] for key, part in shown.items()}


def test_the_table_has_the_size_that_serve_would_choose(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_show("--origin") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "environment PEGAFLOW_SPARES" in lines["spares"]
    assert "default: pool of" in lines["pool_size"] or "no room" in lines["pool_size"]
    assert "32 MiB" in lines["extent_size"]
    assert lines["copy_threads"].split(maxsplit=2)[2].startswith("default: One core copies at")


def test_serve_and_config_show_have_an_option_for_every_setting() -> None:
    import typer

    group = typer.main.get_command(cli.app)
    options = {
        name: {flag for p in command.params for flag in p.opts}
        for name, command in (
            ("serve", group.commands["serve"]),  # type: ignore[attr-defined]
            ("show", group.commands["config"].commands["show"]),  # type: ignore[attr-defined]
        )
    }
    expected = {config.flag(key) for key in settings.SETTINGS} | {"--config"}
    assert options["serve"] - {"--help"} == expected
    assert options["show"] - {"--help"} == expected | {"--origin", "--format"}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, and what was said."""
    with mock.patch.object(sys, "argv", ["pegaflow", *arguments]), pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


COMMANDS = [
    ("serve",), ("purge",), ("status",), ("keygen",), ("replay",), ("demo",), ("config",),
    ("config", "show"), ("config", "limits"), (),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_helps(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    short, long = answer(capsys, *command, "-h"), answer(capsys, *command, "--help")
    assert short == long and short[0] == 0 and " ".join(["Usage: pegaflow", *command]) in short[1]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "--version")
    assert code == 0 and out == f"pegaflow {version.installed()}\n"


def test_the_shell_completes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_WORDS", "pegaflow config show --log-level ")
    monkeypatch.setenv("COMP_CWORD", "4")
    monkeypatch.setenv("_PEGAFLOW_COMPLETE", "complete_bash")
    _, out, _ = answer(capsys)
    assert out.split() == list(LogLevel)


def test_the_help_of_serve_has_variables_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = answer(capsys, "serve", "--help")
    said = "".join(out.split())
    for key in settings.SETTINGS:
        ending = f"[{config.variable(key)};default:{''.join(config.default(key).split())}]"
        assert config.flag(key) in out and ending in said, key
    assert "default:32MiB" in said and "default:aquarterofthememory" in said


CHOICES: list[tuple[list[str], tuple[str, ...]]] = [
    (["status", "--format", "yaml"], ("table", "json")),
    (["config", "show", "--format", "yaml"], ("table", "json")),
    (["config", "limits", "--format", "yaml"], ("table", "json")),
    (["config", "show", "--log-level", "loud"], tuple(LogLevel)),
    (["config", "show", "--log-format", "xml"], tuple(LogFormat)),
    (["config", "show", "--ssd-admission", "some"], tuple(Admission)),
    (["replay", "--format", "csv"], (AUTO, *FORMATS)),
    (["replay", "--ids", "some"], tuple(IdScope)),
]


@pytest.mark.parametrize(("arguments", "choices"), CHOICES)
def test_what_is_no_choice_is_refused_with_all_that_are(
    arguments: list[str], choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(capsys, *arguments)
    assert code == 2 and out == ""
    assert all(choice in err for choice in (arguments[-1], *choices))


def test_every_option_with_choices_has_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(cli.TraceFormat) == {AUTO, *FORMATS}
    found = set()
    for command in COMMANDS:
        _, out, _ = answer(capsys, *command, "-h")
        found |= {(*command, flag) for flag in re.findall(r"(--[\w-]+) [<\[]\w+\|", out)}
    tested = {tuple(arguments[:-1]) for arguments, _ in CHOICES}
    settings = {flag for *command, flag in tested if command == ["config", "show"]} - {"--format"}
    assert found == tested | {("serve", flag) for flag in settings}


def test_a_choice_may_be_said_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "config", "show", "--log-level", "DEBUG", "--format", "json")
    assert code == 0 and json.loads(out)["log_level"] == "debug"
