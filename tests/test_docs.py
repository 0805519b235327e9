"""docs/ says what the code says, and every link in it leads somewhere."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import docs

PAGES = sorted(
    [
        *docs.DOCS.glob("*.md"),
        *(docs.ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ]
)


@pytest.mark.parametrize("path", docs.pages(), ids=lambda path: path.name)
def test_a_page_that_is_made_is_up_to_date(path: Path) -> None:
    assert path.read_text() == docs.pages()[path], "python -m tests.docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def quoted(page: Path) -> set[str]:
    """What stands between backticks on a page, but for whole examples."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {said.strip("/") for said in re.findall(r"`([^`\n]+)`", text)}


TOPS = tuple(f"{n}/" for n in "actors wire pegaflow tests perf docs examples findings .ci".split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_folder_that_is_named_is_there(page: Path) -> None:
    named = {name for name in quoted(page) if name.startswith(TOPS) and "<" not in name}
    assert sorted(name for name in named if not (docs.ROOT / name).exists()) == []


@cache
def words_of_the_code() -> frozenset[str]:
    """Every name in it, and every word of its texts."""
    kept = (".py", ".sh", ".toml", ".ini", ".service")
    files = [
        path
        for top in TOPS
        for path in (docs.ROOT / top).rglob("*")
        if path.suffix in kept and path.name != Path(__file__).name
    ]
    files += [docs.ROOT / name for name in ("pyproject.toml", "tox.ini", ".ci/run")]
    mutants = {path.stem for path in (docs.ROOT / "tests").rglob("*.mutant")}
    return frozenset(re.findall(r"\w+", "".join(map(Path.read_text, files)))) | mutants


FOREIGN = {"MADV_HUGEPAGE", "VLLM_CPU_NUM_OF_RESERVED_CPU", "logind", "pause_generation", "vX.Y.Z"}
"""What others call their things, and the pattern of a version."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_one_that_the_code_has(page: Path) -> None:
    names = {name.removesuffix("()") for name in quoted(page)} - FOREIGN
    names = {name for name in names if re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", name)}
    parts = {part for name in names for part in name.split(".")}
    assert sorted(part for part in parts if part not in words_of_the_code()) == []


def test_index_names_every_page() -> None:
    index = (docs.DOCS / "index.md").read_text()
    assert [
        p.name for p in docs.DOCS.glob("*.md") if p.name not in index and p.stem != "index"
    ] == []


def test_the_example_of_a_pure_test_passes() -> None:
    example = docs.ROOT / "examples" / "test_sans_io.py"
    subprocess.run([sys.executable, "-m", "pytest", "-q", str(example)], check=True)


def test_what_shows_that_a_hole_is_closed_is_there() -> None:
    page = (docs.DOCS / "ownership.md").read_text()
    _, _, holes = page.partition("## The holes")
    source = "".join(path.read_text() for path in (docs.ROOT / "tests").rglob("test_*.py"))
    mutants = {path.stem for path in (docs.ROOT / "tests" / "sim" / "mutants").glob("*.mutant")}
    assert {
        name for name in re.findall(r"\btest_\w+", holes) if f"def {name}(" not in source
    } == set()
    assert set(re.findall(r"`([a-z_]+)`", holes)) <= mutants
