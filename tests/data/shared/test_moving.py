"""Batches on their way to a device: what moves, what stays readable in main memory.

The device ``meta`` stands for an accelerator: what is on it cannot be read by the host at all.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device

from trunkline.data.classification import ClassificationBatch
from trunkline.data.detection.batches import DetectionBatch
from trunkline.data.detection.instance_masks import InstanceMasks
from trunkline.data.segmentation.batches import SegmentationBatch
from trunkline.data.shared.batches import Batch, tensors_of
from trunkline.data.shared.failed import FailedBatch, FailedImage

SHARED = {
    "image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    "image_sizes": torch.tensor([[30, 31], [32, 20]]),
    "image_ids": torch.tensor([7, 9]),
}
FAILED = (FailedImage(3, "broken.jpg", "is no image"),)
MASKS = InstanceMasks([[{"size": [30, 31], "counts": b"x"}], []], (32, 32))


def detection():
    labels = torch.zeros(2, 16, dtype=torch.int64)
    return DetectionBatch(
        **SHARED,
        boxes=torch.zeros(2, 16, 4),
        labels=labels,
        crowd=labels > 0,
        original_sizes=torch.tensor([[60, 62], [64, 40]]),
        masks=MASKS,
        failed=FAILED,
    )


def segmentation():
    truth = (torch.zeros(60, 62), torch.zeros(64, 40))
    mask = torch.zeros(2, 32, 32, dtype=torch.uint8)
    return SegmentationBatch(
        **SHARED, mask=mask, original_sizes=torch.tensor([[60, 62], [64, 40]]), truth=truth
    )


def classification():
    return ClassificationBatch(**SHARED, label=torch.tensor([1, 0]))


@pytest.mark.parametrize("made", [detection, segmentation, classification])
def test_every_tensor_moves_and_ids_and_sizes_stay_readable(made):
    batch = made()
    moved = move_data_to_device(batch, torch.device("meta"))  # as Lightning does
    assert type(moved) is type(batch) and batch.image.device.type == "cpu"
    there = [tensor for name, value in vars(moved).items() if name != "kept" for tensor in tensors_of(value)]
    assert len(there) == len(list(tensors_of(batch))) and all(tensor.is_meta for tensor in there)
    for name in type(batch).host_fields:
        assert moved.in_main_memory(name) is vars(batch)[name] is batch.in_main_memory(name)
    assert moved.for_head("any").in_main_memory("image_ids").tolist() == [7, 9]
    assert replace(moved, failed=()).in_main_memory("image_sizes").tolist() == [[30, 31], [32, 20]]
    again = moved.to("meta")
    assert again is moved


def test_what_holds_no_tensor_is_neither_moved_nor_copied():
    moved = detection().to("meta")
    assert moved.masks is MASKS and moved.failed is FAILED and moved.boxes_given == 0


def test_nothing_changes_in_main_memory():
    batch = detection()
    assert batch.to("cpu") is batch and not batch.kept
    failed = FailedBatch(FAILED)
    assert move_data_to_device(failed, torch.device("meta")) is failed


def test_lists_and_dictionaries_of_a_batch_of_ones_own_move_too():
    @dataclass(kw_only=True)
    class Own(Batch):
        parts: list
        named: dict

    batch = Own(**SHARED, parts=[torch.zeros(1), "text"], named={"a": (torch.ones(2),)})
    moved = batch.to("meta")
    assert moved.parts[0].is_meta and moved.parts[1] == "text" and moved.named["a"][0].is_meta
    assert batch.to("cpu") is batch


def test_a_field_that_was_replaced_is_not_the_kept_one():
    """Several heads on one trunk: each gets labels of its own under the same name."""
    moved = classification().to("meta")
    other = replace(moved, label=torch.tensor([5, 6]))
    assert moved.in_main_memory("label").tolist() == [1, 0]
    assert other.in_main_memory("label").tolist() == [5, 6]


def test_any_field_of_a_batch_in_main_memory_can_be_read():
    assert detection().in_main_memory("labels").shape == (2, 16)
