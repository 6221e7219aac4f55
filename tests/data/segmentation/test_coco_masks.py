"""COCO instances as masks: rasterised as pycocotools does alone, bad records."""

import json
import pickle
import pickletools
from collections import Counter

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from trunkline.data.segmentation.coco_json import read_mask_json
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.labels.table import MaskError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools beside NumPy 2

CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 30, "name": "bird"}]
HEIGHT, WIDTH = 40, 60


def random_polygon(rng, corners=9):
    """A star-shaped outline with decimals, partly outside the image."""
    centre, radius = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(3, 18)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = radius * rng.uniform(0.4, 1, corners)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    return points.round(2).reshape(-1).tolist()


def random_file(seed, images=4, annotations=30):
    """Polygons of one or two pieces, compressed and uncompressed run lengths, crowds."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(annotations):
        kind = rng.integers(4)
        outline = [random_polygon(rng) for _ in range(1 + (kind == 1))]
        if kind >= 2:
            drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, HEIGHT, WIDTH)))
            if kind == 2:
                code = coco_mask.encode(np.asfortranarray(drawn))
                outline = {"size": code["size"], "counts": code["counts"].decode()}
            else:
                flat = drawn.flatten(order="F")
                changes = np.flatnonzero(np.diff(flat)) + 1
                runs = np.diff([0, *changes, len(flat)]).tolist()
                outline = {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}
        records.append(
            {
                "id": number + 1,
                "image_id": int(rng.integers(images)) * 10,
                "category_id": int(rng.choice([90, 7, 30])),
                "segmentation": outline,
                "iscrowd": int(kind == 3 and rng.random() < 0.5),
                "area": float(rng.integers(1, 500)),
                "bbox": [0, 0, 1, 1],
            }
        )
    shots = [
        {"id": 10 * n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(images + 1)
    ]
    return {"images": shots, "annotations": records, "categories": CATEGORIES}


def write(folder, content, name="instances_train.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def expected(path, image_id, labels, rest=0, overlaps="smaller"):
    """By pycocotools alone: crowds, then objects from the largest; a label per category id."""
    coco = COCO(str(path))
    found = [a for a in coco.loadAnns(coco.getAnnIds(image_id)) if a["category_id"] in labels]
    drawn = [(annotation, coco.annToMask(annotation)) for annotation in found]
    drawn.sort(key=lambda pair: (not pair[0]["iscrowd"], -int(pair[1].sum())))
    result = np.full((HEIGHT, WIDTH), rest, dtype=np.uint8)
    for annotation, mask in drawn:
        result[mask > 0] = labels[annotation["category_id"]]
    if overlaps == "ignore" and drawn:
        result[sum(mask.astype(int) for _, mask in drawn) > 1] = 255
    return result


@pytest.mark.parametrize("overlaps", ["smaller", "ignore"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_those_of_pycocotools(tmp_path, capsys, seed, overlaps):
    path = write(tmp_path, random_file(seed))
    names, masks = read_mask_json(path, overlaps=overlaps)
    assert [(c.id, c.name) for c in masks.classes] == [
        (0, "background"),
        (7, "dog"),
        (30, "bird"),
        (90, "cat"),
    ]
    assert names == [f"{n}.jpg" for n in range(5)] and masks.background == 0 and masks.verified
    for position in range(5):
        wanted = expected(path, 10 * position, {7: 1, 30: 2, 90: 3}, overlaps=overlaps)
        assert np.array_equal(masks.mask(position), wanted)
        survey = masks.survey(position)
        assert survey.counts.tolist() == [(wanted == label).sum() for label in (0, 1, 2, 3, 255)]
        assert survey.size == masks.size(position) == (HEIGHT, WIDTH) and survey.unknown == {}
    assert not masks.mask(4).any()  # an image without annotations
    assert masks.name(2) == f"{path}, image id 20"


def test_chosen_categories_background_and_ignored_ones(tmp_path, capsys):
    path = write(tmp_path, random_file(7))
    _, masks = read_mask_json(path, categories=["cat", 7])
    assert [c.name for c in masks.classes] == ["background", "cat", "dog"]
    assert np.array_equal(masks.mask(1), expected(path, 10, {90: 1, 7: 2}))
    _, masks = read_mask_json(path, background="ignore")
    assert [c.name for c in masks.classes] == ["dog", "bird", "cat"] and masks.background is None
    assert np.array_equal(masks.mask(1), expected(path, 10, {7: 0, 30: 1, 90: 2}, rest=255))
    for background, rest, first in (("class", 0, 1), ("ignore", 255, 0)):
        _, masks = read_mask_json(path, ignore=["bird"], background=background)
        labels = {7: first, 30: 255, 90: first + 1}
        assert np.array_equal(masks.mask(1), expected(path, 10, labels, rest=rest))
    with pytest.raises(MaskError, match="no class 'birt'; did you mean 'bird'"):
        read_mask_json(path, ignore=["birt"])


def test_torchvisions_subset_of_coco_by_its_own_rule(tmp_path):
    """What its reference does: the largest label of all objects, 255 where two overlap."""
    content = random_file(3)
    path = write(tmp_path, content)
    chosen = [90, 30]
    _, masks = read_mask_json(path, categories=chosen, overlaps="ignore")
    for position in range(4):
        records = [
            a for a in content["annotations"] if a["image_id"] == 10 * position and a["category_id"] in chosen
        ]
        layers = np.zeros((len(records), HEIGHT, WIDTH), dtype=np.uint8)
        for layer, record in zip(layers, records, strict=True):
            outline = record["segmentation"]
            code = coco_mask.frPyObjects(outline, HEIGHT, WIDTH) if not isinstance(outline, dict) or isinstance(outline["counts"], list) else outline  # fmt: skip  # noqa: E501
            layer[:] = coco_mask.decode(coco_mask.merge(code) if isinstance(code, list) else code)
        labels = np.array([chosen.index(record["category_id"]) + 1 for record in records], dtype=np.uint8)
        target = (layers * labels[:, None, None]).max(axis=0)
        target[layers.sum(axis=0) > 1] = 255
        assert np.array_equal(masks.mask(position), target)
        areas = sum(record["area"] for record in records)
        assert masks.labelled_pixels(position) == areas  # it leaves out pictures by this sum


def test_present_classes_and_subsets(tmp_path):
    content = random_file(5)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] or a["category_id"] == 7]
    _, masks = read_mask_json(write(tmp_path, content))
    assert masks.present().tolist() == [True] * 4
    assert masks.subset([0]).present().tolist() == [True, True, False, False]
    some = masks.subset([3, 1]).subset([1, 0])
    assert np.array_equal(some.mask(0), masks.mask(1)) and np.array_equal(some.mask(1), masks.mask(3))
    assert len(some) == 2 and some.labelled_pixels(0) == masks.labelled_pixels(1)
    assert np.array_equal(pickle.loads(pickle.dumps(some)).mask(0), masks.mask(1))


def test_no_python_object_per_annotation(tmp_path):
    """What a loader process gets pickled does not grow in objects with the annotations."""
    lengths = []
    for number in (50, 500):
        _, masks = read_mask_json(write(tmp_path, random_file(1, annotations=number)))
        lengths.append(sum(1 for _ in pickletools.genops(pickle.dumps(masks))))
    assert abs(lengths[0] - lengths[1]) < 10


class CountedPixels(np.ndarray):
    """Labels that count the pixels of the parts that are written to."""

    written = 0

    def __setitem__(self, key, value):
        CountedPixels.written += self.size
        super().__setitem__(key, value)


def test_each_annotation_is_drawn_once_and_within_its_box(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    content = random_file(0, annotations=0)
    content["images"] = [{"id": 1, "file_name": "a.jpg", "height": 640, "width": 640}]
    for number in range(500):
        angles = np.sort(rng.uniform(0, 6.28, 40))
        points = rng.uniform(50, 590, 2) + 40 * np.stack([np.cos(angles), np.sin(angles)], 1)
        outline = [points.round(2).reshape(-1).tolist()]
        content["annotations"].append(
            {"id": number + 1, "image_id": 1, "category_id": 7, "segmentation": outline}
        )
    _, masks = read_mask_json(write(tmp_path, content))
    plain, calls, full = masks.mask(0), Counter(), np.full
    for function in ("frPyObjects", "merge", "area", "toBbox", "decode"):
        counted = count_calls(calls, function, getattr(coco_mask, function))
        monkeypatch.setattr(coco_mask, function, counted)
    monkeypatch.setattr(np, "full", lambda *args, **options: full(*args, **options).view(CountedPixels))
    CountedPixels.written = 0
    drawn = masks.mask(0)
    monkeypatch.undo()
    assert np.array_equal(drawn, plain) and drawn.any()
    assert set(calls.values()) == {500} and len(calls) == 5
    assert 0 < CountedPixels.written <= 500 * 82 * 82  # of 500 * 640 * 640


def count_calls(calls, name, function):
    def counted(*args, **options):
        calls[name] += 1
        return function(*args, **options)

    return counted


def test_polygons_of_less_than_three_corners_are_left_out_and_counted(tmp_path, caplog):
    content = random_file(0, annotations=1)
    record = content["annotations"][0]
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    record |= {"segmentation": [[1, 1, 30, 30], square], "category_id": 7, "image_id": 0, "iscrowd": 0}
    _, masks = read_mask_json(write(tmp_path, content))
    assert masks.mask(0)[10:20, 10:20].all() and masks.mask(0).sum() == 100
    assert "left out 1 polygon of fewer than three corners" in caplog.text
    record["segmentation"] = [[1, 1, 30, 30]]
    assert not read_mask_json(write(tmp_path, content))[1].mask(0).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentation": []}, "annotation id 1: no segmentation"),
        ({"segmentation": None}, "annotation id 1: no segmentation"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "annotation id 1: a polygon is no list of x and y"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "annotation id 1: a polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "annotation id 1: a polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "annotation id 1: a polygon"),
        (
            {"segmentation": {"counts": [1, 2], "size": [40, 60]}},
            "annotation id 1: run lengths without a size",
        ),
        ({"segmentation": {"counts": "abc"}}, "annotation id 1: run lengths without a size"),
        (
            {"segmentation": {"counts": [3000], "size": [60, 50]}},
            r"size \[60, 50\], but the image has \[40, 60\]",
        ),
        ({"category_id": 8}, "annotation id 1: category_id 8 is not that of a category"),
        ({"image_id": 3}, "annotation id 1: image_id 3 is not that of an image"),
    ],
)
def test_bad_annotations_are_errors(tmp_path, change, words):
    content = random_file(0, annotations=2)
    content["annotations"][0] |= change
    with pytest.raises(AnnotationError, match=f"(?s)1 of 2 annotations cannot be drawn.*{words}"):
        read_mask_json(write(tmp_path, content))


def test_categories_that_are_not_learned_need_no_outline(tmp_path):
    content = random_file(0, annotations=5)
    for record in content["annotations"]:
        record["category_id"] = 7
    content["annotations"][0] |= {"category_id": 90, "segmentation": []}
    _, masks = read_mask_json(write(tmp_path, content), categories=["dog"])
    assert len(masks.shapes.labels) == 4


def test_files_of_another_form_are_errors(tmp_path):
    with pytest.raises(AnnotationError, match="no such annotation file"):
        read_mask_json(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(AnnotationError, match="not readable as JSON"):
        read_mask_json(tmp_path / "a.json")
    with pytest.raises(AnnotationError, match="has no lists images"):
        read_mask_json(write(tmp_path, [1]))


def test_damaged_run_lengths_name_the_annotation_before_training(tmp_path):
    content = random_file(0, annotations=1)
    content["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "ab"}
    number = content["annotations"][0]["id"]
    with pytest.raises(AnnotationError, match=f"id {number}: run lengths without a size that they fill"):
        read_mask_json(write(tmp_path, content))


def test_packed_content_is_tensors(tmp_path):
    _, masks = read_mask_json(write(tmp_path, random_file(2)))
    assert all(isinstance(value, torch.Tensor) for value in vars(masks.shapes).values())
