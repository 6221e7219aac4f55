"""Zips as people and programs make them: claims, names, members twice, and files that are no zip."""

import io
import os
import struct
import tarfile
import zipfile

import pytest
from class_files import class_names, module, packed, paths, picture, ready

from trunkline.data.classification import archive
from trunkline.data.classification.archive import read_archive, read_member
from trunkline.data.classification.archive_names import ArchiveError
from trunkline.data.classification.names import LabelError
from trunkline.data.shared.io import ImageError


def written(target, names, content=b"x"):
    """A zip of members with these names, which zipfile would tidy in some cases."""
    with zipfile.ZipFile(target, "w") as opened:
        for name in names:
            entry = zipfile.ZipInfo("x")
            entry.filename = entry.orig_filename = name
            opened.writestr(entry, content)
    return target


def pictures_as(target, *names):
    """A zip of pictures, each of its own colour."""
    with zipfile.ZipFile(target, "w") as opened:
        for number, name in enumerate(names):
            entry = zipfile.ZipInfo("x")
            entry.filename = entry.orig_filename = name
            path = picture(target.parent / "one.png", (number, 0, 0))
            opened.writestr(entry, path.read_bytes())
    return target


def central(content, number=0):
    """Where the record of a member begins in the list at the end."""
    position = -1
    for _ in range(number + 1):
        position = content.index(b"PK\x01\x02", position + 1)
    return position


def patched(target, offset, form, value):
    content = bytearray(target.read_bytes())
    struct.pack_into(form, content, central(content) + offset, value)
    target.write_bytes(content)
    return target


def test_a_member_that_claims_gigabytes_is_not_unpacked(folders, tmp_path):
    target = patched(packed(folders, tmp_path / "s.zip", "", zipfile.ZIP_DEFLATED), 24, "<I", 3 << 30)
    name = read_archive(target).names[0]
    with pytest.raises(
        ImageError, match=rf"(?s)1 of 6.*s.zip/{name}: claims 3,221,225,472 bytes, members may"
    ):
        module(target).prepare_data()


def test_a_member_that_unpacks_to_more_than_it_claims_is_stopped(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("cat/a.png", bytes(30 << 20))
    row = read_archive(patched(tmp_path / "s.zip", 24, "<I", 1000)).table[0].tolist()
    with pytest.raises(ArchiveError, match="unpacks to more than the 1,000 bytes that it claims"):
        read_member(str(tmp_path / "s.zip"), row)


def test_no_member_may_be_larger_than_the_limit(tmp_path, monkeypatch):
    target = written(tmp_path / "s.zip", ["cat/a.png"], bytes(100))
    row = read_archive(target).table[0].tolist()
    assert read_member(str(target), row) == bytes(100)
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 99)
    with pytest.raises(ArchiveError, match="claims 100 bytes, members may have 99"):
        read_member(str(target), row)


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (20, "<I", 1 << 31, "claims 2,147,483,648 bytes at 0, more than the archive has"),
        (42, "<I", 1 << 30, "at 1,073,741,824, more than the archive has"),
        (6, "<H", 99, "cannot be read as a zip .zip file version 9.9"),
        (10, "<H", 93, "compressed by method 93"),
    ],
)
def test_lists_of_members_that_cannot_be_right_are_refused(tmp_path, offset, form, value, words):
    target = patched(pictures_as(tmp_path / "s.zip", "cat/a.png"), offset, form, value)
    with pytest.raises(ArchiveError, match=f"s.zip: .*{words}"):
        ready(train=str(target))


def test_damage_anywhere_is_a_message(tmp_path):
    target = pictures_as(tmp_path / "s.zip", "cat/a.png", "dog/b.png")
    content = target.read_bytes()
    for position in range(central(content), len(content)):
        for value in (0x00, 0xFF):
            damaged = bytearray(content)
            damaged[position] = value
            target.write_bytes(damaged)
            try:
                found = read_archive(target)
                for row in found.table.tolist():
                    read_member(str(target), row)
            except ArchiveError as error:
                assert str(error)
    target.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArchiveError, match="begins as a zip, and its end is missing"):
        read_archive(target)


