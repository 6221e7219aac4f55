"""Every odd file of the collection: what is said about it is what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
from odd_files.case import OddFile
from odd_files.collection import TOPICS, collection
from odd_files.page import HEAD, groups, section

PAGE = Path(__file__).parents[1] / "docs" / "data-problems.md"
GROUPS = groups(collection())


@pytest.mark.parametrize("group", GROUPS, ids=[group[0].name for group in GROUPS])
def test_page_says_what_is_said(group: list[OddFile]) -> None:
    assert section(group) in PAGE.read_text(encoding="utf-8"), (
        "docs/data-problems.md is out of date: python tests/make_odd_files.py --page docs/data-problems.md"
    )


def test_page_has_nothing_else() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert content.startswith(HEAD)
    assert content.count("\n### ") == len(GROUPS)
    assert [topic for topic in TOPICS if f"\n## {topic}\n" in content] == [
        topic for topic in TOPICS if any(group[0].topic == topic for group in GROUPS)
    ]
