"""The pages of docs/ that are made from the code: python -m tests.docs

    protocol.md      the conversations of wire/, and their messages
    formats.md       what is in shared memory and on disks
    client.md        the public interface of pegaflow.client
    architecture.md  its table of parts
    metrics.md       its tables of metrics: the service's, and the connector's

test_docs.py compares them with the code, so none of them is ever older than it.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pegaflow.actors.roster import SPECS
from pegaflow.connectors.vllm import metrics as connector
from pegaflow.observe.metrics import table
from pegaflow.wire.values import SUPERVISOR

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

CONVERSATIONS = ("control", "session", "index", "allocator", "flusher")
NOUNS = ("envelope", "values", "identities", "layout", "status")
FORMATS = (
    ("The pool", "pegaflow/device/poolfiles.py"),
    ("How the pool is cut", "pegaflow/core/pool/geometry.py"),
    ("The ledger", "pegaflow/core/pool/ledger.py"),
    ("The table", "pegaflow/core/pool/table.py"),
    ("What the tiers have", "pegaflow/core/pool/tierfilter.py"),
    ("Buckets of the table", "pegaflow/core/pool/buckets.py"),
    ("Fingerprints", "pegaflow/core/pool/fingerprints.py"),
    ("Hazards", "pegaflow/core/pool/hazards.py"),
    ("Locks", "pegaflow/device/locks.py"),
    ("Whom a GPU copies for", "pegaflow/device/gpuusers.py"),
    ("A segment of the SSD log", "pegaflow/core/segments/codec.py"),
    ("The marker of an SSD directory", "pegaflow/core/segments/marker.py"),
)
ACTORS = (SUPERVISOR, *SPECS)
MADE = "<!-- Made from the code by `python -m tests.docs`; edit the docstrings there. -->\n"


def pages() -> dict[Path, str]:
    """Every page that is made, as it should be."""
    architecture, metrics = DOCS / "architecture.md", DOCS / "metrics.md"
    tables = between(metrics.read_text(), "table", "\n".join(table()) + "\n")
    tables = between(tables, "engine", "\n".join(connector.table()) + "\n")
    return {
        DOCS / "protocol.md": protocol(),
        DOCS / "formats.md": formats(),
        DOCS / "client.md": client(),
        architecture: between(architecture.read_text(), "parts", parts()),
        metrics: tables,
    }


def between(text: str, name: str, made: str) -> str:
    """The text with what stands between the marks of this name replaced."""
    begin, end = f"<!-- {name}: made by `python -m tests.docs` -->\n", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}{made}{end}{rest.split(end, 1)[1]}"


def prose(doc: str, level: int = 2) -> str:
    """A docstring as Markdown: its title a heading, what is indented as it stands."""
    title, _, rest = inspect.cleandoc(doc).partition("\n\n")
    out = [f"{'#' * level} {title.rstrip('.')}\n"] if level else [title + "\n"]
    for block in re.split(r"\n\n+", rest):
        if not block:
            continue
        if block.startswith("    "):
            out.append(f"```\n{textwrap.dedent(block)}\n```\n")
        else:
            out.append(block + "\n")
    return "\n".join(out)


def protocol() -> str:
    """docs/protocol.md."""
    out = [
        MADE,
        "# Protocol\n",
        prose(doc_of("wire/__init__.py"), 0),
        prose(doc_of("wire/message.py")),
    ]
    for name in NOUNS:
        out.append(prose(doc_of(f"wire/{name}.py")))
    for name in CONVERSATIONS:
        path = f"wire/{name}.py"
        out += [prose(doc_of(path)), *limits(path), *messages(path)]
    return "\n".join(out)


def messages(path: str) -> Iterator[str]:
    """The messages that a conversation declares."""
    source = (ROOT / path).read_text()
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        tags = [
            ast.unparse(d.args[0])
            for d in node.decorator_list
            if isinstance(d, ast.Call) and d.args
        ]
        is_message = bool(tags) and any(ast.unparse(b) == "Message" for b in node.bases)
        said = " ".join((ast.get_docstring(node) or "").split())
        head = f"{node.name} ({tags[0]})" if is_message else node.name
        yield f"**{head}.** {said}\n"
        values = [
            (target(item), ast.unparse(item.value), comment(lines, item))
            for item in node.body
            if isinstance(item, ast.Assign)
        ]
        fields = [
            (target(item), ast.unparse(item.annotation), comment(lines, item))
            for item in node.body
            if isinstance(item, ast.AnnAssign)
        ]
        yield from grid("value", "sent as", values)
        yield from grid("field", "type", fields)


def grid(name: str, kind: str, rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """A table of what a class has, if it has any of it."""
    if rows:
        lines = [f"| `{one}` | `{of}` | {what} |" for one, of, what in rows]
        yield "\n".join([f"| {name} | {kind} | |", "|---|---|---|", *lines]) + "\n"


def comment(lines: list[str], node: ast.Assign | ast.AnnAssign) -> str:
    """What stands beside a field, or a value of an enum."""
    line = lines[(node.end_lineno or node.lineno) - 1]
    said = line.encode()[node.end_col_offset :].decode().partition("#")[2].strip()
    return said.replace("|", "\\|")


def limits(path: str) -> Iterator[str]:
    """Public numbers with their reasons; an alias of a type is none of them."""
    body = ast.parse((ROOT / path).read_text()).body
    rows = [
        f"| `{target(number)}` | `{ast.unparse(number.value)}` | "
        f"{' '.join(inspect.cleandoc(reason.value.value).split())} |"
        for number, reason in zip(body, body[1:], strict=False)
        if isinstance(number, ast.Assign | ast.AnnAssign)
        and number.value is not None
        and isinstance(reason, ast.Expr)
        and isinstance(reason.value, ast.Constant)
        and isinstance(reason.value.value, str)
        and target(number).isupper()
        and not target(number).startswith("_")
    ]
    if rows:
        yield "\n".join(["| limit | | why |", "|---|---|---|", *rows]) + "\n"


def target(node: ast.Assign | ast.AnnAssign) -> str:
    """The name that is given a value."""
    return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def formats() -> str:
    """docs/formats.md."""
    out = [MADE, "# Formats\n", "What outlives a process, byte by byte.\n"]
    for title, path in FORMATS:
        out += [f"## {title}\n", f"`{path}`\n", prose(doc_of(path), 0), *limits(path)]
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Struct("):
                out.append(f"`{ast.unparse(node)}`\n")
    return "\n".join(out)


def client() -> str:
    """docs/client.md."""
    package = ast.parse((ROOT / "pegaflow/client/__init__.py").read_text())
    homes = {
        alias.name: f"pegaflow/client/{node.module}.py"
        for node in package.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    out = [MADE, "# pegaflow.client\n", prose(ast.get_docstring(package) or "", 0)]
    for name, path in homes.items():
        body = ast.parse((ROOT / path).read_text()).body
        found = [
            n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
        ]
        if not found:
            (alias,) = (n for n in body if ast.unparse(n).startswith(f"{name} = "))
            out.append(f"## {name}\n\n`{ast.unparse(alias)}`\n")
        for entry in found:
            out += described(name, entry, 2)
            for item in entry.body if isinstance(entry, ast.ClassDef) else ():
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    out += described(f"{name}.{item.name}", item, 3)
    return "\n".join(out)


def described(name: str, node: ast.ClassDef | ast.FunctionDef, level: int) -> Iterator[str]:
    """One entry: signature and docstring."""
    made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    function = node if isinstance(node, ast.FunctionDef) else made[0] if made else None
    yield f"{'#' * level} {name}\n"
    plain = any(ast.unparse(d) == "property" for d in node.decorator_list)
    if function is not None and not plain:
        returns = f" -> {ast.unparse(function.returns)}" if function.returns and not made else ""
        arguments = ast.unparse(function.args)
        yield f"```python\n{node.name}({arguments}){returns}\n```\n"
    yield prose(ast.get_docstring(node) or "", 0)
    fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
    if fields:
        yield "```python\n" + "\n".join(fields) + "\n```\n"


def parts() -> str:
    """The parts of each actor, from their classes."""
    out = []
    for actor in ACTORS:
        rows = []
        folder = ROOT / "actors" / actor
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder)
            for node in ast.parse(path.read_text()).body:
                bases = (
                    [ast.unparse(b) for b in node.bases] if isinstance(node, ast.ClassDef) else []
                )
                if isinstance(node, ast.ClassDef) and {"Part", "Actor", "Tier"} & set(bases):
                    said = (ast.get_docstring(node) or "").split("\n\n")[0]
                    rows.append(f"| `{name}` | `{node.name}` | {' '.join(said.split())} |")
        out += [f"**{actor}**\n", "| file | part | |", "|---|---|---|", *rows, ""]
    return "\n".join(out) + "\n"


def doc_of(path: str) -> str:
    """The docstring of a module."""
    return ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
