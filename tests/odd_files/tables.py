"""Odd CSV files of images and their classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trunkline.data.classification import ImageClassification

from .case import OddFile

TOPIC = "Folders, names and archives"
TABLE = "train.csv"


def with_table(content: str | bytes) -> Callable[[Path], None]:
    """Write three images and a table of them."""

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        for number, name in enumerate("abc"):
            Image.new("RGB", (8, 6), (40 * number, 90, 200)).save(folder / "images" / f"{name}.png")
        (folder / TABLE).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def read(folder: Path) -> ImageClassification:
    data = ImageClassification(str(folder), train=TABLE, size=8, workers=0)
    data.read_split("train")
    return data


def reads_as(names: list[str], labels: list[int]) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        index = read(folder).read_split("train")
        assert list(index.class_names) == names and index.labels.tolist() == labels

    return check


def refused(name: str, oddity: str, content: str | bytes, means: str, remedy: str) -> OddFile:
    return OddFile(f"table_{name}", TOPIC, oddity, with_table(content), read, means, remedy)


FIELDS = "Each field of a table has to be what its column says; nothing is guessed."
MEND = "Correct the lines that are named."
COLUMNS = "The first line names the columns; those that could be meant otherwise are refused."
NAME_THEM = "Rename or remove the column."

ODD_FILES = [
    refused(
        "nan_label",
        "A table of images in which a class is nan, as pandas writes what is missing",
        "path,label\nimages/a.png,cat\nimages/b.png,nan\nimages/c.png,dog\n",
        FIELDS,
        MEND,
    ),
    refused(
        "empty_label",
        "A table in which a class is empty",
        "path,label\nimages/a.png,cat\nimages/b.png, \nimages/c.png,dog\n",
        FIELDS,
        MEND,
    ),
    refused(
        "uncertain_flag",
        "A table of zeros and ones that holds -1 for uncertain",
        "path,cat,dog\nimages/a.png,1,0\nimages/b.png,-1,1\n",
        FIELDS,
        MEND,
    ),
    refused(
        "windows_paths",
        "A table with paths of Windows",
        "path,label\nimages\\a.png,cat\nimages\\b.png,dog\n",
        FIELDS,
        MEND,
    ),
    refused(
        "addresses",
        "A table with addresses in place of paths",
        "path,label\nhttps://example.org/a.png,cat\nimages/b.png,dog\n",
        FIELDS,
        MEND,
    ),
    refused(
        "contradiction",
        "A table with two rows for one image, of different classes",
        "path,label\nimages/a.png,cat\nimages/b.png,dog\n./images/a.png,dog\n",
        "Which of the rows is right cannot be known.",
        "Remove one, or use a column labels if images may show several classes.",
    ),
    refused(
        "two_splits",
        "A table with one image in the training and in the validation data",
        "path,label,split\nimages/a.png,cat,train\nimages/b.png,dog,train\nimages/a.png,cat,val\n",
        "Metrics of images that were trained on say nothing.",
        "Remove one of the rows.",
    ),
    refused(
        "one_number_two_ways",
        "A table with the labels 1 and 1.0",
        "path,label\nimages/a.png,1\nimages/b.png,2\nimages/c.png,1.0\n",
        "They would be two classes. Whole numbers get a point when a program keeps them beside empty fields.",
        "Write the label the same way in all rows.",
    ),
    refused(
        "look_alikes",
        "A table with classes that differ in case only",
        "path,label\nimages/a.png,cat\nimages/b.png,dog\nimages/c.png,Cat \n",
        "Spaces around a name are removed. Names that differ in case, in spaces inside, or in the code of "
        "accents stay different classes.",
        "Write the name the same way in all rows, if it is one class.",
    ),
    refused(
        "no_header", "A table without a header", "images/a.png,cat\nimages/b.png,dog\n", COLUMNS, NAME_THEM
    ),
    refused(
        "semicolons", "A table with semicolons between columns", "path;label\na.png;cat\n", COLUMNS, NAME_THEM
    ),
    refused(
        "capital_label",
        "A table with a column Label of 0 and 1, which is not label",
        "path,Label\nimages/a.png,0\nimages/b.png,1\n",
        COLUMNS,
        NAME_THEM,
    ),
    refused(
        "class_column",
        "A table with a column class of 0 and 1, which would be a class of that name",
        "path,class\nimages/a.png,0\nimages/b.png,1\n",
        COLUMNS,
        NAME_THEM,
    ),
    refused(
        "index_column",
        "A table of zeros and ones with a column of row numbers that has no name",
        ",path,cat\n0,images/a.png,1\n1,images/b.png,0\n",
        COLUMNS,
        NAME_THEM,
    ),
    refused(
        "columns_twice",
        "A table with two columns of one name",
        "path,label,label\na,b,c\n",
        COLUMNS,
        NAME_THEM,
    ),
    refused(
        "weights",
        "A table with a column of weights",
        "path,label,weight\nimages/a.png,cat,1\nimages/b.png,dog,9\n",
        "Images cannot be weighted; beside label all other columns are left alone.",
        "Remove the column, or weigh classes by --model.head.class_weights.",
    ),
    refused(
        "commas_in_labels",
        "A table with several classes in a field, and commas between them",
        'path,labels\nimages/a.png,"cat,dog"\nimages/b.png,cat\n',
        "Names of several classes stand between semicolons, so that a comma is part of a name.",
        "Write cat;dog.",
    ),
    refused(
        "open_quote",
        "A table in which a quote is not closed",
        'path,label\nimages/a.png,cat\nimages/b.png,"dog\nimages/c.png,cat\n',
        "All rows below would be part of one field.",
        "Close the quote in the line that is named, or remove it.",
    ),
    refused(
        "latin_1",
        "A table in Latin-1",
        "path,label\nimages/a.png,cat\nimages/b.png,b\u00e4r\n".encode("latin-1"),
        "Text has to be UTF-8: letters of other encodings would be other names.",
        "Save it as UTF-8.",
    ),
    refused(
        "line_feed",
        "A table with a line feed in the name of a class",
        'path,label\nimages/a.png,"big\ncat"\nimages/b.png,dog\n',
        "Names of classes go into tables, logs and pictures, so they are one line of at most 255 letters.",
        "Rename the class.",
    ),
    OddFile(
        "table_marks_and_spaces",
        TOPIC,
        "A table with a byte order mark, line ends of Windows, quotes and spaces",
        with_table(b'\xef\xbb\xbf"path", "label"\r\n"images/a.png", "9"\r\n images/b.png , 10\r\n\r\n'),
        reads_as(["9", "10"], [0, 1]),
        "It is read as if it had none of them; classes that are whole numbers are sorted as numbers.",
    ),
]
