"""Masks and keypoints from the index to the batch, against numpy on what pycocotools decodes."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as coco_mask
from pytorch_lightning.utilities import move_data_to_device
from torch.utils.data import DataLoader

from trunkline.data.detection.batches import collate_detection
from trunkline.data.detection.dataset import CocoDetectionDataset
from trunkline.data.detection.index import read_coco
from trunkline.data.detection.instance_masks import InstanceMasks
from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared.augment.transforms import Augmentation
from trunkline.data.shared.canvas import Request

BOTH = ("masks", "keypoints")
CANVAS = (64, 96)


@pytest.fixture
def samples(content, store):
    """Load samples of image 7 (and 5) with the given augmentation."""
    path = store(content)
    index = read_coco(path, path.parent, instances=BOTH)

    def load(augment=None, short_side=30, seed=0, position=1):
        augmentation = None if augment is None else Augmentation(augment, carried=BOTH)
        return CocoDetectionDataset(index, augmentation)[Request(position, short_side, CANVAS, seed)]

    return load


def bitmaps_of(sample):
    """``[m, h, w]`` bool masks of a sample, by way of a batch."""
    height, width = sample.image.shape[1:]
    masks = collate_detection([sample]).masks.bitmaps(0)
    assert masks.shape[1:] == CANVAS and not masks[:, height:].any() and not masks[:, :, width:].any()
    return masks[:, :height, :width].numpy()


def nearest(bitmaps, height, width):
    """Resize by the old pixel that the centre of each new one lies in."""
    rows = ((np.arange(height) + 0.5) * bitmaps.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * bitmaps.shape[2] / width).astype(int)
    return bitmaps[:, rows][:, :, columns] == 1


@pytest.mark.parametrize("short_side", [30, 60, 21, 45])
def test_masks_and_keypoints_are_resized_with_their_image(short_side, samples, truth):
    sample = samples(short_side=short_side)
    height, width = sample.image.shape[1:]
    assert min(height, width) == short_side
    assert np.array_equal(bitmaps_of(sample), nearest(truth, height, width))
    x, y = width / 40, height / 30
    expected = [[4.5 * x, 5.5 * y, 2], [6.5 * x, 4.5 * y, 2], [2.5 * x, 4.5 * y, 1]]
    torch.testing.assert_close(sample.keypoints[0], torch.tensor(expected))
    assert not sample.keypoints[1:].any() and sample.keypoints.shape == (3, 3, 3)


def test_flips_by_hand(samples, truth):
    flipped = samples([{"HorizontalFlip": {"p": 1.0}}])
    assert np.array_equal(bitmaps_of(flipped), truth[:, :, ::-1] == 1)
    # x -> 40 - x; the eyes change their places in the list
    assert flipped.keypoints[0].tolist() == [[35.5, 5.5, 2], [37.5, 4.5, 1], [33.5, 4.5, 2]]
    assert not flipped.keypoints[1:].any()
    upside = samples([{"VerticalFlip": {"p": 1.0}}])
    assert np.array_equal(bitmaps_of(upside), truth[:, ::-1] == 1)
    assert upside.keypoints[0].tolist() == [[4.5, 24.5, 2], [2.5, 25.5, 1], [6.5, 25.5, 2]]
    turned = samples([{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}])
    assert np.array_equal(bitmaps_of(turned), truth[:, ::-1, ::-1] == 1)
    assert turned.keypoints[0].tolist() == [[35.5, 24.5, 2], [33.5, 25.5, 2], [37.5, 25.5, 1]]


def test_a_crop_drops_objects_with_their_masks_and_keypoints_outside_count_as_not_labelled(samples, truth):
    crop = {"Crop": {"x_min": 4, "y_min": 0, "x_max": 24, "y_max": 15, "p": 1.0}}
    sample = samples([crop], short_side=15)
    assert sample.labels.tolist() == [0] and sample.crowd.tolist() == [False]  # crowd and cup are outside
    assert np.array_equal(bitmaps_of(sample), truth[:1, :15, 4:24] == 1)
    assert sample.keypoints.tolist() == [[[0.5, 5.5, 2], [2.5, 4.5, 2], [0, 0, 0]]]
    resized = samples([crop], short_side=45)
    assert np.array_equal(bitmaps_of(resized), nearest(truth[:1, :15, 4:24], 45, 60))
    assert resized.keypoints.tolist() == [[[1.5, 16.5, 2], [7.5, 13.5, 2], [0, 0, 0]]]
    flipped = samples([crop, {"HorizontalFlip": {"p": 1.0}}], short_side=15)
    assert np.array_equal(bitmaps_of(flipped), truth[:1, :15, 4:24][:, :, ::-1] == 1)
    assert flipped.keypoints.tolist() == [[[19.5, 5.5, 2], [0, 0, 0], [17.5, 4.5, 2]]]


def test_an_image_without_objects_joins_a_batch(samples):
    full, empty = samples(short_side=60), samples(short_side=60, position=0)
    batch = collate_detection([empty, full])
    assert len(batch.masks) == 2 and [len(codes) for codes in batch.masks.objects] == [0, 3]
    assert batch.masks.bitmaps(0).shape == (0, *CANVAS)
    assert batch.keypoints.shape == (2, 16, 3, 3) and not batch.keypoints[0].any()
    assert torch.equal(batch.keypoints[1, :3], full.keypoints) and not batch.keypoints[1, 3:].any()
    cropped = samples([{"Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 15, "p": 1.0}}], position=0)
    assert cropped.masks == () and cropped.keypoints.shape == (0, 3, 3)


def test_rows_can_be_chosen_and_padding_rows_are_empty(samples):
    masks = collate_detection([samples()]).masks
    every = masks.bitmaps(0)
    chosen = masks.bitmaps(0, torch.tensor([2, 0, 2, 9, -1]))
    assert torch.equal(chosen[:3], every[[2, 0, 2]]) and not chosen[3:].any() and every.any(2).any(1).all()


def test_crops_by_hand():
    """A block of 8 x 4 pixels in boxes that hold all, a quarter, and none of it."""
    bitmap = np.zeros((20, 30), dtype=np.uint8, order="F")
    bitmap[4:12, 6:10] = 1
    masks = InstanceMasks([[], [coco_mask.encode(bitmap)]], (32, 32))
    boxes = torch.tensor([[6.0, 4, 10, 12], [4, 4, 8, 12], [12, 4, 20, 12], [6, 4, 14, 20]])
    crops = masks.crop(1, [0, 0, 0, 0], boxes, 4)
    assert crops.shape == (4, 4, 4) and crops.dtype == torch.bool
    assert crops[0].all() and not crops[2].any()
    assert crops[1].tolist() == [[False, False, True, True]] * 4
    assert crops[3].tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert not masks.crop(1, torch.tensor([-1]), boxes[:1], 4).any()
    assert masks.crop(0, [], boxes[:0], 4).shape == (0, 4, 4)


def test_pixels_of_crops_are_those_of_the_mask(samples):
    """A crop of the whole box at its own size is the mask itself."""
    sample = samples()
    masks = collate_detection([sample]).masks
    assert torch.equal(
        masks.crop(0, [2], torch.tensor([[28.0, 8, 38, 18]]), 10)[0], masks.bitmaps(0, [2])[0, 8:18, 28:38]
    )


def test_batches_are_moved_pinned_and_sent_by_workers(samples):
    batch = collate_detection([samples(), samples(position=0)])
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.keypoints.is_meta and moved.masks is batch.masks and not batch.keypoints.is_meta
    if torch.cuda.is_available():
        assert batch.pin_memory().keypoints.is_pinned() and batch.pin_memory().masks is batch.masks
    loader = DataLoader(Pair(samples), batch_size=None, num_workers=1)
    (sent,) = loader
    assert torch.equal(sent.masks.bitmaps(0), batch.masks.bitmaps(0)) and sent.masks.canvas == CANVAS


class Pair(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return collate_detection([self.samples(), self.samples(position=0)])


@pytest.mark.parametrize("instances", [[], ["masks"], ["keypoints"], ["masks", "keypoints"]])
def test_the_data_module_delivers_what_is_asked_for(instances, content, store, truth):
    path = store(content)
    given = {
        f"{split}_{what}": str(place)
        for split in ("train", "val")
        for what, place in (("images", path.parent), ("annotations", path))
    }
    flip = [{"HorizontalFlip": {"p": 1.0}}]
    options = {"short_side": 30, "long_side": 90, "batch_size": 2, "workers": 0, "augment": flip}
    module = CocoDetection(**given, instances=instances, **options)
    module.setup("fit")
    for loader, step in ((module.train_dataloader(), -1), (module.val_dataloader(), 1)):
        (batch,) = loader
        assert (batch.masks is not None) == ("masks" in instances)
        assert (batch.keypoints is not None) == ("keypoints" in instances)
        n = batch.image_ids.tolist().index(7)
        if "masks" in instances:
            assert np.array_equal(batch.masks.bitmaps(n)[:, :30, :40].numpy(), truth[:, :, ::step] == 1)
        if "keypoints" in instances:
            assert batch.keypoints[n, 0, 0].tolist() == [4.5 if step > 0 else 35.5, 5.5, 2]
    assert isinstance(module, pl.LightningDataModule)
    module = CocoDetection(predict=str(path.parent / "full.png"), instances=instances, **options)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch.masks is batch.keypoints is None
