"""Examples of segmentation train two steps by the command, and do what they say: head, loss, logger."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trunkline.backbones import FeatureLevel
from trunkline.tasks.segmentation import SemanticSegmentation

CROP = '[{"RandomCrop": {"height": 64, "width": 64, "pad_if_needed": true}}]'
SMALL = ["--model.backbone.width=8", "--data.augment", CROP]


def test_the_head_learns_and_its_masks_are_those_that_were_evaluated(runs, masked_shapes, learned):
    cli = runs.fit("hypercolumns", masked_shapes, *SMALL)
    assert type(cli.model.head).__name__ == "Hypercolumns" and learned(cli, cli.model.head)
    pictures = masked_shapes / "images" / "val"
    out, right, total = runs.predict(pictures), 0, 0
    for path in (masked_shapes / "masks" / "val").iterdir():
        truth, predicted = (np.asarray(Image.open(p)) for p in (path, out / "masks" / path.name))
        right += (truth == predicted)[truth != 255].sum()
        total += (truth != 255).sum()
    assert runs.metrics()["pixel_accuracy"] == pytest.approx(right / total, abs=1e-4) and right > 0
    reloaded = SemanticSegmentation.load_from_checkpoint(runs.checkpoint(), map_location="cpu").eval()
    image, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    assert torch.equal(reloaded(image, sizes).mask, cli.model.eval()(image, sizes).mask)


@pytest.mark.parametrize(("axes", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_the_head_adds_up_all_levels_at_the_size_of_the_finest(example, axes, mode):
    levels = [FeatureLevel(4, (2,) * axes), FeatureLevel(6, (4,) * axes)]
    head = example("hypercolumns").Hypercolumns(levels, num_classes=3, channels=5)
    maps = [torch.randn(1, 4, *(6,) * axes), torch.randn(1, 6, *(3,) * axes)]
    fine, coarse = (project(x) for project, x in zip(head.project, maps, strict=True))
    cells = head.classify((fine + F.interpolate(coarse, size=(6,) * axes, mode=mode)).relu())
    logits = head(maps, (6,) * axes).logits
    torch.testing.assert_close(logits, cells)
    assert head(maps, (11,) * axes).logits.shape == (1, 3, *(11,) * axes)


def test_the_loss_equals_its_formula_and_leaves_out_ignored_pixels(example):
    loss = example("poly_loss").Poly1(epsilon=2.0)
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 3, (2, 4, 5))
    mask[0, 1] = 255
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = np.take_along_axis(p, np.where(mask == 255, 0, mask)[:, None], axis=1)[:, 0]
    expected = (-np.log(true) + 2 * (1 - true))[mask != 255].mean()
    given = torch.tensor(logits, requires_grad=True), torch.tensor(mask)
    value = loss(*given)
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert (given[0].grad[0, :, 1] == 0).all() and (given[0].grad[1] != 0).all()
    plain = example("poly_loss").Poly1(epsilon=0.0)(*given)
    assert plain.item() == pytest.approx(F.cross_entropy(*given, ignore_index=255).item())
    assert loss(given[0], torch.full((2, 4, 5), 255)).item() == 0


def test_the_loss_trains_in_a_sum_with_another(runs, masked_shapes):
    cli = runs.fit("poly_loss", masked_shapes, *SMALL)
    metrics = cli.trainer.callback_metrics
    total = metrics["train/poly1"] + metrics["train/dice"]
    assert metrics["train/loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert cli.model.head.loss.losses[0].epsilon == 1.0 and cli.model.head.loss.weights == [1.0, 0.5]
    model = cli.model.eval()
    batch = next(iter(cli.datamodule.val_dataloader()))
    with torch.no_grad():
        raw = model.raw(batch.image, batch.image_sizes)
    valid = batch.mask != 255
    rows = F.cross_entropy(raw.logits, torch.where(valid, batch.mask, 0).long(), reduction="none")
    expected = (rows + 1 - torch.exp(-rows))[valid].mean()
    assert model.head.losses(raw, batch)["poly1"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_logger_takes_metrics_and_pictures(runs, masked_shapes):
    folder = runs.folder / "records"
    words = [f"--trainer.logger.init_args.folder={folder}", "--model.pictures=3"]
    cli = runs.fit("folder_logger", masked_shapes, *SMALL, *words)
    assert type(cli.trainer.logger).__name__ == "FolderLogger"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [record for record in records if "val/mIoU" in record]
    written = runs.metrics()
    assert logged["val/mIoU"] == pytest.approx(written["mIoU"]) and logged["step"] == 1
    assert [record["step"] for record in records if "train/loss" in record] == [0, 1]
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert len([name for name in pictures if name.startswith("val_image")]) == 3
    assert len(pictures) == 4 and any("confusion" in name for name in pictures)
    assert (folder / "val" / "metrics.json").is_file() and (folder / "config.yaml").is_file()
    assert folder in runs.checkpoint().parents
