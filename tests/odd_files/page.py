"""docs/data-problems.md, made from the messages of the collection."""

from __future__ import annotations

import tempfile
from itertools import groupby
from pathlib import Path

from .case import OddFile

HEAD = """# Problems with data

What trunkline says about odd files, what it means, and what to do. `DATA` is the folder of your data.

*This page is generated: `python tests/make_odd_files.py --page docs/data-problems.md`. The files can be
written by `python tests/make_odd_files.py FOLDER`, to try another reader on them; their names are below each
section.*
"""


def groups(cases: list[OddFile]) -> list[list[OddFile]]:
    """Put cases that follow each other and mean the same together: they share a section of the page."""
    return [list(each) for _, each in groupby(cases, key=lambda case: (case.topic, case.means, case.remedy))]


def page(cases: list[OddFile]) -> str:
    """Write every odd file of a list into a temporary folder, read it, and return the page."""
    parts = [HEAD]
    for topic, each in groupby(groups(cases), key=lambda group: group[0].topic):
        parts.append(f"## {topic}\n")
        parts += [section(group) for group in each]
    return "\n".join(parts)


def section(group: list[OddFile]) -> str:
    """Return what the page says about cases that mean the same, with the message of the first.

    Raises:
        AssertionError: if one of them is read wrongly, or a message and a remedy do not come together.
    """
    messages = [said(case) for case in group]
    first = group[0]
    lines = [f"### {first.oddity}\n"]
    if messages[0]:
        lines.append(f"```text\n{messages[0]}\n```\n")
    lines.append(first.means + (f" **What to do:** {first.remedy}" if first.remedy else "") + "\n")
    if len(group) > 1:
        lines.append("The same holds for:\n")
        lines += [f"- {case.oddity}" for case in group[1:]]
        lines.append("")
    lines.append(f"<sub>{', '.join(f'`{case.name}`' for case in group)}</sub>\n")
    return "\n".join(lines)


def said(case: OddFile) -> str:
    """Return the message about one odd file; empty if it is read as it should be."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        folder.mkdir()
        case.write(folder)
        message = case.message(folder)
    assert bool(message) == bool(case.remedy), f"{case.name}: a message needs a remedy, a remedy a message"
    assert "Traceback" not in message, f"{case.name}: {message}"
    return message