@pytest.mark.parametrize(
    "name", ["../cat/a.png", "cat/../../a.png", "/etc/a.png", "..\\a.png", "C:\\x\\a.png"]
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(ArchiveError, match=r"(?s)s.zip: names of members that lead outside.*a.png"):
        ready(train=str(pictures_as(tmp_path / "s.zip", "cat/b.png", name)))


def test_backslashes_and_dots_are_what_unpacking_makes_of_them(tmp_path):
    made = ready(train=str(pictures_as(tmp_path / "s.zip", "cat\\a.png", "./dog/b.png", "cow//c.png")))
    index = made.splits["train"]
    assert [path[len(f"{tmp_path}/s.zip/") :] for path in paths(index)] == [
        "cat/a.png",
        "cow/c.png",
        "dog/b.png",
    ]
    assert class_names(made) == ["cat", "cow", "dog"] and index.labels.tolist() == [0, 1, 2]
    made.prepare_data()


def test_members_of_one_name_are_refused(tmp_path):
    target = pictures_as(tmp_path / "s.zip", "cat/a.png", "dog/b.png", "cat\\a.png")
    with pytest.raises(ArchiveError, match=r"(?s)members of the same name.*cat/a.png \(2 times\)"):
        ready(train=str(target))


def test_names_of_macs_are_utf8_and_others_are_said(tmp_path, caplog):
    target = pictures_as(tmp_path / "s.zip", "\u00e9t\u00e9/a.png", "dog/b.png")
    content = target.read_bytes()
    plain = bytearray(content)
    for number in range(2):
        plain[central(content, number) + 9] &= ~0x08  # the flag of names in UTF-8
    target.write_bytes(plain)
    assert class_names(ready(train=str(target))) == ["dog", "\u00e9t\u00e9"] and "encoding" not in caplog.text
    target.write_bytes(bytes(plain).replace("\u00e9t\u00e9".encode(), b"\xe9t\xe9zz"))
    assert len(class_names(ready(train=str(target)))) == 2
    assert "s.zip: 1 name of unknown encoding" in caplog.text


def a_tar(path):
    with tarfile.open(path, "w") as opened:
        opened.add(picture(path.parent / "one.png"), "cat/a.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b"7z\xbc\xaf\x27\x1c\0\0", "it is a 7z archive"),
        (b"Rar!\x1a\x07\0", "it is a RAR archive"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"nothing", "download or make it again"),
        (a_tar, "it is a tar archive"),
    ],
)
def test_what_is_no_zip_is_said(tmp_path, content, words):
    target = tmp_path / "s.zip"
    target.write_bytes(content) if isinstance(content, bytes) else content(target)
    with pytest.raises(ArchiveError, match=f"s.zip: cannot be read as a zip .*{words}"):
        ready(train=str(target))


def test_a_zip_in_a_zip_and_what_else_is_left_out_is_named(tmp_path, caplog):
    inner = io.BytesIO(pictures_as(tmp_path / "in.zip", "cat/a.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as opened:
        opened.writestr("set/in.zip", inner.getvalue())
    with pytest.raises(FileNotFoundError, match=r"(?s)no images found.*there are\n.*1 of kinds.*in.zip"):
        ready(train=str(tmp_path / "s.zip"))
    names = ("cat/a.png", "cat/b.jxl", "dog/b.png", "__MACOSX/cat/._a.png", ".ipynb_checkpoints/b.png")
    made = ready(train=str(pictures_as(tmp_path / "t.zip", *names)))
    assert class_names(made) == ["cat", "dog"] and "t.zip: 3 files or folders are left out" in caplog.text
    assert "2 hidden, or made by a system: .ipynb_checkpoints/b.png, __MACOSX/cat/._a.png" in caplog.text
    assert "cat/b.jxl" in caplog.text
    caplog.clear()
    made = ready(None, "predict", predict=str(tmp_path / "t.zip"))
    assert len(made.prediction_paths()) == 2 and "t.zip: 3 files or folders are left out" in caplog.text


@pytest.mark.parametrize("name", ["s.zip", "s.csv"])
def test_a_pipe_in_place_of_a_zip_or_table_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(LabelError, match=f"{name}: is a pipe"):
        ready(train=str(tmp_path / name))
