"""Tar shards: the list of their members, what is refused, and the list on the disk."""

import io
import json
import multiprocessing
import os
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from trunkline.data.shared import shards
from trunkline.data.shared.io import ImageError, image_size, read_image
from trunkline.data.shared.objects import ObjectError, StorageError
from trunkline.data.shared.shard_list import cache_folder
from trunkline.data.shared.shards import list_of, place_in_shards
from trunkline.data.shared.storage import located, read_stored


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    list_of.cache_clear()
    yield
    list_of.cache_clear()


def tar(path, members, form=tarfile.GNU_FORMAT):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def counted(monkeypatch):
    """Note what is read of shards, as (path, start, end)."""
    asked = []
    read = shards.read_part
    monkeypatch.setattr(shards, "read_part", lambda *part: asked.append(part) or read(*part))
    return asked


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_member_is_read_as_tarfile_reads_it(tmp_path, form, monkeypatch):
    rng = np.random.default_rng(0)
    members = [
        {f"./deep/{s}/{'x' * n}.jpg": rng.bytes(int(rng.integers(0, 5000))) for n in range(1, 60)}
        for s in "ab"
    ]
    if form != tarfile.USTAR_FORMAT:
        members[0]["ä/" + "long/" * 40 + "ü.jpg"] = b"content"
    for number, each in enumerate(members):
        tar(tmp_path / "d" / f"s-{number}.tar", each, form)
    pattern = f"{tmp_path}/d/s-*.tar"
    asked = counted(monkeypatch)
    for each in members:
        for name, content in each.items():
            assert read_stored(f"{pattern}/{name.removeprefix('./')}") == content
    # Looking through takes parts of at most the whole; then each member is one part, with its header.
    sizes = [end - start for _, start, end in asked]
    total = sum(len(content) for each in members for content in each.values())
    assert sum(sizes[-sum(map(len, members)) :]) == total + 512 * sum(map(len, members))
    names = sorted(name.removeprefix("./") for each in members for name in each)
    assert located(pattern).files() == names
    assert (located(pattern) / "deep" / "a").files() == [n[7:] for n in names if n.startswith("deep/a/")]
    assert not (located(pattern) / "dee").exists() and (located(pattern) / "deep").is_dir()


def test_large_members_are_skipped_while_looking_through(tmp_path, monkeypatch):
    tar(tmp_path / "d" / "s.tar", {f"{n}.tif": bytes(3 << 20) for n in range(4)})
    asked = counted(monkeypatch)
    assert len(list_of(f"{tmp_path}/d/s.tar")) == 4
    assert sum(end - start for _, start, end in asked) < 1 << 20


def test_headers_of_images_in_shards_are_read_alone(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "BMP")
    tar(tmp_path / "d" / "s.tar", {"a.bmp": buffer.getvalue()})
    name = f"{tmp_path}/d/s.tar/a.bmp"
    list_of(f"{tmp_path}/d/s.tar")
    asked = counted(monkeypatch)
    assert image_size(name) == (400, 600)
    assert sum(end - start for _, start, end in asked) < 70_000
    assert (read_image(name) == pixels).all()


def test_one_name_in_two_shards_is_an_error_that_names_both(tmp_path):
    tar(tmp_path / "d" / "s-0.tar", {"a.jpg": b"1", "./b.jpg": b"2"})
    tar(tmp_path / "d" / "s-1.tar", {"b.jpg": b"3"})
    with pytest.raises(ObjectError, match=r"b.jpg: in .*s-0.tar and .*s-1.tar"):
        list_of(f"{tmp_path}/d/s-*.tar")


