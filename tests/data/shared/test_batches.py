"""Collating by hand: padding of images, box rows and masks, and plain stacking for classification."""

import pytest
import torch

from trunkline.data.classification.batches import ClassificationSample, collate_classification
from trunkline.data.detection.batches import DetectionSample, collate_detection
from trunkline.data.segmentation.batches import SegmentationSample, collate_segmentation
from trunkline.data.shared.batches import padded


def sample(height, width, boxes, image_id=1, canvas=(4, 5), value=9):
    return DetectionSample(
        image=torch.full((3, height, width), value, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        crowd=torch.arange(len(boxes)) % 2 == 1,
        image_id=image_id,
        original_size=(10 * height, 10 * width),
        canvas=canvas,
    )


def test_two_images_one_without_boxes():
    boxes = [[0, 0, 1, 1], [1, 0, 3, 2], [0, 0, 3, 2]]
    batch = collate_detection([sample(2, 3, boxes, 11), sample(4, 1, [], 22)], rows_multiple=2)
    assert len(batch) == 2 and batch.image.dtype == torch.uint8
    expected = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    expected[0, :, :2, :3] = 9
    expected[1, :, :4, :1] = 9
    assert torch.equal(batch.image, expected)
    assert batch.boxes.tolist() == [boxes + [[0] * 4], [[0] * 4] * 4]
    assert batch.labels.tolist() == [[0, 1, 2, -1], [-1] * 4]
    assert batch.crowd.tolist() == [[False, True, False, False], [False] * 4]
    assert batch.image_sizes.tolist() == [[2, 3], [4, 1]]
    assert batch.original_sizes.tolist() == [[20, 30], [40, 10]]
    assert batch.image_ids.tolist() == [11, 22]


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("front", [(), (3,)])
def test_padding_by_hand(front, value):
    """Every element is written: the batch begins as whatever was in memory."""
    images = [
        torch.full((*front, h, w), n, dtype=torch.uint8) for n, (h, w) in enumerate(((2, 5), (4, 1), (4, 5)))
    ]
    expected = torch.full((3, *front, 4, 5), value, dtype=torch.uint8)
    for place, image in zip(expected, images, strict=True):
        place[..., : image.shape[-2], : image.shape[-1]] = image
    held = [torch.full((3, *front, 4, 5), 77, dtype=torch.uint8) for _ in range(50)]
    del held
    assert torch.equal(padded(images, (4, 5), value), expected)


class Padded(torch.utils.data.Dataset):
    """Tells whether what a loader process pads lies in shared memory, before it is sent."""

    def __getitem__(self, index):
        batch = padded([torch.full((3, 2, 2), index, dtype=torch.uint8)], (4, 4), 9)
        return batch, batch.is_shared()


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_processes_pad_in_shared_memory(workers):
    loader = torch.utils.data.DataLoader(Padded(), batch_size=None, sampler=range(3), num_workers=workers)
    for index, (batch, shared) in enumerate(loader):
        assert shared is (workers > 0)
        assert (batch[0, :, :2, :2] == index).all() and int((batch == 9).sum()) == 3 * 12


@pytest.mark.parametrize(("boxes", "rows"), [(0, 16), (16, 16), (17, 32)])
def test_rows_come_in_few_numbers(boxes, rows):
    assert collate_detection([sample(2, 2, [[0, 0, 1, 1]] * boxes)]).labels.shape == (1, rows)


def test_differing_canvases_name_the_image():
    with pytest.raises(ValueError, match=r"image id 22 asks for canvas \(8, 8\)"):
        collate_detection([sample(2, 2, []), sample(2, 2, [], 22, canvas=(8, 8))])


def test_an_image_beyond_its_canvas_is_named():
    with pytest.raises(ValueError, match="image id 22 is 5x2 .* canvas 4x5"):
        collate_detection([sample(2, 2, []), sample(5, 2, [], 22)])


def test_pictures_with_one_class_each():
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    samples = [ClassificationSample(images[n], torch.tensor(5 - n), 7 * n) for n in range(2)]
    batch = collate_classification(samples)
    assert len(batch) == 2 and torch.equal(batch.image, images) and batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous()  # whatever order the decoder left the pixels in
    assert batch.label.tolist() == [5, 4] and batch.label.dtype == torch.int64
    assert batch.image_ids.tolist() == [0, 7] and batch.image_sizes.tolist() == [[4, 5], [4, 5]]


def test_scans_with_several_classes_each():
    images = torch.randn(2, 2, 3, 4, 5)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    batch = collate_classification([ClassificationSample(images[n], labels[n], n) for n in range(2)])
    assert torch.equal(batch.image, images) and torch.equal(batch.label, labels)
    assert batch.image_sizes.tolist() == [[3, 4, 5]] * 2


def test_images_of_other_shapes_are_named():
    samples = [ClassificationSample(torch.zeros(c, 2, 2, 2), torch.tensor(0), 10 * c) for c in (1, 2)]
    words = r"image id 20 has shape \[2, 2, 2, 2\], image id 10 of its batch \[1, 2, 2, 2\]"
    with pytest.raises(ValueError, match=words):
        collate_classification(samples)


def masked(height, width, image_id, truth=None):
    return SegmentationSample(
        image=torch.full((3, height, width), 9, dtype=torch.uint8),
        mask=torch.full((height, width), image_id, dtype=torch.uint8),
        image_id=image_id,
        original_size=(10 * height, 10 * width),
        truth=truth,
    )


def test_masks_are_padded_with_what_is_ignored_and_pictures_with_zero():
    batch = collate_segmentation([masked(2, 3, 4), masked(4, 1, 7)], multiple=1)
    assert len(batch) == 2 and batch.image.dtype == batch.mask.dtype == torch.uint8
    image, mask = torch.zeros(2, 3, 4, 3, dtype=torch.uint8), torch.full((2, 4, 3), 255, dtype=torch.uint8)
    image[0, :, :2], mask[0, :2] = 9, 4
    image[1, :, :, :1], mask[1, :, :1] = 9, 7
    assert torch.equal(batch.image, image) and torch.equal(batch.mask, mask)
    assert batch.image_sizes.tolist() == [[2, 3], [4, 1]] and batch.image_ids.tolist() == [4, 7]
    assert batch.original_sizes.tolist() == [[20, 30], [40, 10]] and batch.truth == ()


def test_sides_are_rounded_up_to_multiples():
    batch = collate_segmentation([masked(32, 33, 1), masked(5, 1, 2)])
    assert batch.image.shape == (2, 3, 32, 64) and batch.mask.shape == (2, 32, 64)
    assert batch.image_sizes.tolist() == [[32, 33], [5, 1]]
    assert (batch.mask[0] != 255).sum() == 32 * 33 and (batch.mask[1] != 255).sum() == 5
    batch = collate_segmentation([masked(9, 4, 1)], multiple=8)
    assert batch.mask.shape == (1, 16, 8)


def test_truth_keeps_its_own_size():
    truths = torch.zeros(20, 30, dtype=torch.uint8), torch.ones(40, 10, dtype=torch.uint8)
    batch = collate_segmentation([masked(2, 3, 4, truths[0]), masked(4, 1, 7, truths[1])], multiple=1)
    assert all(one is other for one, other in zip(batch.truth, truths, strict=True))
