"""The dataset: one sample from file to tensors."""

import gc
import io
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.detection import dataset as coco_dataset
from trunkline.data.detection import module as coco
from trunkline.data.detection.dataset import CocoDetectionDataset
from trunkline.data.detection.index import read_coco
from trunkline.data.shared.augment.transforms import Augmentation, AugmentationError
from trunkline.data.shared.canvas import Request
from trunkline.data.shared.io import ImageError, read_image

FLIP = [{"HorizontalFlip": {"p": 0.5}}]


@pytest.fixture
def dataset(tmp_path):
    """One 30 x 40 picture with a red rectangle exactly in its box, and a crowd region."""
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    picture[6:18, 10:30] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "red.png")
    content = {
        "images": [{"id": 5, "file_name": "red.png", "height": 30, "width": 40}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 6, 20, 12]},
            {"id": 2, "image_id": 5, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 2, "name": "sky"}, {"id": 9, "name": "red"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "boxes.json", tmp_path)
    return lambda augment=None: CocoDetectionDataset(index, augment and Augmentation(augment), long_side=200)


def test_sample_is_resized_with_its_boxes(dataset):
    sample = dataset()[Request(0, 60, (64, 96))]
    assert sample.image.shape == (3, 60, 80) and sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    assert sample.boxes.tolist() == [[20, 12, 60, 36], [0, 0, 80, 60]]
    assert sample.labels.tolist() == [1, 0] and sample.crowd.tolist() == [False, True]
    assert (sample.image_id, sample.original_size, sample.canvas) == (5, (30, 40), (64, 96))
    inside = sample.image[:, 13:35, 21:59]
    assert (inside[0] > 250).all() and (inside[1:] < 5).all()
    assert (sample.image[0, 38:] == 0).all()


def test_sample_is_made_to_fit_its_canvas(dataset):
    sample = dataset()[Request(0, 60, (96, 64))]
    assert sample.image.shape == (3, 48, 64)
    assert sample.boxes.tolist() == [[16, pytest.approx(9.6), 48, pytest.approx(28.8)], [0, 0, 64, 48]]


def test_long_side_limits_the_sample(dataset):
    limited = dataset()
    limited.long_side = 40
    assert limited[Request(0, 60, (64, 96))].image.shape == (3, 30, 40)


def test_augmentation_comes_before_resizing(dataset):
    crop = [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 20, "y_max": 30, "p": 1.0}}]
    sample = dataset(crop)[Request(0, 40, (96, 64))]  # 30 x 20 is scaled by two
    assert sample.image.shape == (3, 60, 40)
    assert sample.boxes.tolist() == [[20, 12, 40, 36], [0, 0, 40, 60]]
    assert sample.original_size == (30, 40)


def test_seed_of_the_request_decides_the_flip(dataset):
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 32, "y_max": 30, "p": 1.0}}
    flipping = dataset([crop, {"HorizontalFlip": {"p": 0.5}}])

    def lefts():
        return [flipping[Request(0, 30, (32, 64), seed)].boxes[0, 0].item() for seed in range(30)]

    assert {round(left) for left in lefts()} == {10, 2}  # 10..30 of 32, or mirrored 2..22
    assert lefts() == lefts()


def test_the_shared_boxes_are_not_written_to(dataset):
    data = dataset([{"HorizontalFlip": {"p": 1.0}}])
    sample = data[Request(0, 60, (64, 96))]
    sample.labels.fill_(7)
    sample.crowd.fill_(True)
    assert data.index.boxes.tolist() == [[10, 6, 30, 18], [0, 0, 40, 30]]
    assert data.index.labels.tolist() == [1, 0] and data.index.crowd.tolist() == [False, True]


def test_another_size_than_annotated_is_an_error(dataset):
    data = dataset()
    Image.new("RGB", (20, 20)).save(data.index.path(0))
    with pytest.raises(ImageError, match=r"red.png: is 20x20 .* say 30x40"):
        data[Request(0, 60, (64, 96))]


def test_failing_augmentation_names_the_file(dataset):
    with pytest.raises(AugmentationError, match="red.png: augmentation failed on 30x40"):
        dataset([{"RandomCrop": {"height": 99, "width": 99, "p": 1.0}}])[Request(0, 60, (64, 96))]


