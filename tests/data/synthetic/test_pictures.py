"""The synthetic dataset: complete, correct against its own pixels, reproducible, and careful with folders."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trunkline.data.detection.index import check_images, read_coco
from trunkline.data.synthetic import drawing
from trunkline.data.synthetic.pictures import write_classification, write_detection, write_segmentation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_detection(tmp_path_factory.mktemp("made") / "shapes", train=48, val=5, progress=False)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("split", "count"), [("train", 48), ("val", 5)])
def test_a_coco_reader_takes_it(folder, split, count):
    index = read_coco(folder / f"annotations/instances_{split}.json", folder / f"images/{split}")
    check_images(index, "decode")
    assert len(index) == count and len(list((folder / "images" / split).iterdir())) == count
    assert [category.id for category in index.categories] == [1, 3, 7]
    assert (index.offsets.diff() == 0).any()  # an image without objects
    assert index.boxes.dtype.is_floating_point and len(index.boxes) > count


def test_it_has_every_class_orientation_and_format(folder):
    index = read_coco(folder / "annotations/instances_train.json", folder / "images/train")
    assert set(index.labels.tolist()) == {0, 1, 2}
    assert {tuple(size) for size in index.sizes.tolist()} == {(128, 160), (160, 128), (128, 128)}
    assert {index.path(i).suffix for i in range(len(index))} == {".jpg", ".png"}
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]).amax(dim=1)
    assert sides.min() >= 14 and sides.max() <= 90


def test_boxes_are_tight_around_the_drawn_pixels(monkeypatch, tmp_path):
    """On black, without grain, what is lit is the object."""
    monkeypatch.setattr(drawing, "_background", lambda h, w, *_: Image.new("RGB", (w, h)))
    monkeypatch.setattr(drawing, "_paint", lambda h, w, *_: Image.new("RGB", (w, h), (255, 255, 255)))

    class Silent:
        """A generator whose noise is silent."""

        def __init__(self, rng):
            self.rng = rng

        def __getattr__(self, name):
            return getattr(self.rng, name)

        def normal(self, mean, deviation, size):
            return np.zeros(size)

    for seed in range(20):
        picture, [(_, box, solid)] = drawing.draw_picture(96, 80, 1, Silent(np.random.default_rng(seed)))
        lit = np.asarray(picture)[:, :, 0] >= 128
        ys, xs = np.nonzero(lit)
        assert box == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert np.array_equal(solid, lit)


def test_shapes_fill_their_boxes_as_geometry_says():
    """The covered share of a box is pi/4 for a circle and at most half for an equilateral triangle; a square
    turned by 25 degrees covers 1 / (1 + sin 50 degrees) = 0.566, one turned less or a longer one more."""
    rng = np.random.default_rng(0)
    covered = {"circle": [], "rectangle": [], "triangle": []}
    for name, shares in covered.items():
        for _ in range(30):
            mask = drawing._shape_mask(name, 200, 200, rng)
            _, _, width, height = drawing._tight_box(mask)
            shares.append((np.asarray(mask) >= 128).sum() / (width * height))
    np.testing.assert_allclose(covered["circle"], np.pi / 4, atol=0.03)
    assert max(covered["triangle"]) < 0.53 < 0.55 < min(covered["rectangle"])


def test_objects_hardly_hide_each_other(folder):
    index = read_coco(folder / "annotations/instances_train.json", folder / "images/train")
    for i in range(len(index)):
        boxes = index.boxes_xywh[index.rows(i)].tolist()
        for n, box in enumerate(boxes):
            for other in boxes[:n]:
                canvas = np.zeros((2, 160, 160), dtype=bool)
                for layer, (x, y, w, h) in enumerate((box, other)):
                    canvas[layer, int(y) : int(y + h), int(x) : int(x + w)] = True
                smaller = min(canvas[0].sum(), canvas[1].sum())
                assert (canvas[0] & canvas[1]).sum() <= 0.15 * smaller


def test_objects_stand_off_from_their_background(folder):
    """Mean colour inside the middle of a box against the picture's border."""
    index = read_coco(folder / "annotations/instances_train.json", folder / "images/train")
    contrasts = []
    for i in range(len(index)):
        pixels = np.asarray(Image.open(index.path(i)).convert("RGB"), dtype=float)
        free = Image.new("1", pixels.shape[1::-1], 1)
        for box in index.boxes[index.rows(i)].tolist():
            ImageDraw.Draw(free).rectangle(box, fill=0)
        around = pixels[np.asarray(free)].mean(axis=0)
        for x1, y1, x2, y2 in index.boxes[index.rows(i)].round().int().tolist():
            x, y = (x1 + x2) // 2, (y1 + y2) // 2
            contrasts.append(np.abs(pixels[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)) - around).max())
    assert min(contrasts) > 30


