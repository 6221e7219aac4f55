"""docs/data-problems.md, made from the messages of the collection."""

from __future__ import annotations

import tempfile
from itertools import groupby
from pathlib import Path

from .case import OddFile

HEAD = """# Problems with data

What trunkline says about odd files, what it means, and what to do. `DATA` is the folder of your data.

*This page is generated: `python tests/make_odd_files.py --page docs/data-problems.md`. The files that it is made from
can be written by `python tests/make_odd_files.py FOLDER`, to try another reader on them.*
"""


def page(cases: list[OddFile]) -> str:
    """Write every odd file of a list into a temporary folder, read it, and return the page."""
    parts = [HEAD]
    for topic, each in groupby(cases, key=lambda case: case.topic):
        parts.append(f"## {topic}\n")
        parts += [section(case) for case in each]
    return "\n".join(parts)


def section(case: OddFile) -> str:
    """Return what the page says about one odd file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        folder.mkdir()
        case.write(folder)
        message = case.message(folder)
    lines = [f"### {case.oddity}\n"]
    if message:
        lines.append(f"```text\n{message}\n```\n")
    lines.append(case.means + (f" **What to do:** {case.remedy}" if case.remedy else ""))
    return "\n".join(lines) + f"\n\n<sub>`{case.name}`</sub>\n"
