"""Files that should be COCO JSON and are odd as a whole."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from .case import OddFile
from .coco import NAME, TOPIC, content, read

TEXT = json.dumps(content())


def bytes_of(data: bytes) -> Callable[[Path], None]:
    """Return what writes these bytes in place of the JSON file."""

    def write(folder: Path) -> None:
        (folder / NAME).write_bytes(data)

    return write


def read_right(folder: Path) -> None:
    index = read(folder)
    assert index.boxes.tolist() == [[4, 6, 24, 21], [30, 10, 42.5, 40], [2, 30, 27, 46]]
    assert [category.name for category in index.categories] == ["cat", "dog"]


LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 132735\n"
)
AGAIN = "Export the file again."

ODD_FILES = [
    *(
        OddFile(f"json_{name}", TOPIC, oddity, bytes_of(data), read, means, remedy)
        for name, oddity, data, means, remedy in [
            ("empty", "An empty file in place of JSON", b"", "The export or the copy broke off.", AGAIN),
            ("cut", "A JSON file that was cut off", TEXT[:200].encode(), "The copy broke off.", AGAIN),
            ("latin_1", "JSON in Latin-1", TEXT.replace("cat", "\xe9t\xe9").encode("latin-1"),
             "JSON is UTF-8.", "Convert it: `iconv -f latin1 -t utf8`."),
            ("list", "A list in place of an object", b"[]", "Files of predictions are lists.",
             "Give the file of the annotations."),
            ("without_categories", "JSON without categories", b'{"images": [], "annotations": []}',
             "Without categories there are no classes.", AGAIN),
            ("categories_object", "Categories by id in an object in place of a list",
             json.dumps({**content(), "categories": {"1": "cat", "2": "dog"}}).encode(),
             "COCO has a list of objects with `id` and `name`.", "Write them as a list."),
            ("nested", "Lists nested 100,000 deep", b"[" * 100_000 + b"]" * 100_000,
             "No reader follows so deep.", AGAIN),
            ("digits", "An integer of 5,000 digits",
             TEXT.replace('"area": 100.5', '"area": ' + "9" * 5000, 1).encode(),
             "No number of an image is so large. (Python refuses to read it.)", "Correct the number."),
            ("key_twice", "A key twice in one object",
             TEXT.replace('"bbox"', '"bbox": [1, 1, 2, 2], "bbox"', 1).encode(),
             "JSON readers silently take the last of them.", "Take one of the two out."),
            ("lists_twice", "Two lists of annotations", (TEXT[:-1] + ', "annotations": []}').encode(),
             "JSON readers silently take the last of them: here, no annotations.",
             "Join the lists, or take one of them out."),
            ("git_lfs", "The pointer of Git LFS in place of a file", LFS,
             "The repository was cloned without Git LFS.", "Install it and run `git lfs pull`."),
            ("gzip", "Compressed JSON", gzip.compress(TEXT.encode(), mtime=0), "It is not unpacked.",
             "Run `gunzip`."),
            ("html", "A web page in place of JSON", b"<!DOCTYPE html><title>Sign in</title>",
             "The download needed a login, or the address was wrong.", "Download it again."),
        ]
    ),
    *(
        OddFile(f"json_{encoding.replace('-', '_')}", TOPIC, f"JSON in {title}",
                bytes_of(TEXT.encode(encoding)), read_right, "It is read.")
        for encoding, title in [("utf-8-sig", "UTF-8 with a byte order mark"), ("utf-16", "UTF-16"),
                                ("utf-32", "UTF-32")]
    ),
]  # fmt: skip