def test_the_seed_decides_every_byte(tmp_path):
    options = {"train": 3, "val": 2, "progress": False}
    one = write_detection(tmp_path / "one", seed=5, **options)
    same = write_detection(tmp_path / "same", seed=5, **options)
    other = write_detection(tmp_path / "other", seed=6, **options)
    assert digest(one) == digest(same) != digest(other)


def test_train_and_val_differ(folder):
    first = [(folder / "images" / split / "000001.jpg").read_bytes() for split in ("train", "val")]
    assert first[0] != first[1]


def test_size_and_counts_take_effect(tmp_path):
    folder = write_detection(tmp_path / "x", train=12, val=1, size=(64, 72), progress=False)
    sizes = read_coco(folder / "annotations/instances_train.json", folder).sizes
    assert {tuple(size) for size in sizes.tolist()} <= {(64, 72), (72, 64), (64, 64)} and len(sizes) == 12


def test_progress_is_shown_unless_declined(tmp_path, capsys):
    write_detection(tmp_path / "loud", train=1, val=1)
    assert "drawing images" in capsys.readouterr().err
    write_detection(tmp_path / "quiet", train=1, val=1, progress=False)
    assert capsys.readouterr().err == ""


def test_it_replaces_its_own_work_but_nobody_elses(tmp_path):
    folder = write_detection(tmp_path / "made", train=2, val=1, progress=False)
    before = digest(folder)
    write_detection(folder, train=3, val=1, progress=False)
    assert digest(folder) != before
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt.*name a new or empty folder"):
        write_detection(folder, train=1, val=1, overwrite=True, progress=False)
    assert (folder / "notes.txt").read_text() == "mine"


def test_foreign_images_are_replaced_only_on_request(tmp_path):
    (tmp_path / "made" / "images").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="ask to overwrite"):
        write_detection(tmp_path / "made", train=1, val=1, progress=False)
    write_detection(tmp_path / "made", train=1, val=1, overwrite=True, progress=False)
    assert (tmp_path / "made" / "annotations" / "instances_val.json").is_file()


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    write_detection(tmp_path / "empty", train=1, val=1, progress=False)
    write_detection(tmp_path / "a" / "b", train=1, val=1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        write_detection(tmp_path / "made", train=1, val=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"train": 0}, {"val": 0}, {"size": (16, 64)}])
def test_too_little_is_an_error(tmp_path, options):
    with pytest.raises(ValueError, match="at least"):
        write_detection(tmp_path / "x", **{"train": 1, "val": 1, **options})


# -- classification


def test_class_folders_hold_equally_many_pictures_of_the_shape_they_name(tmp_path):
    folder = write_classification(tmp_path / "made", train=30, val=8, size=96, progress=False)
    names = ["circle", "rectangle", "triangle"]
    counts = {
        split: [len(list((folder / split / name).iterdir())) for name in names] for split in ("train", "val")
    }
    assert counts == {"train": [10, 10, 10], "val": [3, 3, 2]}
    filling: dict[str, list[float]] = {name: [] for name in names}
    for path in sorted((folder / "train").rglob("*.*g")):
        with Image.open(path) as picture:
            assert picture.size == (96, 96) and picture.mode == "RGB"
            pixels = np.asarray(picture, dtype=np.float64)
        border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
        away = np.linalg.norm(pixels - np.median(border, axis=0), axis=2) > 60
        ys = np.flatnonzero(away.sum(axis=1) > 2)
        xs = np.flatnonzero(away.sum(axis=0) > 2)
        if len(ys) > 10 and len(xs) > 10:
            sides = ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1
            filling[path.parent.name].append(away.sum() / (sides[0] * sides[1]))
    # Share of its box that a shape fills: pi / 4 for a circle, half for a triangle that stands upright.
    assert min(map(len, filling.values())) >= 7
    assert abs(np.median(filling["circle"]) - np.pi / 4) < 0.05 and np.median(filling["triangle"]) < 0.6


