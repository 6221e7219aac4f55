"""Examples of data train two steps by the command, and do what they say: layout, transforms, three heads."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.detection import CocoDetection
from trunkline.data.shared import Augmentation, AugmentationError, MaskAugmentation
from trunkline.data.shared.io import read_image
from trunkline.evaluation.detection import CocoEvaluator
from trunkline.tasks.multitask import MultiTask

SMALL = ["--data.short_side=64", "--data.long_side=96", "--model.backbone.width=8"]


@pytest.fixture
def table(shapes, tmp_path):
    """The dataset ``shapes`` in the layout of the example."""
    root, names = tmp_path / "table", {}
    (root / "images").mkdir(parents=True)
    rows = [["split", "image", "class", "x1", "y1", "x2", "y2"]]
    for split in ("train", "val"):
        content = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        names = {row["id"]: row["name"] for row in content["categories"]}
        for image in content["images"]:
            name = f"{split}_{image['file_name']}"
            (root / "images" / name).symlink_to(shapes / "images" / split / image["file_name"])
            boxes = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            for row in boxes:
                x, y, w, h = row["bbox"]
                rows.append([split, name, names[row["category_id"]], x, y, x + w, y + h])
            if not boxes:
                rows.append([split, name, "", "", "", "", ""])
    with open(root / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_the_layout_gives_the_boxes_of_its_table_and_average_precision(runs, shapes, table):
    cli = runs.fit("csv_boxes", table, *SMALL)
    assert runs.metrics()["AP"] >= 0
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    order = {image["file_name"]: number for number, image in enumerate(truth["images"])}
    label_of = {row["id"]: label for label, row in enumerate(truth["categories"])}
    expected = sorted(
        (row["image_id"] - 1, label_of[row["category_id"]], *row["bbox"]) for row in truth["annotations"]
    )
    given = cli.datamodule.evaluation_truth("detection", "fit")
    assert expected == sorted((r["image_id"], r["category_id"], *r["bbox"]) for r in given["annotations"])
    assert [row["name"] for row in given["categories"]] == ["circle", "rectangle", "triangle"]
    assert len(given["images"]) == len(order) == 6  # the image without objects too
    evaluator = CocoEvaluator(given)  # the boxes of the batches are the truth, back in pixels on disk
    for batch in cli.datamodule.val_dataloader():
        factors = (batch.image_sizes / batch.original_sizes).flip(1).repeat(1, 2)
        for image_id, boxes, labels, factor in zip(
            batch.image_ids, batch.boxes, batch.labels, factors, strict=True
        ):
            real = labels >= 0
            evaluator.add(int(image_id), boxes[real] / factor, torch.ones(int(real.sum())), labels[real])
    assert len(evaluator) == 6 and evaluator.compute().metrics["AP"] == 1


def test_own_transforms_move_boxes_and_masks_with_the_image(example):
    example("own_transforms")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    boxes, labels = np.array([[2, 3, 12, 9]], dtype=np.float32), np.array([1])
    turn = [{"own_transforms.HalfTurn": {"p": 1.0}}]
    turned, moved, kept, _ = Augmentation(turn)(image, boxes, labels, np.array([False]), seed=0)
    assert (turned == image[::-1, ::-1]).all() and kept.tolist() == [1]
    np.testing.assert_allclose(moved, [[18, 11, 28, 17]], atol=1e-5)
    mask = rng.integers(0, 4, (20, 30), dtype=np.uint8)
    _, labels_turned = MaskAugmentation(turn)(image, mask, seed=0)
    assert (labels_turned == mask[::-1, ::-1]).all()
    haze = MaskAugmentation([{"own_transforms.Haze": {"least": 0.2, "most": 0.8, "p": 1.0}}])
    (first, same), (again, _), (other, _) = (haze(image, mask, seed) for seed in (3, 3, 4))
    assert (same == mask).all() and (first == again).all() and (first != other).any()
    share = (first.astype(float) - image)[image < 55] / (255 - image.astype(float))[image < 55]
    assert 0.2 < share.mean() < 0.8 and share.std() < 0.01


def test_own_transforms_are_found_by_the_config_and_applied_in_training(runs, shapes):
    cli = runs.fit("own_transforms", shapes, *SMALL)
    assert "own_transforms.HalfTurn" in cli.datamodule.hparams.augment[1]
    always = [{"own_transforms.HalfTurn": {"p": 1.0}}]
    sizes = {"short_side": 128, "long_side": 160, "canvases": []}  # those on disk
    data = CocoDetection(str(shapes), workers=0, augment=always, **sizes)
    data.setup("fit")
    batch, index = next(iter(data.train_dataloader())), data.splits["train"]
    for i, image_id in enumerate(batch.image_ids.tolist()):
        position = index.image_ids.tolist().index(image_id)
        height, width = batch.image_sizes[i].tolist()
        rows = index.rows(position)
        x1, y1, x2, y2 = index.boxes[rows].unbind(1)
        turned = torch.stack([width - x2, height - y2, width - x1, height - y1], 1)
        assert torch.allclose(batch.boxes[i][: len(turned)], turned, atol=1e-3)
        pixels = batch.image[i, :, :height, :width].permute(1, 2, 0).numpy()
        assert (pixels == read_image(index.path(position))[::-1, ::-1]).all()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nowhere_to_be_found.Haze", {}, "cannot be imported .*No module named 'nowhere_to_be_found'"),
        ("own_transforms.Fog", {}, "cannot be imported .*no attribute 'Fog'"),
        ("own_transforms.np", {}, "is no transform of albumentations"),
        ("own_transforms.Haze", {"lest": 0.1}, "no argument 'lest'; did you mean 'least'"),
    ],
)
def test_a_wrong_transform_is_named(example, name, arguments, words):
    example("own_transforms")
    with pytest.raises(AugmentationError, match=words):
        Augmentation([{name: arguments}])


def test_three_heads_learn_their_own_labels(runs, masked_shapes, learned):
    cli = runs.fit("three_heads", masked_shapes, "--model.backbone.width=8", "--model.neck.channels=16")
    heads = cli.model.head.heads
    assert list(heads) == ["boxes", "areas", "number", "format"]
    assert all(learned(cli, head) for head in heads.values())
    logged = set(cli.trainer.callback_metrics)
    assert {"val/boxes/AP", "val/areas/mIoU", "val/number/accuracy", "val/format/accuracy"} <= logged
    reloaded = MultiTask.load_from_checkpoint(runs.checkpoint(), map_location="cpu")
    names = {name: branch.class_names for name, branch in reloaded.branches.items()}
    assert names["format"] == ["landscape", "portrait", "square"] and names["boxes"][2] == "triangle"
    for number, batch in enumerate(cli.datamodule.val_dataloader()):
        path = cli.datamodule.splits["val"][number].mask
        mask, (height, width) = np.asarray(Image.open(path)), batch.original_sizes[0].tolist()
        assert (batch.truth[0].numpy() == mask).all() and (batch.mask[0, height:] == 255).all()
        assert batch.for_head("format").label.tolist() == [2 if height == width else int(height > width)]
        boxes = batch.boxes[0][batch.labels[0] >= 0].long().tolist()
        for (x1, y1, x2, y2), label in zip(boxes, batch.labels[0].tolist(), strict=False):
            inside = mask[y1:y2, x1:x2] == label + 1
            edges = inside[0].any(), inside[-1].any(), inside[:, 0].any(), inside[:, -1].any()
            assert all(edges)
        assert batch.for_head("number").label.tolist() == [min(2, len(boxes))]
    out = runs.predict(masked_shapes / "images" / "val")
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"boxes/predictions.json", "number/predictions.csv", "format/predictions.csv"} <= files
    assert len([name for name in files if name.startswith("areas/masks/")]) == 4
