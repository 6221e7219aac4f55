"""``augment_on: device`` beside the loader's own work: equal labels, and pixels within one grey level."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.multitask import CocoDetectionAndMasks
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.augment.transforms import AugmentationError
from trunkline.data.shared.batches import Batch, tensors_of
from trunkline.data.shared.on_device import RawImages

FLIPS = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
SIZES = [(90, 70), (48, 64), (64, 64), (33, 121), (64, 48), (120, 200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise of several scales, so that a wrong filter or a shift by half a pixel shows."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
        pixels = (pixels + rng.integers(-30, 31, pixels.shape)).clip(0, 255).astype(np.uint8)
        mask = Image.fromarray((pixels[:, :, 0] > 128).astype(np.uint8))
        for split in ("train", "val"):
            for place in (f"images/{split}", f"classes/{split}/{'ab'[number % 2]}", f"masks/{split}"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                made = mask if place.startswith("masks") else Image.fromarray(pixels)
                made.save(folder / place / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
        annotations.append(
            {
                "id": number + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0, "area": 600,
                "bbox": [2.5, 3, 20, 30], "segmentation": [[2.5, 3, 22.5, 3, 22.5, 33, 2.5, 33]],
            }
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


COMMON = {"batch_size": 3, "workers": 0, "augment": FLIPS, "seed": 3}
BOXES = {"short_side": [48, 80], "long_side": 100, "instances": ["masks"], "check_images": "off", **COMMON}
MADE = {
    "boxes": lambda root, **given: CocoDetection(str(root), **BOXES, **given),
    "boxes and masks": lambda root, **given: CocoDetectionAndMasks(
        root=str(root), mask_classes=["dark", "bright"], **BOXES, **given
    ),
    "masks": lambda root, **given: ImageSegmentation(
        str(root), classes=["dark", "bright"], eval_short_side=50, **COMMON, **given
    ),
    "classes": lambda root, **given: ImageClassification(
        str(root / "classes"), size=40, resize=45, **COMMON, **given
    ),
    "classes, bicubic": lambda root, **given: ImageClassification(
        str(root / "classes"), size=64, interpolation="bicubic", **COMMON, **given
    ),
}


def loaders(made):
    made.prepare_data()
    made.setup("fit")
    return made.train_dataloader(), made.val_dataloader()


@pytest.mark.parametrize("kind", MADE)
def test_pixels_equal_the_loaders_to_one_grey_level_and_labels_exactly(root, kind):
    with_loader, on_device = loaders(MADE[kind](root)), loaders(MADE[kind](root, augment_on="device"))
    seen = 0
    for host_loader, device_loader in zip(with_loader, on_device, strict=True):
        for epoch in range(2):
            host_loader.sampler.set_epoch(epoch), device_loader.sampler.set_epoch(epoch)
            for host, raw in zip(host_loader, device_loader, strict=True):
                assert raw.image.numel() == 0 and host.raw is None and len(raw) == len(host)
                batch = raw.rendered()
                assert batch.raw is None and batch.image.dtype == torch.uint8
                assert batch.rendered() is batch
                assert batch.image.shape == host.image.shape
                difference = (batch.image.int() - host.image.int()).abs()
                assert difference.max() <= 1 and difference.float().mean() < 0.2
                for name in vars(host).keys() - {"image", "raw", "masks"}:
                    for one, other in zip(
                        tensors_of([getattr(host, name)]), tensors_of([getattr(batch, name)]), strict=True
                    ):
                        torch.testing.assert_close(other, one, atol=1e-3, rtol=0)
                if getattr(host, "masks", None) is not None:
                    for one, other in zip(host.masks.objects, batch.masks.objects, strict=True):
                        assert one == other
                seen += len(batch)
    assert seen == 2 * len(SIZES) * 2


def test_each_flip_is_seen(root):
    """Were nothing mirrored, the comparison above would still hold for images without flips."""
    loader, _ = loaders(MADE["boxes"](root, augment_on="device"))
    work = [work.flip for epoch in range(4) for batch in _epoch(loader, epoch) for work in batch.raw.work]
    assert len(set(work)) == 4


def _epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("kind", ["boxes", "masks", "classes"])
def test_what_only_the_loader_can_do_is_refused_before_training(root, kind):
    made = MADE[kind](root, augment_on="device")
    made.hparams.augment = [*FLIPS, {"ColorJitter": {"p": 0.5}}]
    with pytest.raises(AugmentationError, match="augment_on device takes HorizontalFlip and VerticalFlip"):
        made.setup("fit")
    if kind == "classes":
        for option, value in (("policy", "rand_augment"), ("random_erasing", 0.5)):
            made = MADE[kind](root, augment_on="device", **{option: value})
            with pytest.raises(AugmentationError, match="does without policy and random_erasing"):
                made.setup("fit")


class Looking(LightningModule):
    """Keeps what a training step gets."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])  # the second converts batches before
def test_a_trainer_gets_images_that_are_ready(root, precision):
    model = Looking()
    made = MADE["boxes"](root, augment_on="device", canvases=[(128, 128)])
    options = {"accelerator": "cpu", "logger": False, "barebones": True, "precision": precision}
    Trainer(**options, max_epochs=1, limit_val_batches=0).fit(model, made)
    assert model.batches and all(batch.image.shape[1:] == (3, 128, 128) for batch in model.batches)
    assert all(batch.image.dtype == torch.uint8 for batch in model.batches)


def test_one_buffer_moves_and_the_device_makes_the_images():
    raw = RawImages(torch.zeros(3 * 4 * 5, dtype=torch.uint8), (), (32, 32))
    batch = Batch(
        image=torch.empty(1, 3, 0, 0, dtype=torch.uint8),
        image_sizes=torch.tensor([[4, 5]]),
        image_ids=torch.tensor([1]),
        raw=raw,
    )
    moved = batch.to("meta")
    assert moved.raw.content.is_meta and moved.raw.canvas == (32, 32) and moved.image.is_meta
