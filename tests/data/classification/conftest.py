"""Images with classes: folders, a zip, pictures for a CSV, and scans."""

import zipfile

import numpy as np
import pytest
from class_files import picture

from trunkline.data.synthetic.pictures import write_classification


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_classification(tmp_path_factory.mktemp("made") / "shapes", 21, 10, 40, progress=False)


@pytest.fixture(scope="session")
def archive(folder):
    target = folder.parent / "shapes.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in folder.rglob("*.*g"):
            opened.write(path, "shapes/" + path.relative_to(folder).as_posix())
    return target


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "set"
    for name in ("train/cat/b.png", "train/cat/deep/er/a.PNG", "train/ant/x.jpg", "train/dog/y.jpeg"):
        picture(root / name)
    for name in ("val/dog/1.png", "val/cat/2.png"):
        picture(root / name)
    (root / "train/cat/notes.txt").write_text("no image")
    return root


@pytest.fixture
def pictures(tmp_path):
    for name in "abcd":
        picture(tmp_path / "set/images" / f"{name}.png")
    return tmp_path / "set"


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for name in ("ill", "well"):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            for n in range(count):
                voxels = rng.normal(100, 30, size=(5, 6, 7)).astype(np.float32)
                np.save(tmp_path / "scans" / split / name / f"{n}.npy", voxels)
    return tmp_path / "scans"
