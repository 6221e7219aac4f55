"""The guide shows code and YAML of the examples, letter by letter, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "extend").glob("*.md"))
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def examples_of(page):
    """Return the text of the example files that a page links to."""
    targets = {(page.parent / target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))}
    files = [path for path in targets if path.parent == ROOT / "examples"]
    return {path.suffix: path.read_text(encoding="utf-8") for path in sorted(files, reverse=True)}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda p: p.stem)
def test_every_snippet_is_a_part_of_the_linked_example(page):
    text, linked = page.read_text(encoding="utf-8"), examples_of(page)
    assert {".py", ".yaml"} <= set(linked), "link the example and its config"
    for language, suffix in (("python", ".py"), ("yaml", ".yaml")):
        blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        assert blocks, f"no {language}"
        for block in blocks:
            assert block in linked[suffix], block
    assert set(re.findall(r"```(\w*)\n", text)) <= {"python", "yaml", "bash", ""}


def test_every_example_has_a_page_and_every_page_is_in_the_table():
    overview = (ROOT / "docs" / "extend" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES} - {"README.md"}
    assert pages == set(LINK.findall(overview)) & pages
    shown = {target for page in PAGES for target in LINK.findall(page.read_text(encoding="utf-8"))}
    for path in (ROOT / "examples").glob("*.py"):
        assert f"../../examples/{path.name}" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
