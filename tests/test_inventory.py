"""What is set and what the limits are: every one is shown, with where it is from or why it is."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from pegaflow import cli, config, inventory
from pegaflow.inventory import Limit

from .test_tidy import python_sources

NO_LIMITS = {
    *inventory._UNITS,
    "MAJOR", "MINOR", "VERSION", "VOID", "SEALED", "QUARANTINED",  # formats
    "HEADER_BYTES", "RECORD_BYTES", "UUID_BYTES", "WORD", "NONE",
}  # fmt: skip


def test_every_number_of_the_code_is_shown_with_its_reason() -> None:
    shown = {(limit.module, limit.name) for limit in inventory.all_limits()}
    missing = [
        f"{source.path}: {name} has no reason below it"
        for source in python_sources()
        if source.is_shipped
        for name in numbers_of(source.tree)
        if name not in NO_LIMITS and (source.module, name) not in shown
    ]
    assert missing == []


def numbers_of(tree: ast.Module) -> list[str]:
    """Public module constants whose value is written with a number and nothing but arithmetic."""
    arithmetic = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.Name, ast.operator)
    found = []
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name, parts = node.targets[0].id, list(ast.walk(node.value))
        plain = all(isinstance(p, (*arithmetic, ast.unaryop, ast.Load)) for p in parts)
        values = [p.value for p in parts if isinstance(p, ast.Constant)]
        numeric = any(isinstance(v, int | float) for v in values)
        text = any(isinstance(v, str | bytes | bool) for v in values)
        if name.isupper() and name[0] != "_" and plain and numeric and not text:
            found.append(name)
    return found


def test_a_number_without_a_reason_is_found() -> None:
    source = 'A = 5\nB = 2 * MS\nC = "x"\nD = f(1)\n_E = 1\nF = (1, 2)\nb = 3\nG = -1.5\n'
    assert numbers_of(ast.parse(source)) == ["A", "B", "F", "G"]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("BEAT_NS", 500_000_000, "500 ms"),
        ("PATIENCE_S", 2.5, "2.5 s"),
        ("BACKOFF_NS", (0, 2_000_000_000), "0 s, 2 s"),
        ("BODY_BYTES_MAX", 8 << 20, "8 MiB"),
        ("OPENS_MAX", 1024, "1,024"),
        ("SHARE_OF_RAM", 0.25, "25%"),
    ],
)
def test_a_limit_is_shown_in_its_unit(name: str, value: float, shown: str) -> None:
    assert Limit(name, "m", value, inventory._unit(name, value), "why").shown() == shown


def test_limits_are_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    inventory.show_limits(as_json=False)
    table = capsys.readouterr().out
    assert "SILENT_NS" in table and "longer than any pause" in table
    inventory.show_limits(as_json=True)
    rows = {(row["module"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["pegaflow.limits", "EXTENT_SIZE"]["value"] == 32 << 20
    assert rows["pegaflow.limits", "EXTENT_SIZE"]["unit"] == "bytes"


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
    expected = {config.flag(key) for key in config.SETTINGS} | {"--config"}
    assert options["serve"] - {"--help"} == expected
    assert options["show"] - {"--help"} == expected | {"--origin", "--format"}
