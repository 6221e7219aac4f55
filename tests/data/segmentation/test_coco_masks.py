"""COCO masks: rasterised as pycocotools does alone, panoptic PNGs beside a slow loop, bad records."""

import json
import pickle
import pickletools
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from trunkline.data.segmentation.coco_json import read_mask_json
from trunkline.data.segmentation.coco_masks import PanopticMasks
from trunkline.data.shared.class_table import ClassTable, MaskError
from trunkline.data.shared.coco_json import AnnotationError
from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.labels import LabelClass
from trunkline.data.shared.locate import DataNotFoundError

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


def test_five_hundred_annotations_of_an_image_are_not_slow(tmp_path):
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
    start = time.perf_counter()
    masks.mask(0)
    assert time.perf_counter() - start < 2  # 0.1 s on a quiet machine


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


def test_damaged_run_lengths_name_the_image(tmp_path):
    content = random_file(0, annotations=1)
    content["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "ab"}
    _, masks = read_mask_json(write(tmp_path, content))
    position = content["annotations"][0]["image_id"] // 10
    with pytest.raises(MaskError, match=f"image id {10 * position}: damaged segmentation"):
        masks.mask(position)


# -- panoptic


@pytest.fixture
def panoptic(tmp_path):
    """Three images with large segment numbers, void, a crowd; the file lists them in another order."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "panoptic_train"
    folder.mkdir()
    annotations = []
    for image in (20, 0, 10):
        ids = [0, *rng.choice(np.arange(1, 2**24), 5, replace=False).tolist()]
        numbers = rng.choice(ids, (6, 8))
        numbers[0, :6] = ids
        pixels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{image}.png")
        segments = [
            {"id": i, "category_id": int(rng.choice([90, 7, 30])), "iscrowd": int(n == 2)}
            for n, i in enumerate(ids[1:])
        ]
        annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
    content = random_file(0, images=2, annotations=0) | {"annotations": annotations}
    content["categories"] = [{**category, "color": [category["id"], 2, 3]} for category in CATEGORIES]
    return tmp_path, content


def slow(folder, record, labels, rest):
    """Pixel by pixel."""
    pixels = np.asarray(Image.open(folder / "panoptic_train" / record["file_name"])).astype(int)
    category = {segment["id"]: segment["category_id"] for segment in record["segments_info"]}
    result = np.zeros(pixels.shape[:2], dtype=np.uint8)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            number = pixels[y, x, 0] + 256 * pixels[y, x, 1] + 256 * 256 * pixels[y, x, 2]
            result[y, x] = 255 if number == 0 else labels.get(category[number], rest)
    return result


@pytest.mark.parametrize(
    ("options", "labels", "rest"),
    [
        ({}, {7: 0, 30: 1, 90: 2}, 255),
        ({"ignore": ["bird"]}, {7: 0, 30: 255, 90: 1}, 255),
        ({"categories": ["cat"]}, {90: 1}, 0),
        ({"categories": [30, "dog"], "background": "ignore"}, {30: 0, 7: 1}, 255),
    ],
)
def test_panoptic_masks_equal_a_slow_loop(panoptic, options, labels, rest):
    folder, content = panoptic
    names, masks = read_mask_json(write(folder, content, "panoptic_train.json"), **options)
    assert names == ["0.jpg", "1.jpg", "2.jpg"] and not masks.verified and masks.present() is None
    by_image = {record["image_id"]: record for record in content["annotations"]}
    some = masks.subset([2, 0])
    for position, image in enumerate((0, 10, 20)):
        wanted = slow(folder, by_image[image], labels, rest)
        assert np.array_equal(masks.mask(position), wanted) and masks.size(position) == (6, 8)
        counts = np.bincount(wanted.flatten(), minlength=256)
        assert masks.survey(position).counts.tolist() == [*counts[: len(masks.classes)], counts[255]]
        kept = counts[: len(masks.classes)].sum() - (counts[0] if masks.background == 0 else 0)
        assert masks.labelled_pixels(position) == kept
    assert np.array_equal(some.mask(0), masks.mask(2)) and np.array_equal(some.mask(1), masks.mask(0))
    if not options:
        assert [(c.id, c.colour) for c in masks.classes] == [
            (7, (7, 2, 3)),
            (30, (30, 2, 3)),
            (90, (90, 2, 3)),
        ]


def test_choosing_among_many_panoptic_images_is_not_slow():
    """As many segments as COCO's training data has: a pass over all of them for each image takes minutes."""
    images, each = 100_000, 12
    names = PackedNames.pack(f"{n}.png" for n in range(images))
    rows = torch.arange(images + 1) * each
    numbers = torch.arange(images * each)
    masks = PanopticMasks("", names, ClassTable([LabelClass(1, "a")]), rows, numbers, numbers.to(torch.uint8))
    start = time.perf_counter()
    some = masks.subset(list(range(images - 1, 0, -2)))
    assert time.perf_counter() - start < 5  # 0.1 s on a quiet machine
    last = numbers[-each:].tolist()
    assert some.segments[: 2 * each].tolist() == [*last, *(number - 2 * each for number in last)]
    assert len(masks.subset([])) == 0


def test_segments_that_the_file_lacks_are_told(panoptic):
    folder, content = panoptic
    gone = content["annotations"][1]["segments_info"].pop(0)["id"]  # of image 0
    _, masks = read_mask_json(write(folder, content, "panoptic_train.json"))
    unknown = masks.survey(0).unknown
    assert list(unknown) == [str(gone)] and masks.survey(1).unknown == {}
    assert sum(unknown.values()) + masks.survey(0).counts.sum() == 48
    with pytest.raises(MaskError, match=f"0.png: value {gone} .* which its segments_info lacks"):
        masks.mask(0)


def test_wrong_panoptic_files_are_errors(panoptic):
    folder, content = panoptic
    path = folder / "panoptic_train.json"
    alone = content["annotations"].pop()
    with pytest.raises(AnnotationError, match=r"(?s)image id 10 \(1.jpg\): no annotation.*missing"):
        read_mask_json(write(folder, content, path.name))
    names, masks = read_mask_json(path, missing="skip")
    assert names == ["0.jpg", "2.jpg"] and masks.name(1).endswith("20.png")
    content["annotations"] += [alone, alone]
    with pytest.raises(AnnotationError, match="number 3: image id 10 has two"):
        read_mask_json(write(folder, content, path.name))
    content["annotations"] = [alone | {"segments_info": [{"id": 1, "category_id": 5}]}]
    with pytest.raises(AnnotationError, match="segment id 1 has category_id 5"):
        read_mask_json(write(folder, content, path.name))
    content["annotations"] = [alone | {"file_name": "x.png"}]
    content["images"] = [image for image in content["images"] if image["id"] == alone["image_id"]]
    with pytest.raises(DataNotFoundError, match="no panoptic PNGs found, looked for x.png"):
        read_mask_json(write(folder, content, path.name))


def test_a_grey_png_is_no_panoptic_one(panoptic):
    folder, content = panoptic
    Image.new("L", (8, 6)).save(folder / "panoptic_train/0.png")
    _, masks = read_mask_json(write(folder, content, "panoptic_train.json"))
    with pytest.raises(ValueError, match="0.png: is not in colours"):
        masks.mask(0)


def test_packed_content_is_tensors(tmp_path):
    _, masks = read_mask_json(write(tmp_path, random_file(2)))
    assert all(isinstance(value, torch.Tensor) for value in vars(masks.shapes).values())
