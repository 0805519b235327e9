"""What each vLLM asks of a connector, read from its source: `signatures.json`.

    python -m tests.connectors.vllm.signatures FOLDER...

Each folder is a `site-packages` that has vLLM in it, or an unpacked wheel; its version replaces the
one in `signatures.json`. Nothing of vLLM is imported. Of the connector's base classes every method
is kept, as vLLM declares it; of what is passed to a connector, the names of the fields.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

RECORD = Path(__file__).with_name("signatures.json")
BASE = "distributed/kv_transfer/kv_connector/v1/base.py"
METHODS = {"KVConnectorBase_V1": BASE, "SupportsHMA": BASE, "KVConnectorWorkerMetadata": BASE}
FIELDS = {
    "SchedulerOutput": "v1/core/sched/output.py",
    "NewRequestData": "v1/core/sched/output.py",
    "CachedRequestData": "v1/core/sched/output.py",
    "KVConnectorOutput": "v1/outputs.py",
    "Request": "v1/request.py",
    "KVCacheConfig": "v1/kv_cache_interface.py",
    "KVTransferConfig": "config/kv_transfer.py",
}


class Recorded(TypedDict):
    """Of one version."""

    methods: dict[str, dict[str, str]]  # class -> method -> "(self, a, b=...)", marks before it
    fields: dict[str, list[str]]  # class -> names


def record() -> dict[str, Recorded]:
    """All versions, the oldest first."""
    known: dict[str, Recorded] = json.loads(RECORD.read_text())
    return known


def version(folder: Path) -> str:
    """Of the vLLM in a folder."""
    for found in folder.glob("vllm*.dist-info"):
        if name := re.match(r"vllm(?:_cpu)?-(\d+\.\d+\.\d+)", found.name):
            return name[1]
    raise SystemExit(f"no vLLM in {folder}")


def read(folder: Path) -> Recorded:
    """What the vLLM in a folder declares."""
    root = folder / "vllm"
    return {
        "methods": {
            name: {f.name: said(f) for f in functions(declared(root / path, name))}
            for name, path in METHODS.items()
        },
        "fields": {
            name: sorted(names(declared(root / path, name))) for name, path in FIELDS.items()
        },
    }


def declared(path: Path, name: str) -> ast.ClassDef:
    """A class of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise SystemExit(f"no class {name} in {path}")


def functions(kind: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """The methods of a class that are not private, and its constructor."""
    for node in kind.body:
        if isinstance(node, ast.FunctionDef):
            if node.name == "__init__" or not node.name.startswith("_"):
                yield node


def said(function: ast.FunctionDef) -> str:
    """Its decorators and parameters; types and values are left out."""
    for arg in ast.walk(function.args):
        if isinstance(arg, ast.arg):
            arg.annotation = None
    function.args.defaults = [ast.Constant(...) for _ in function.args.defaults]
    function.args.kw_defaults = [d and ast.Constant(...) for d in function.args.kw_defaults]
    marks = [ast.unparse(mark) for mark in function.decorator_list]
    return " ".join([*marks, f"({ast.unparse(function.args)})"])


def names(kind: ast.ClassDef) -> Iterator[str]:
    """Fields of a dataclass, properties, and what the constructor sets."""
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.FunctionDef):
            if any("property" in ast.unparse(mark) for mark in node.decorator_list):
                yield node.name
            if node.name == "__init__":
                yield from sorted(set(kept(node)))


def kept(constructor: ast.FunctionDef) -> Iterator[str]:
    """Names without an underscore that a constructor gives a value."""
    for node in ast.walk(constructor):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if not node.attr.startswith("_"):
                yield node.attr


def main() -> None:
    """See the module."""
    known = record() if RECORD.exists() else {}
    known |= {version(folder): read(folder) for folder in map(Path, sys.argv[1:])}
    ordered = sorted(known, key=lambda name: [int(part) for part in name.split(".")])
    RECORD.write_text(json.dumps({name: known[name] for name in ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
