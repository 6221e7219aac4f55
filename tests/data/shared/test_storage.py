"""Files at addresses: parts of them, retries, errors; patterns of names; paths of the settings."""

import io
import os
import zlib

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared import objects
from trunkline.data.shared.io import ImageError, image_size, opened, read_image
from trunkline.data.shared.objects import ObjectError, StorageError, read_object
from trunkline.data.shared.ranged import RangedFile
from trunkline.data.shared.shards import with_braces
from trunkline.data.shared.storage import Address, joined, located


class Flaky(MemoryFileSystem):
    """Files in memory, behind a connection that fails as often as ``failing`` says."""

    protocol = "flaky"
    failing: list[Exception] = []
    asked: list[int] = []

    def cat_file(self, path, start=None, end=None, **options):
        if self.failing:
            raise self.failing.pop()
        content = super().cat_file(path, start, end, **options)
        self.asked.append(len(content))
        return content

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("flaky://", "memory://"))

    def info(self, path, **options):
        if self.failing:
            raise self.failing.pop()
        return super().info(path, **options)


@pytest.fixture(autouse=True)
def server(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(objects, "PAUSES", (0.0,) * 3)
    Flaky.failing, Flaky.asked = [], []
    yield
    Flaky.store.clear()


def put(name, content):
    fsspec.filesystem("flaky").pipe(f"/bucket/{name}", content)
    return f"flaky://bucket/{name}"


def encoded(form, size=(600, 400), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP"])
def test_a_check_of_headers_reads_the_beginning_alone(form):
    content = encoded(form, (900, 500), quality=95)
    address = put(f"image.{form.lower()}", content)
    assert image_size(address) == (500, 900)
    assert sum(Flaky.asked) <= 140_000 < len(content) / 2
    assert (read_image(address) == np.array(Image.open(io.BytesIO(content)).convert("RGB"))).all()


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("large", [False, True])
def test_the_orientation_of_a_png_is_found_wherever_it_stands(place, large, tmp_path):
    content = encoded("PNG", (600, 400) if large else (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()[6:]
    chunk = len(raw).to_bytes(4, "big") + b"eXIf" + raw
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, "big")
    cut = content.index(b"IDAT") - 4 if place == "before" else len(content) - 12
    turned = content[:cut] + chunk + content[cut:]
    (tmp_path / "a.png").write_bytes(turned)
    expected = image_size(tmp_path / "a.png")
    assert expected == ((600, 400) if large else (20, 10))
    assert image_size(put("a.png", turned)) == expected


def test_reading_is_tried_again_a_few_times():
    address = put("a.png", encoded("PNG"))
    Flaky.failing = [ConnectionResetError("gone"), TimeoutError(), RuntimeError("server error 503")]
    assert read_image(address).shape == (400, 600, 3)
    Flaky.failing = [ConnectionResetError("gone") for _ in range(10)]
    with pytest.raises(StorageError, match=f"{address}: could not be read in 4 attempts .*gone.*; check"):
        read_image(address)
    assert len(Flaky.failing) == 6
    with pytest.raises(StorageError, match="4 attempts"), opened(address):
        pass  # a lost connection says nothing of the image, so it is no ImageError


def test_a_server_that_does_not_answer_is_no_bad_image_to_skip(shapes):
    fsspec.filesystem("flaky").put(f"{shapes}/", "/bucket/coco", recursive=True)
    settings = {"batch_size": 2, "workers": 0, "short_side": 64, "long_side": 96, "on_bad_image": "skip"}
    data = CocoDetection("flaky://bucket/coco", **settings)
    data.prepare_data()
    data.setup("fit")
    Flaky.failing = [ConnectionResetError("gone") for _ in range(10)]
    with pytest.raises(StorageError, match="could not be read in 4 attempts"):
        next(iter(data.train_dataloader()))


def test_a_missing_and_a_forbidden_file_are_errors_of_the_image():
    Flaky.failing = [PermissionError("403 Forbidden")]
    with pytest.raises(ImageError, match=r"flaky://bucket/a.png: may not be read \(403.*credentials"):
        read_image("flaky://bucket/a.png")
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match="flaky://bucket/a.png: no such file; check the address"):
            read("flaky://bucket/a.png")
    assert not Address("flaky://bucket/a.png").exists()


def test_a_missing_package_and_an_unknown_scheme_are_named():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ObjectError, match=r"gs://.* need a package .*pip install gcsfs"):
            read_object("gs://bucket/a.png")
    with pytest.raises(ObjectError, match="nosuch:// is no kind of address"):
        read_object("nosuch://bucket/a.png")


def test_damaged_and_empty_files_are_errors_of_the_image():
    for content in (b"", encoded("JPEG")[:5000], b"no image"):
        with pytest.raises(ImageError, match="flaky://bucket/a.jpg: "):
            read_image(put("a.jpg", content))


def test_very_large_files_are_not_taken_into_memory(monkeypatch):
    monkeypatch.setattr(objects, "LARGEST", 1000)
    with pytest.raises(ImageError, match="has more than 1,000 bytes; cut it"):
        read_image(put("a.png", encoded("PNG")))


def test_a_file_read_in_parts_is_as_the_whole():
    content = os.urandom(300_000)
    for first in (1, 100, 1 << 20):
        asked = []

        def fetch(start, end, asked=asked):
            asked.append((start, end))
            return content[start:end]

        file = RangedFile(fetch, lambda: len(content), first)
        rng = np.random.default_rng(first)
        whole = io.BytesIO(content)
        for _ in range(60):
            position, size = int(rng.integers(0, 310_000)), int(rng.integers(0, 5000))
            assert file.seek(position) == whole.seek(position)
            assert file.read(size) == whole.read(size) and file.tell() == whole.tell()
        file.seek(-10, io.SEEK_END)
        assert file.read() == content[-10:] and file.read(1) == b""


def test_braces_are_numbers_or_alternatives():
    assert list(with_braces("a-{08..11}.tar")) == [f"a-{n}.tar" for n in ("08", "09", "10", "11")]
    assert list(with_braces("{a,b}/{0..1}")) == ["a/0", "a/1", "b/0", "b/1"]
    assert list(with_braces("plain")) == ["plain"] and list(with_braces("a{")) == ["a{"]
    with pytest.raises(ObjectError, match="means"):
        list(with_braces("{0..99999999999}"))


def test_addresses_behave_as_paths(tmp_path):
    root = located("s3://bucket/coco/")
    assert str(root) == "s3://bucket/coco" and str(root / "images/train") == "s3://bucket/coco/images/train"
    assert root / "." == root and root / "s3://other/x" == Address("s3://other/x")
    assert root / "/local/a.json" == located("/local/a.json") and tmp_path / root == root
    assert str(root.parent) == "s3://bucket" and root.parent.parent == root.parent
    assert [str(each) for each in (root / "a/b.json").parents] == [
        "s3://bucket/coco/a",
        "s3://bucket/coco",
        "s3://bucket",
    ]
    file = root / "a/b.c.json"
    assert (file.name, file.stem, file.suffix) == ("b.c.json", "b.c", ".json")
    assert str(file.with_suffix("")) == "s3://bucket/coco/a/b.c" and file.absolute() == file
    shards = tmp_path / located("x-{0..1}.tar")
    assert str(shards) == f"{tmp_path}/x-{{0..1}}.tar" and str(shards / "in" / "a") == f"{shards}/in/a"
    assert joined("s3://b", "a.png") == "s3://b/a.png" and joined("", "s3://b/a") == "s3://b/a"
    (tmp_path / "folder.tar").mkdir()
    assert located(str(tmp_path / "folder.tar" / "a.png")) == tmp_path / "folder.tar" / "a.png"
    for name in ("a.tar.gz", "s3://b/a-*.tgz", "x.tar.zst"):
        with pytest.raises(ObjectError, match="compressed tar cannot be read one by one; unpack"):
            located(name)


def test_object_storage_knows_no_dots():
    assert read_object(put("a/b", b"1")) == b"1"
    assert Address("flaky://bucket/a/../a/./b").read_bytes() == b"1"