@pytest.mark.parametrize(("program", "ending"), [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz")])
def test_a_compressed_shard_is_refused_with_the_remedy(tmp_path, program, ending):
    path = tar(tmp_path / "d" / "s.tar", {"a.jpg": b"1"})
    subprocess.run([program, str(path)], check=True)
    os.rename(f"{path}.{ending}", path)
    with pytest.raises(ObjectError, match=f"compressed by {program}.*unpack it by"):
        list_of(str(path))


def broken(kind, whole):
    """Return a damaged tar."""
    if kind == "cut off":
        return whole[:2000]
    if kind == "without end":
        return whole[: 2 * (512 + 1024)]
    if kind == "header":
        return whole[: 1536 + 150] + b"#" + whole[1536 + 151 :]
    if kind == "two":
        return whole + whole
    return b"no tar" * 1000


@pytest.mark.parametrize("kind", ["cut off", "without end", "header", "two", "text"])
def test_a_damaged_shard_is_refused_whole(tmp_path, kind):
    """tarfile ends without a word at a damaged header: the members after it would be lost."""
    path = tar(tmp_path / "d" / "s.tar", {f"{n}.jpg": bytes([n]) * 1000 for n in range(3)})
    path.write_bytes(broken(kind, path.read_bytes()))
    with pytest.raises(ObjectError, match="s.tar: cannot be read as a tar .*make or download it again"):
        list_of(str(path))


@pytest.mark.parametrize("kind", ["link", "outside", "absolute", "pipe"])
def test_members_that_are_no_plain_files_of_it_are_refused(tmp_path, kind):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo({"outside": "a/../../x.jpg", "absolute": "/etc/x.jpg"}.get(kind, "a.jpg"))
        if kind in ("link", "pipe"):
            entry.type = tarfile.SYMTYPE if kind == "link" else tarfile.FIFOTYPE
            entry.linkname = "/etc/passwd"
        archive.addfile(entry, io.BytesIO())
    with pytest.raises(ObjectError, match="1 member.* cannot be used"):
        list_of(str(path))


def test_a_header_that_claims_a_very_long_name_takes_no_memory(tmp_path):
    entry = tarfile.TarInfo("a")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "s.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ObjectError, match="header record claims"):
        list_of(str(tmp_path / "s.tar"))


def test_a_missing_member_and_missing_shards_are_named(tmp_path):
    tar(tmp_path / "d" / "s-0.tar", {"train/a.jpg": b"1"})
    with pytest.raises(ImageError, match=r"s-\*.tar/a.jpg: no such member; .* such as train/a.jpg"):
        read_image(f"{tmp_path}/d/s-*.tar/a.jpg")
    with pytest.raises(ObjectError, match=r"1 of 2 shards are missing:\n  .*s-1.tar"):
        list_of(f"{tmp_path}/d/s-{{0..1}}.tar")
    assert not located(f"{tmp_path}/d/t-*.tar").exists()


def test_a_shard_that_changes_during_a_run_is_noticed(tmp_path):
    path = tar(tmp_path / "d" / "s.tar", {"a.jpg": b"1" * 600, "b.jpg": b"2" * 600})
    assert read_stored(f"{path}/b.jpg") == b"2" * 600
    tar(path, {"b.jpg": b"2" * 600, "a.jpg": b"1" * 600})
    with pytest.raises(ObjectError, match="has changed since it was looked through .*start again"):
        read_stored(f"{path}/b.jpg")


@pytest.mark.parametrize("damage", ["cut", "bits", "version", "missing", "about"])
def test_a_list_that_is_damaged_or_of_another_version_is_made_anew(tmp_path, damage, monkeypatch):
    path = str(tar(tmp_path / "d" / "s.tar", {f"{n}.jpg": bytes([n]) for n in range(9)}))
    before = {name: values.copy() for name, values in list_of(path).arrays.items()}
    (folder,) = (each for each in cache_folder().iterdir() if each.is_dir())
    file = folder / "offsets.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "bits":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "about":
        (folder / "about.json").write_text("[")
    else:
        about = json.loads((folder / "about.json").read_text())
        (folder / "about.json").write_text(json.dumps(about | {"version": 0}))
    list_of.cache_clear()
    asked = counted(monkeypatch)
    after = list_of(path).arrays
    assert asked and all(np.array_equal(before[name], after[name]) for name in before)
    list_of.cache_clear()
    asked.clear()
    list_of(path)
    assert not asked  # it is kept again


def test_the_list_is_kept_by_what_the_shards_are(tmp_path, monkeypatch):
    path = tar(tmp_path / "d" / "s.tar", {"a.jpg": b"1"})
    asked = counted(monkeypatch)
    list_of(str(path))
    tar(path, {"b.jpg": b"1"})
    os.utime(path, ns=(1, 1))
    list_of.cache_clear()
    asked.clear()
    assert list_of(str(path)).name(0) == "b.jpg" and asked


def test_a_cache_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tar(tmp_path / "d" / "s.tar", {"a.jpg": b"1"})
    with pytest.raises(StorageError, match="cannot be kept in .*set XDG_CACHE_HOME"):
        list_of(str(path))


def _look(path, found):
    asked = []
    read = shards.read_part
    shards.read_part = lambda *part: asked.append(part) or read(*part)
    found.put((len(list_of(path)), bool(asked)))


def test_one_of_several_processes_looks_through(tmp_path):
    path = str(tar(tmp_path / "d" / "s.tar", {f"{n}.jpg": bytes(100) for n in range(300)}))
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    processes = [context.Process(target=_look, args=(path, found)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [found.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(results) == [(300, False)] * 3 + [(300, True)]


def test_what_leads_into_shards():
    assert place_in_shards("s3://b/x-*.tar/a/b.jpg") == ("s3://b/x-*.tar", "a/b.jpg")
    assert place_in_shards("x.tar") == ("x.tar", "") and place_in_shards("x.tar/./a") == ("x.tar", "a")
    assert place_in_shards("a/x.tarry/b.jpg") is None and place_in_shards("a.jpg") is None