@pytest.fixture
def photo(tmp_path):
    """A 240 x 320 JPEG, stored turned by a quarter, a bright rectangle exactly in its box; a narrow box."""
    picture = np.full((240, 320, 3), 20, dtype=np.uint8)
    picture[48:144, 80:240] = 230
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(picture.transpose(1, 0, 2)[::-1])
    Image.fromarray(stored).save(tmp_path / "large.jpg", exif=exif, quality=95)
    rows = enumerate(([80, 48, 160, 96], [10, 10, 1.5, 30]), start=1)
    content = {
        "images": [{"id": 5, "file_name": "large.jpg", "height": 240, "width": 320}],
        "annotations": [{"id": n, "image_id": 5, "category_id": 1, "bbox": box} for n, box in rows],
        "categories": [{"id": 1, "name": "bright"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "boxes.json", tmp_path)


@pytest.mark.parametrize("augment", [None, [{"HorizontalFlip": None}, {"VerticalFlip": None}]])
def test_reduced_decoding_changes_pixels_a_little_and_nothing_else(photo, augment, monkeypatch):
    decoded = []

    def recording(*args, **options):
        decoded.append(read_image(*args, **options))
        return decoded[-1]

    monkeypatch.setattr(coco_dataset, "read_image", recording)
    augmentation = augment and Augmentation(augment)
    whole, reduced = (CocoDetectionDataset(photo, augmentation, reduced=flag) for flag in (False, True))
    for seed in range(8):
        request = Request(0, 61, (64, 96), seed)
        one, other = whole[request], reduced[request]
        assert [image.shape[:2] for image in decoded[-2:]] == [(240, 320), (120, 160)]
        for name in ("boxes", "labels", "crowd"):  # the narrow box would be too small in the reduced image
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert other.original_size == (240, 320) and other.image.shape == one.image.shape == (3, 61, 81)
        difference = (one.image.int() - other.image.int()).abs()
        assert difference.max() > 0 and difference.float().mean() < 3
    large = Request(0, 121, (160, 192))
    assert torch.equal(whole[large].image, reduced[large].image) and decoded[-1].shape == (240, 320, 3)


def test_reduced_decoding_still_finds_another_size_than_annotated(photo):
    Image.new("RGB", (640, 480)).save(photo.path(0))  # at a half it would fit
    with pytest.raises(ImageError, match="is 480x640 .* say 240x320"):
        CocoDetectionDataset(photo, reduced=True)[Request(0, 60, (64, 96))]


def test_reduced_decoding_goes_with_flips_alone(photo, root):
    crop = [{"RandomCrop": {"height": 20, "width": 20}}]
    with pytest.raises(AugmentationError, match="reduced_decoding allows only flips"):
        CocoDetectionDataset(photo, Augmentation(crop), reduced=True)
    module = coco.CocoDetection(str(root), augment=crop, reduced_decoding=True)
    module.setup("fit")
    with pytest.raises(AugmentationError, match="reduced_decoding"):
        module.train_dataloader()
    assert module.val_dataloader().dataset.dataset.dataset.reduced
    module = coco.CocoDetection(str(root))
    module.setup("fit")
    assert not module.train_dataloader().dataset.dataset.dataset.reduced


def test_what_grows_with_the_data_is_no_python_object(tmp_path):
    """Reading a Python object counts a reference, which copies its page in every forked worker."""
    sizes = []
    for count in (10, 1000):
        content = {
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in range(1, count + 1)
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 2, 2]} for n in range(1, count + 1)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        dataset = CocoDetectionDataset(read_coco(tmp_path / "boxes.json", tmp_path), Augmentation(FLIP))
        sizes.append(len(reachable(dataset)))
        assert all(
            len(value) < 20 for value in vars(dataset.index).values() if isinstance(value, tuple | list)
        )
    assert sizes[0] == sizes[1]


def reachable(thing):
    """The ids of all objects that the attributes and items of a thing lead to."""
    seen, waiting = {}, [thing]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type | torch.Tensor):
            seen[id(found)] = found
            continue
        seen[id(found)] = found
        waiting += gc.get_referents(found) if isinstance(found, dict | list | tuple | set) else []
        waiting += list(getattr(found, "__dict__", {}).values())
    return seen


def test_pickled_for_a_worker_every_tensor_is_in_shared_memory(root):
    index = read_coco(root / "annotations/instances_train.json", root / "images/train")
    tensors = {name: value for name, value in vars(index).items() if isinstance(value, torch.Tensor)}
    tensors |= vars(index.names)
    assert not any(value.is_shared() for value in tensors.values())
    ForkingPickler(io.BytesIO()).dump(CocoDetectionDataset(index, Augmentation(FLIP)))
    assert {name for name, value in tensors.items() if not value.is_shared()} == set()


def test_pickled_for_a_worker_it_is_small(root):
    index = read_coco(root / "annotations/instances_train.json", root / "images/train")
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(CocoDetectionDataset(index, Augmentation(FLIP)))
    assert buffer.tell() < 20_000
