"""The page about faults: each row names a test, and that test is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_each_row_names_tests_that_are_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    for row in rows:
        if row.startswith("| fault |"):
            continue
        named = NAMED.findall(row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{file} has no {test}"
