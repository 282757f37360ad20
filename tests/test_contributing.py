"""Pages name files that exist; CONTRIBUTING draws the floors, README counts what there is."""

import re
from pathlib import Path

import pytest

from prunefront.pipelines.cli.catalogue import catalogue
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parents[1]
PLACE = re.compile(
    r"`((?:prunefront|search|pruners|pipelines|tests|docs|examples|scripts|benchmarks)/[\w./-]*)`"
)
LINK = re.compile(r"(?<![\"'])\]\((?!https?:)([\w./-]*)(#[\w-]+)?\)")  # not what a subscript is called with


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    named = {
        *PLACE.findall(text),
        *(str((page.parent / link).relative_to(ROOT)) for link, _ in LINK.findall(text) if link),
    }
    # `name.py` stands for a file that somebody adds
    missing = [
        place for place in sorted(named) if not place.endswith("/name.py") and not (ROOT / place).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_section_that_is_linked_exists(page: Path) -> None:
    for link, section in LINK.findall(page.read_text()):
        if section:
            there = page.parent / link if link else page
            assert section in sections(there), f"{link}{section}"


def sections(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link).resolve() for link, _ in LINK.findall(index.read_text())}
    assert [page for page in PAGES if page.resolve() not in named | {index}] == []


def test_contributing_draws_the_floors_that_are_held() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = re.findall(r"^    (?:pipelines|pruners|search)   .*(?:\n                .*)*", text, re.MULTILINE)
    assert len(drawn) == len(FLOORS)
    for block in drawn:
        package, *rooms = re.findall(r"\w+", block)
        assert [room for room in FLOORS[package] if room != "job"] == rooms


def test_readme_counts_the_methods_that_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    for what in ("criteria", "training procedures", "allocators", "controls"):
        said = re.search(rf"(\d+) {what}", text)
        assert said is not None
        assert int(said[1]) == len(catalogue(what.split()[-1]))
    assert len(text.splitlines()) <= 120
