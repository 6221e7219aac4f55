"""Write the collection of odd files, or the page about them.

    python tests/make_odd_files.py FOLDER                        # a folder for each odd file, and a list
    python tests/make_odd_files.py --page docs/data-problems.md  # the page, from what the package says

The files are small. They are what people have met in real datasets: try your own readers on them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from odd_files.collection import collection
from odd_files.page import page


def write_all(folder: Path) -> int:
    """Write every odd file into a folder of its own, and ``odd_files.csv``; return how many there are."""
    cases = collection()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; give a folder that does not exist")
    for case in cases:
        (folder / case.name).mkdir()
        case.write(folder / case.name)
    with open(folder / "odd_files.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["folder", "topic", "oddity"])
        rows.writerows([case.name, case.topic, case.oddity] for case in cases)
    return len(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where to write the files; empty or new")
    parser.add_argument("--page", type=Path, help="write the page about them instead")
    options = parser.parse_args()
    if (options.folder is None) == (options.page is None):
        parser.error("give a folder, or --page FILE")
    if options.page is not None:
        options.page.write_text(page(collection()), encoding="utf-8")
        print(f"wrote {options.page}")
    else:
        print(f"wrote {write_all(options.folder)} odd files: {options.folder.resolve()}")


if __name__ == "__main__":
    main()
