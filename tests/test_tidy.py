"""Rules of the house that no linter has: size, no sleeping, no dead module, nothing unfinished.

What may import what, and which floors are pure, import-linter checks (pyproject.toml); ruff has the
rest.

Each rule is a function from one `Source` (or all of them) to complaints, so that it can also be fed
a small bad source: a rule that cannot fail is no rule.  Everything is read with `ast`; nothing is
imported.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FILE_LINES = 450  # a file is read in one sitting; 400 is the goal
FUNCTION_LINES = 80  # a function fits a screen; 70 is the goal
ATTRIBUTES, METHODS = 15, 30  # a part can be kept in mind
REPEATED = 4  # so many statements in a row stand in one place
OWN_CONSTANTS = {"VERSION"}  # each format counts its own
POSITIONAL = 4  # arguments without a name; ruff has the same for functions
UNKNOWN = 3  # so many are counted for a star of which nobody sees how many it is
CONTRACTS = set(
    "Actor Part Holder Message Protocol NamedTuple Exception Generic Enum IntEnum StrEnum".split()
    + ["Tier", "ABC", "Server", "H11Protocol"]
)

OURS = {"pegaflow", "tests", "perf"}

UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
MACHINE_PATH = re.compile(
    "|".join(("/" + "work/", "/" + "root/", "/" + "tmp/v" + r"\b", "/" + "home/[a-z]"))
)


@dataclass(frozen=True)
class Source:
    """One Python file: where it is, what it is called, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def module(self) -> str:
        """`actors/runtime/loop.py` is `pegaflow.actors.runtime.loop`, as the packaging maps it."""
        parts = list(Path(self.path).with_suffix("").parts)
        if parts[0] in ("actors", "wire"):
            parts.insert(0, "pegaflow")
        return ".".join(parts[:-1] if self.is_package else parts)

    @property
    def is_shipped(self) -> bool:
        return self.module.split(".")[0] == "pegaflow"

    @cached_property
    def imports(self) -> set[tuple[int, str]]:
        """(line, dotted name); `from a import b` gives a and a.b, since b may be a module."""
        found = set()
        here = self.module.split(".") + (["__init__"] if self.is_package else [])
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {(node.lineno, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = here[: -node.level] if node.level else []
                name = ".".join(base + ([node.module] if node.module else []))
                found |= {(node.lineno, name)}
                found |= {(node.lineno, f"{name}.{alias.name}") for alias in node.names}
        return found

    @cached_property
    def foreign(self) -> set[str]:
        """Names that are imported from somebody else."""
        return {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if not (isinstance(node, ast.ImportFrom) and node.level)
            and getattr(node, "module", alias.name).partition(".")[0] not in OURS
        }


Complaints = Iterator[str]


def is_short(source: Source) -> Complaints:
    lines = source.text.splitlines()
    if len(lines) >= FILE_LINES:
        yield f"{source.path}: {len(lines)} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= FUNCTION_LINES:
                yield f"{source.path}:{node.lineno}: {node.name} has {length} lines"


def no_sleep_in_tests(source: Source) -> Complaints:
    if source.module.split(".")[0] != "tests":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
            yield f"{source.path}:{node.lineno}: sleeps; wait for what is expected"


def every_module_is_used(sources: Iterable[Source]) -> Complaints:
    """Imported by something shipped, named in a string (a roster), or an entry point."""
    sources = list(sources)
    used = entry_points() | {"pegaflow.__main__", "pegaflow.actors.__main__"}
    for source in sources:
        if source.is_shipped:
            used |= {name for _, name in source.imports if name != source.module}
            used |= {
                node.value
                for node in ast.walk(source.tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    for source in sources:
        if source.is_shipped and not source.is_package and source.module not in used:
            yield f"{source.path}: nothing imports it"


def entry_points() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    # The last two are named by the user in --kv-transfer-config.
    return {point.split(":")[0] for group in groups for point in group.values()} | {
        "pegaflow.connector",
        "pegaflow.tier",
    }


def is_finished(path: str, text: str) -> Complaints:
    for number, line in enumerate(text.splitlines(), 1):
        if found := UNFINISHED.search(line):
            yield f"{path}:{number}: {found[0]}"
        if found := MACHINE_PATH.search(line):
            yield f"{path}:{number}: {found[0]} is a path of one machine"


def is_composed(source: Source) -> Complaints:
    """Parts, not ancestors: a class of an actor is small, and its bases are a contract's."""
    if not source.path.startswith("actors/"):
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
        if bases - CONTRACTS:
            yield f"{source.path}:{node.lineno}: {node.name} inherits from {bases - CONTRACTS}"
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        if len(methods) > METHODS:
            yield f"{source.path}:{node.lineno}: {node.name} has {len(methods)} methods"
        attributes = {
            target.attr
            for item in ast.walk(node)
            if isinstance(item, ast.Assign | ast.AnnAssign | ast.AugAssign)
            for whole in (item.targets if isinstance(item, ast.Assign) else [item.target])
            for target in ast.walk(whole)
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
        } | {ast.unparse(item.target) for item in node.body if isinstance(item, ast.AnnAssign)}
        if len(attributes) > ATTRIBUTES and not is_message(node):
            yield f"{source.path}:{node.lineno}: {node.name} has {len(attributes)} attributes"


def is_message(node: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("message(") for decorator in node.decorator_list)


def nothing_twice(sources: Iterable[Source]) -> Complaints:
    """What several actors do alike is in roles/ or core/: no two functions have the same run of
    statements."""
    found: dict[tuple[str, ...], str] = {}
    for source in sources:
        if not source.path.startswith("actors/"):
            continue
        classes = [node.body for node in source.tree.body if isinstance(node, ast.ClassDef)]
        for node in chain(source.tree.body, *classes):
            if not isinstance(node, ast.FunctionDef) or node.name == "__init__":
                continue  # what parts are given may be alike
            where = f"{source.path}:{node.lineno}: {node.name}"
            lines = statements(node)
            for at in range(len(lines) - REPEATED + 1):
                first = found.setdefault(tuple(lines[at : at + REPEATED]), where)
                if first != where:
                    yield f"{where} repeats {first}: {lines[at]}"


def no_constant_twice(sources: Iterable[Source]) -> Complaints:
    """Whoever needs a public constant of another module imports it; two that mean different things
    have different names."""
    found: dict[tuple[str, str], str] = {}
    for source in sources:
        for name, value in constants(source) if source.is_shipped else ():
            first = found.setdefault((name, value), source.path)
            if first != source.path:
                yield f"{source.path}: {name} = {value} is declared in {first} too"


def constants(source: Source) -> Iterator[tuple[str, str]]:
    """Name and value of each public one; what numbers alone make is compared as the number."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.isupper():
                if target.id[0] != "_" and target.id not in OWN_CONSTANTS:
                    yield target.id, plain(node.value)


def plain(value: ast.expr) -> str:
    """`1 << 20` and `1048576` are one value."""
    reckoned = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    if all(isinstance(node, reckoned) for node in ast.walk(value)):
        return repr(eval(compile(ast.Expression(value), "constant", "eval")))
    return ast.unparse(value)


def statements(function: ast.FunctionDef) -> list[str]:
    """A line each, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return [line.strip() for stmt in body for line in ast.unparse(stmt).splitlines()]


def says_what_it_passes(source: Source) -> Complaints:
    """What a class of ours is made of is named after the fourth argument.  Of functions, ruff sees
    that in the definition; a dataclass, a message or a tuple has none."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).partition("[")[0]
        first, last = name.partition(".")[0], name.rpartition(".")[2].lstrip("_")
        if first in source.foreign or not (last == "cls" or last[:1].isupper()):
            continue
        count = sum(map(positional, node.args))
        if count > POSITIONAL and len(node.args) > 1:
            yield f"{source.path}:{node.lineno}: {name} gets {count} arguments without a name"


def positional(argument: ast.expr) -> int:
    """How many arguments this one is."""
    if not isinstance(argument, ast.Starred):
        return 1
    several = argument.value
    return len(several.elts) if isinstance(several, ast.Tuple | ast.List) else UNKNOWN


PER_FILE: list[Callable[[Source], Complaints]] = [
    *(is_short, no_sleep_in_tests, is_composed),
    says_what_it_passes,
]


@cache
def python_sources() -> list[Source]:
    paths = [
        path
        for top in ("pegaflow", "actors", "wire", "tests", "perf", "examples")
        for path in sorted((ROOT / top).rglob("*.py"))
        if not path.is_relative_to(ROOT / "pegaflow" / "actors")
        and not path.is_relative_to(ROOT / "pegaflow" / "wire")
    ]
    return [Source(str(path.relative_to(ROOT)), path.read_text()) for path in paths]


def text_files() -> Iterator[tuple[str, str]]:
    """Every file that git would keep, as far as its folder and ending tell."""
    skipped = {".git", ".tox", "venv", "build", "dist", "__pycache__", ".hypothesis"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in skipped and not name.endswith(("_cache", ".egg-info"))
        ]
        for name in names:
            path = Path(folder, name)
            is_made = name == ".git" or name.startswith(".coverage")
            if path.suffix not in (".gz", ".pyc", ".bin") and not is_made and path.is_file():
                yield str(path.relative_to(ROOT)), path.read_text()


@pytest.mark.parametrize("rule", PER_FILE)
def test_every_source(rule: Callable[[Source], Complaints]) -> None:
    assert [complaint for source in python_sources() for complaint in rule(source)] == []


def test_no_dead_module() -> None:
    assert list(every_module_is_used(python_sources())) == []


def test_nothing_is_written_twice() -> None:
    assert list(nothing_twice(python_sources())) == []


def test_what_is_written_twice_is_found() -> None:
    body = "".join(f"    x = f(x, {n})\n" for n in range(REPEATED))
    one, other = f'def a(x):\n    "One."\n{body}', f"def b(x):\n    g()\n{body}"
    assert list(nothing_twice([Source("actors/a.py", one), Source("actors/b.py", other)])) != []
    assert list(nothing_twice([Source("actors/a.py", one), Source("tests/b.py", other)])) == []


def test_no_constant_is_declared_twice() -> None:
    assert list(no_constant_twice(python_sources())) == []


@pytest.mark.parametrize(
    ("one", "other", "twice"),
    [
        ("A: Count = 1 << 10", "A: Bytes = 1024", True),
        ("A = ('a', 'b')", "A = ('a', 'b')", True),
        ("A = 5 * MS", "A = 5 * MS", True),
        ("A = 1", "A = 2", False),
        ("A = 1", "B = 1", False),
        ("_A = 1", "_A = 1", False),
        ("A = 1", "from .a import A", False),
    ],
)
def test_a_constant_that_is_declared_twice_is_found(one: str, other: str, twice: bool) -> None:
    sources = [Source("wire/a.py", one), Source("pegaflow/b.py", other)]
    assert bool(list(no_constant_twice(sources))) is twice


def test_every_text_is_finished_and_at_home_anywhere() -> None:
    assert [c for path, text in text_files() for c in is_finished(path, text)] == []


def test_what_the_readme_has_people_make_is_ignored_by_git() -> None:
    made = re.findall(r"-m venv (\w+)", (ROOT / "README.md").read_text())
    assert made and {f"/{name}/" for name in made} <= {
        line for line in (ROOT / ".gitignore").read_text().splitlines()
    }


BAD: list[tuple[Callable[[Source], Complaints], str, str]] = [
    (is_short, "wire/x.py", "x = 1\n" * FILE_LINES),
    (is_short, "wire/x.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
    (no_sleep_in_tests, "tests/x.py", "import time\ntime.sleep(1)"),
    (is_composed, "actors/x.py", "class A(Writing):\n    pass"),
    (is_composed, "actors/x.py", "class A:\n" + "    def f(self): ...\n" * (METHODS + 1)),
    (is_composed, "actors/x.py", "class A:\n" + "".join(f"    a{n}: int\n" for n in range(16))),
    (says_what_it_passes, "wire/x.py", "A(1, 2, 3, 4, 5)"),
    (says_what_it_passes, "wire/x.py", "A[int](1, 2, 3, 4, 5)"),
    (says_what_it_passes, "wire/x.py", "from pegaflow.wire import a\na.A(1, 2, 3, 4, 5)"),
    (says_what_it_passes, "wire/x.py", "from .a import A as B\nB(1, *(2, 3, 4, 5))"),
    (says_what_it_passes, "wire/x.py", "A(1, 2, *rest)"),
    (says_what_it_passes, "wire/x.py", "cls(1, 2, 3, 4, 5)"),
]
GOOD: list[tuple[Callable[[Source], Complaints], str, str]] = [
    (is_short, "wire/x.py", "def f():\n    x = 1\n"),
    (no_sleep_in_tests, "perf/x.py", "import time\ntime.sleep(1)"),
    (says_what_it_passes, "wire/x.py", "A(1, 2, 3, 4, e=5)\nA(*all_of_them)\nA(1, *rest)"),
    (says_what_it_passes, "wire/x.py", "import a.b\na.A(1, 2, 3, 4, 5)\nf(1, 2, 3, 4, 5)"),
    (says_what_it_passes, "wire/x.py", "from rich.table import Table\nTable(1, 2, 3, 4, 5)"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_each_rule_can_fail(rule: Callable[[Source], Complaints], path: str, text: str) -> None:
    assert list(rule(Source(path, text))) != []


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_no_rule_cries_wolf(rule: Callable[[Source], Complaints], path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_a_dead_module_is_found() -> None:
    dead = Source("pegaflow/core/dead.py", "")
    user = Source("actors/roster.py", "ACTOR = 'pegaflow.core.dead'")
    test = Source("tests/test_dead.py", "import pegaflow.core.dead")
    assert any("dead.py" in complaint for complaint in every_module_is_used([dead, test]))
    assert not any("dead.py" in complaint for complaint in every_module_is_used([dead, user]))


@pytest.mark.parametrize("text", ["# TO" + "DO later", "cd /" + "work/main", "/" + "home/me/x"])
def test_unfinished_text_is_found(text: str) -> None:
    assert list(is_finished("README.md", text)) != []