def test_class_folders_are_reproducible_and_replace_only_their_own(tmp_path):
    one = write_classification(tmp_path / "one", 6, 3, 32, seed=4, progress=False)
    two = write_classification(tmp_path / "two", 6, 3, 32, seed=4, progress=False)
    assert digest(one) == digest(two)
    write_classification(two, 6, 3, 32, seed=5, progress=False)
    assert digest(one) != digest(two)
    with pytest.raises(FileExistsError, match="train.*name a new or empty folder"):
        write_detection(one, train=1, val=1, overwrite=True, progress=False)
    (tmp_path / "mine/train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="ask to overwrite"):
        write_classification(tmp_path / "mine", 3, 3, 32, progress=False)
    write_classification(tmp_path / "mine", 3, 3, 32, overwrite=True, progress=False)
    assert len(list((tmp_path / "mine").rglob("*.*g"))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "one", "two"]


@pytest.mark.parametrize("options", [{"train": 2}, {"val": 2}, {"size": 31}])
def test_too_few_pictures_of_classes_is_an_error(tmp_path, options):
    with pytest.raises(ValueError, match="at least"):
        write_classification(tmp_path / "x", **{"train": 3, "val": 3, **options})


def test_class_folders_show_progress_unless_declined(tmp_path, capsys):
    write_classification(tmp_path / "loud", 3, 3, 32)
    assert "drawing images" in capsys.readouterr().err
    write_classification(tmp_path / "quiet", 3, 3, 32, progress=False)
    assert capsys.readouterr().err == ""


# -- segmentation


def test_masks_show_the_objects_of_the_same_pictures(tmp_path):
    """The same seed draws the same pictures for detection, whose boxes tell where each class has to be."""
    options = {"train": 20, "val": 4, "seed": 3, "size": (96, 128), "progress": False}
    boxes = write_detection(tmp_path / "boxes", **options)
    made = write_segmentation(tmp_path / "masks", **options)
    lines = (made / "classes.csv").read_text().split()
    assert lines == ["id,name,r,g,b", "0,background,0,0,0", "1,circle,128,0,0", "2,rectangle,0,128,0"] + [
        "3,triangle,128,128,0"
    ]
    for split, count in (("train", 20), ("val", 4)):
        index = read_coco(boxes / f"annotations/instances_{split}.json", boxes / f"images/{split}")
        assert len(list((made / "masks" / split).iterdir())) == len(index) == count
        for i in range(count):
            name = index.file_name(i)
            assert (made / "images" / split / name).read_bytes() == index.path(i).read_bytes()
            with Image.open((made / "masks" / split / name).with_suffix(".png")) as mask:
                assert mask.mode == "P" and mask.getpalette()[:12] == [
                    0,
                    0,
                    0,
                    128,
                    0,
                    0,
                    0,
                    128,
                    0,
                    128,
                    128,
                    0,
                ]
                values = np.asarray(mask)
            assert values.shape == tuple(index.sizes[i].tolist())
            for box, label in zip(index.boxes[index.rows(i)].int(), index.labels[index.rows(i)], strict=True):
                x1, y1, x2, y2 = box.tolist()
                inside = values[y1:y2, x1:x2] == int(label) + 1
                assert inside.mean() > 0.3 and values[(y1 + y2) // 2, (x1 + x2) // 2] == int(label) + 1
            # What touches an object is that object or the border around it.
            for label in (1, 2, 3):
                ys, xs = np.nonzero(values == label)
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1)):
                    y, x = ys + dy, xs + dx
                    there = (y >= 0) & (x >= 0) & (y < values.shape[0]) & (x < values.shape[1])
                    assert set(values[y[there], x[there]].tolist()) <= {label, 255}
            assert (values == 255).sum() < (values > 0).sum() * 0.5 + 1


def test_masked_pictures_are_reproducible_and_replace_only_their_own(tmp_path, capsys):
    one = write_segmentation(tmp_path / "one", 2, 1, (32, 40), seed=4, progress=False)
    two = write_segmentation(tmp_path / "two", 2, 1, (32, 40), seed=4)
    assert digest(one) == digest(two) and "drawing images" in capsys.readouterr().err
    write_segmentation(two, 2, 1, (32, 40), seed=5, progress=False)
    assert digest(one) != digest(two)
    (tmp_path / "mine/masks").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="ask to overwrite"):
        write_segmentation(tmp_path / "mine", 1, 1, progress=False)
    write_segmentation(tmp_path / "mine", 1, 1, overwrite=True, progress=False)
    for options in ({"train": 0}, {"val": 0}, {"size": (16, 64)}):
        with pytest.raises(ValueError, match="at least"):
            write_segmentation(tmp_path / "x", **{"train": 1, "val": 1, **options})
