"""Zips of class folders: read like the folders, and damaged ones."""

import zipfile
from pathlib import Path

import pytest
from class_files import (
    class_names,
    module,
    packed,
    paths,
    picture,
    ready,
)

from trunkline.data.classification import archive
from trunkline.data.classification.archive import read_archive, read_member
from trunkline.data.classification.archive_names import ArchiveError
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "data/set-1.0/"])
def test_a_zip_gives_what_its_folders_give(folders, tmp_path, compression, top):
    made = ready(packed(folders, tmp_path / "set.zip", top, compression))
    plain = ready(folders)
    assert class_names(made) == class_names(plain)
    for split in ("train", "val"):
        one, other = made.splits[split], plain.splits[split]
        assert one.labels.tolist() == other.labels.tolist()
        assert [one.content(n) for n in range(len(one))] == [
            Path(other.path(n)).read_bytes() for n in range(len(other))
        ]
        assert paths(one) == [
            f"{tmp_path}/set.zip/{top}" + str(p)[len(str(folders)) + 1 :] for p in paths(other)
        ]
    made.prepare_data()


def test_folders_that_a_zip_lists_are_classes(folders, tmp_path):
    assert class_names(ready(packed(folders, tmp_path / "s.zip", with_folders=True))) == [
        "ant",
        "bee",
        "cat",
        "dog",
    ]


def test_zips_as_splits_with_and_without_a_folder_around(folders, tmp_path):
    packed(folders / "train", tmp_path / "a.zip")
    packed(folders / "val", tmp_path / "val.zip", "val/")
    made = ready(tmp_path, train="a.zip")
    assert class_names(made) == ["ant", "cat", "dog"] and made.splits["val"].labels.tolist() == [1, 2]
    picture(folders / "train/train/1.png")  # a class of that name
    made = ready(train=str(packed(folders / "train", tmp_path / "b.zip")))
    assert class_names(made) == ["ant", "cat", "dog", "train"]


def test_folders_inside_a_zip_can_be_named(folders, tmp_path):
    target = packed(folders, tmp_path / "set.zip", "top/")
    assert paths(ready(target, val="train").splits["val"]) == paths(ready(target).splits["train"])
    with pytest.raises(DataNotFoundError, match="set.zip has no folder gone"):
        ready(target, val="gone")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as opened:
        opened.writestr("cat/1.png", b"")
    with pytest.raises(DataNotFoundError, match=r"(?s)no train data.*other.zip/train"):
        ready(tmp_path / "other.zip")


def test_wrong_zips_are_named(tmp_path, folders, monkeypatch):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match="no.zip: cannot be read as a zip"):
        ready(tmp_path / "no.zip")
    with pytest.raises(ArchiveError, match="compressed by method 14"):
        ready(packed(folders, tmp_path / "lzma.zip", compression=zipfile.ZIP_LZMA))
    target = packed(folders, tmp_path / "flag.zip")
    monkeypatch.setattr(archive, "_ENCRYPTED", 0)
    assert len(read_archive(target).names) == 7
    content = bytearray(target.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the first record
    target.write_bytes(content)
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="is encrypted"):
        read_archive(target)


def test_a_damaged_member_is_noticed(tmp_path, folders):
    target = packed(folders, tmp_path / "set.zip")
    found = read_archive(target)
    row = found.table[0].tolist()
    content = bytearray(target.read_bytes())
    name = next(iter(found.names)).encode()
    content[content.find(name) + len(name) + 20] ^= 0xFF
    target.write_bytes(content)
    with pytest.raises(ArchiveError, match="CRC-32"):
        read_member(found.path, row)
    made = module(target)
    with pytest.raises(ImageError, match=r"(?s)1 of 6 images cannot be used.*set.zip/val/dog/1.png: damaged"):
        made.prepare_data()
    target.unlink()
    with pytest.raises(ArchiveError, match="No such file"):
        read_member(found.path, row)
