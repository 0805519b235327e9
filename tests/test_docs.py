"""docs/ says what the code says, and every link in it leads somewhere."""

import re
import subprocess
import sys
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    tops = ("actors", "wire", "pegaflow", "tests", "perf", "docs", "examples")
    named = set(
        re.findall(
            rf"`((?:{'|'.join(tops)})/[\w/.-]+?\.(?:py|md|json|sh|mutant))`", page.read_text()
        )
    )
    assert sorted(name for name in named if not (docs.ROOT / name).exists()) == []


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
