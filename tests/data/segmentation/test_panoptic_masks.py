"""COCO panoptic PNGs as masks, beside a slow loop; bad files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.data.segmentation.coco_json import read_mask_json
from trunkline.data.segmentation.coco_masks import PanopticMasks
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.labels.table import ClassTable, MaskError
from trunkline.data.shared.locate import DataNotFoundError

CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 30, "name": "bird"}]


def write(folder, content, name="panoptic_train.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


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
    content = {
        "images": [{"id": 10 * n, "file_name": f"{n}.jpg", "height": 6, "width": 8} for n in range(3)],
        "annotations": annotations,
        "categories": [{**category, "color": [category["id"], 2, 3]} for category in CATEGORIES],
    }
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
    names, masks = read_mask_json(write(folder, content), **options)
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


class CountedElements(TorchDispatchMode):
    """Counts the elements of all tensors that torch's operations return."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        made = result if isinstance(result, tuple | list) else [result]
        self.count += sum(value.numel() for value in made if isinstance(value, torch.Tensor))
        return result


@pytest.mark.parametrize("images", [200, 2000])
def test_the_work_of_choosing_panoptic_images_grows_with_their_segments(images):
    """A pass over all segments for each image would take minutes on COCO's training data."""
    each = 12
    names = PackedNames.pack(f"{n}.png" for n in range(images))
    rows = torch.arange(images + 1) * each
    numbers = torch.arange(images * each)
    masks = PanopticMasks("", names, ClassTable([LabelClass(1, "a")]), rows, numbers, numbers.to(torch.uint8))
    with CountedElements() as counted:
        some = masks.subset(list(range(images - 1, 0, -2)))
    assert 0 < counted.count < 10 * len(numbers)
    last = numbers[-each:].tolist()
    assert some.segments[: 2 * each].tolist() == [*last, *(number - 2 * each for number in last)]
    assert len(masks.subset([])) == 0


def test_segments_that_the_file_lacks_are_told(panoptic):
    folder, content = panoptic
    gone = content["annotations"][1]["segments_info"].pop(0)["id"]  # of image 0
    _, masks = read_mask_json(write(folder, content))
    unknown = masks.survey(0).unknown
    assert list(unknown) == [str(gone)] and masks.survey(1).unknown == {}
    assert sum(unknown.values()) + masks.survey(0).counts.sum() == 48
    with pytest.raises(MaskError, match=f"0.png: value {gone} .* which its segments_info lacks"):
        masks.mask(0)


def test_wrong_panoptic_files_are_errors(panoptic):
    folder, content = panoptic
    path = folder / "panoptic_train.json"
    alone = content["annotations"].pop()
    with pytest.raises(AnnotationError, match=r"(?s)image id 10 \(1.jpg\): no annotation.*missing to skip"):
        read_mask_json(write(folder, content))
    names, masks = read_mask_json(path, missing="skip")
    assert names == ["0.jpg", "2.jpg"] and masks.name(1).endswith("20.png")
    content["annotations"] += [alone, alone]
    with pytest.raises(AnnotationError, match="number 3: image id 10 has two"):
        read_mask_json(write(folder, content))
    content["annotations"] = [alone | {"segments_info": [{"id": 1, "category_id": 5}]}]
    with pytest.raises(AnnotationError, match="segment id 1 has category_id 5"):
        read_mask_json(write(folder, content))
    content["annotations"] = [alone | {"file_name": "x.png"}]
    content["images"] = [image for image in content["images"] if image["id"] == alone["image_id"]]
    with pytest.raises(DataNotFoundError, match="no panoptic PNGs found, looked for x.png"):
        read_mask_json(write(folder, content))


def test_a_grey_png_is_no_panoptic_one(panoptic):
    folder, content = panoptic
    Image.new("L", (8, 6)).save(folder / "panoptic_train/0.png")
    _, masks = read_mask_json(write(folder, content))
    with pytest.raises(ValueError, match="0.png: is not in colours"):
        masks.mask(0)
