"""Boxes and masks of the same images: alignment, augmentation together, native truth, errors."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.multitask.batches import MultiTaskBatch
from trunkline.data.multitask.module import CocoDetectionAndMasks
from trunkline.data.shared.labels.table import MaskError
from trunkline.data.shared.module import DataContractError


def module(root, **arguments):
    settings = {"batch_size": 2, "workers": 0, "short_side": 64, "long_side": 96, "augment": [], **arguments}
    return CocoDetectionAndMasks(root=str(root), **settings)


def ready(root, stage="fit", **arguments):
    data = module(root, **arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def names_of(root, split):
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return {row["id"]: row["file_name"] for row in content["images"]}


def test_each_image_gets_its_own_mask_at_native_size(shapes_with_masks):
    data = ready(shapes_with_masks)
    assert [(c.id, c.name) for c in data.label_classes("segmentation")] == [
        (0, "nothing"),
        (1, "circle"),
        (3, "rectangle"),
        (7, "triangle"),
    ]
    names, seen = names_of(shapes_with_masks, "val"), 0
    for batch in data.val_dataloader():
        assert isinstance(batch, MultiTaskBatch)
        for i, image_id in enumerate(batch.image_ids.tolist()):
            path = shapes_with_masks / "masks" / "val" / names[image_id]
            values = np.asarray(Image.open(path.with_suffix(".png")))
            expected = np.searchsorted([0, 1, 3, 7], values)
            assert (batch.truth[i].numpy() == expected).all()
            height, width = batch.image_sizes[i].tolist()
            inside = batch.mask[i, :height, :width]
            # nearest: the label of the pixel on disk that the centre lies in
            rows = ((torch.arange(height) + 0.5) * expected.shape[0] / height).long()
            columns = ((torch.arange(width) + 0.5) * expected.shape[1] / width).long()
            assert (inside == batch.truth[i][rows][:, columns]).all()
            assert (batch.mask[i, height:] == 255).all() and (batch.mask[i, :, width:] == 255).all()
            seen += 1
    assert seen == len(names)


def test_boxes_images_and_masks_are_flipped_together(shapes_with_masks):
    flipped = ready(shapes_with_masks, augment=[{"HorizontalFlip": {"p": 1.0}}])
    plain = ready(shapes_with_masks)
    for turned, straight in zip(flipped.train_dataloader(), plain.train_dataloader(), strict=True):
        assert turned.image_ids.tolist() == straight.image_ids.tolist() and turned.truth == ()
        for i, (height, width) in enumerate(straight.image_sizes.tolist()):
            here, there = (batch.mask[i, :height, :width] for batch in (turned, straight))
            agree = (here.flip(1) == there).float().mean()  # but for the rounding of the last resize
            assert agree > 0.97
            real = straight.labels[i] >= 0
            mirrored = width - straight.boxes[i][real][:, [2, 0]]
            torch.testing.assert_close(turned.boxes[i][real][:, [0, 2]], mirrored, atol=1e-3, rtol=0)


def test_pixel_counts_are_those_of_the_training_masks(shapes_with_masks):
    counts = np.zeros(8, dtype=np.int64)
    for path in (shapes_with_masks / "masks" / "train").iterdir():
        counts += np.bincount(np.asarray(Image.open(path)).reshape(-1), minlength=8)[:8]
    data = ready(shapes_with_masks)
    assert data.label_counts("segmentation") == counts[[0, 1, 3, 7]].tolist()
    unchecked = module(shapes_with_masks, check_masks=False)
    with pytest.raises(RuntimeError, match="call setup"):
        unchecked.label_counts("segmentation")
    unchecked.setup("fit")
    assert unchecked.label_counts("segmentation") == counts[[0, 1, 3, 7]].tolist()


def test_an_image_without_a_mask_is_an_error_or_ignored_everywhere(shapes_with_masks, caplog):
    names = names_of(shapes_with_masks, "train")
    gone = sorted(names)[2]
    (shapes_with_masks / "masks" / "train" / names[gone]).with_suffix(".png").unlink()
    with pytest.raises(MaskError, match=rf"1 of 8 images have no mask .*\n  image id {gone}: .*\nadd them"):
        ready(shapes_with_masks)
    with caplog.at_level("WARNING", "trunkline"):
        data = ready(shapes_with_masks, missing="skip")
    assert "1 of 8 images have no mask" in caplog.text
    ignored = [
        int(image_id)
        for batch in data.train_dataloader()
        for image_id, mask in zip(batch.image_ids, batch.mask, strict=True)
        if (mask == 255).all()
    ]
    assert ignored == [gone]


def test_images_that_the_boxes_do_not_list_need_no_mask_and_no_warning(shapes_with_masks, caplog):
    path = shapes_with_masks / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    unlisted = content["images"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != unlisted["id"]]
    path.write_text(json.dumps(content))
    (shapes_with_masks / "masks" / "train" / unlisted["file_name"]).with_suffix(".png").unlink()
    with caplog.at_level("WARNING", "trunkline"):
        data = ready(shapes_with_masks)
    assert not caplog.text and len(data.splits["train"]) == 7


def test_a_mask_of_another_size_is_named_before_training(shapes_with_masks):
    path = sorted((shapes_with_masks / "masks" / "val").iterdir())[1]
    Image.fromarray(np.zeros((5, 9), dtype=np.uint8)).save(path)
    with pytest.raises(MaskError, match=rf"{path.name} 9x5"):
        ready(shapes_with_masks)


def test_objects_of_the_instances_file_can_be_the_masks(shapes_with_masks):
    """Boxes drawn as polygons: every pixel of a box is of its class, or of a smaller one over it."""
    for split in ("train", "val"):
        path = shapes_with_masks / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            x, y, width, height = row["bbox"]
            row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        path.write_text(json.dumps(content))
    places = {f"{split}_masks": f"annotations/instances_{split}.json" for split in ("train", "val")}
    data = ready(shapes_with_masks, mask_classes=None, **places)
    assert [c.name for c in data.label_classes("segmentation")] == [
        "background",
        "circle",
        "rectangle",
        "triangle",
    ]
    for batch in data.val_dataloader():
        for i, truth in enumerate(batch.truth):
            covered = torch.zeros_like(truth, dtype=torch.bool)
            factor = batch.original_sizes[i] / batch.image_sizes[i]
            for box in batch.boxes[i][batch.labels[i] >= 0]:
                x1, x2 = (box[[0, 2]] * factor[1]).round().int().tolist()
                y1, y2 = (box[[1, 3]] * factor[0]).round().int().tolist()
                covered[y1:y2, x1:x2] = True
            assert ((truth > 0) == covered).all()


def test_pixels_of_several_objects_can_be_ignored(shapes_with_masks):
    several = 0
    for split in ("train", "val"):
        path = shapes_with_masks / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for row in content["annotations"]:  # twice as wide, so that some overlap
            x, y, width, height = row["bbox"]
            row["segmentation"] = [[x, y, x + 2 * width, y, x + 2 * width, y + height, x, y + height]]
        path.write_text(json.dumps(content))
    places = {f"{split}_masks": f"annotations/instances_{split}.json" for split in ("train", "val")}
    found = truths(ready(shapes_with_masks, overlaps="ignore", **places))
    for image_id, mask in found.items():
        covered = np.zeros(mask.shape, dtype=int)
        for row in content["annotations"]:
            if row["image_id"] == image_id:
                x, y, width, height = row["bbox"]
                covered[y : y + height, x : x + 2 * width] += 1
        assert np.array_equal(mask == 255, covered > 1)
        several += (covered > 1).sum()
    assert several > 0


def panoptic_files(root):
    """Write the masks once more as panoptic PNGs, and remove them; segment n + 1 is of the category n."""
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        folder, records = root / "annotations" / f"panoptic_{split}", []
        folder.mkdir()
        for row in content["images"]:
            path = (root / "masks" / split / row["file_name"]).with_suffix(".png")
            values = np.asarray(Image.open(path))
            pixels = np.stack([values + 1, *[np.zeros_like(values)] * 2], axis=2)
            Image.fromarray(pixels).save(folder / path.name)
            segments = [{"id": n + 1, "category_id": n} for n in np.unique(values).tolist()]
            records.append({"image_id": row["id"], "file_name": path.name, "segments_info": segments})
        content["annotations"] = records
        content["categories"].insert(0, {"id": 0, "name": "nothing"})
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    shutil.rmtree(root / "masks")


def truths(data):
    """Return ``{image id: mask on disk}`` of the validation data."""
    return {
        image_id: truth.numpy()
        for batch in data.val_dataloader()
        for image_id, truth in zip(batch.image_ids.tolist(), batch.truth, strict=True)
    }


def test_panoptic_files_are_found_and_give_the_same_masks(shapes_with_masks):
    expected = truths(ready(shapes_with_masks))
    panoptic_files(shapes_with_masks)
    data = ready(shapes_with_masks)
    assert [(c.id, c.name) for c in data.label_classes("segmentation")][1:] == [
        (1, "circle"),
        (3, "rectangle"),
        (7, "triangle"),
    ]
    found = truths(data)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[image_id], mask) for image_id, mask in expected.items())


@pytest.mark.parametrize(
    ("options", "names", "labels"),
    [
        ({"ignore": ["circle"]}, ["nothing", "rectangle", "triangle"], [0, 255, 1, 2]),
        ({"mask_categories": [7, "circle"]}, ["background", "triangle", "circle"], [0, 2, 0, 1]),
        (
            {"mask_categories": ["circle", "triangle"], "background": "ignore"},
            ["circle", "triangle"],
            [255, 0, 255, 1],
        ),
        (
            {"mask_classes": ["a", "b", "c", "d"], "mask_values": [7, 3, 1, 0]},
            ["a", "b", "c", "d"],
            [3, 2, 1, 0],
        ),
    ],
)
def test_classes_of_masks_can_be_chosen(shapes_with_masks, options, names, labels):
    plain = truths(ready(shapes_with_masks))  # 0..3 for the values 0, 1, 3 and 7
    data = ready(shapes_with_masks, **options)
    assert [c.name for c in data.label_classes("segmentation")] == names
    for image_id, mask in truths(data).items():
        assert np.array_equal(mask, np.array(labels)[plain[image_id]])


def test_test_data_have_masks_of_their_own_or_those_of_validation(shapes_with_masks):
    own = shapes_with_masks / "other"
    shutil.copytree(shapes_with_masks / "masks" / "val", own)
    for path in own.iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 7)).save(path)
    given = {
        "test_images": "images/val",
        "test_annotations": "annotations/instances_val.json",
        "test_masks": "other",
    }
    for options, labels in (({}, {0, 1, 2, 3}), (given, {3})):
        data = ready(shapes_with_masks, "test", **options)
        masks = [mask for batch in data.test_dataloader() for mask in batch.truth]
        assert {label for mask in masks for label in mask.unique().tolist()} == labels


def test_no_mask_at_all_is_an_error_even_if_missing_ones_are_ignored(shapes_with_masks):
    for path in (shapes_with_masks / "masks" / "train").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(MaskError, match="mask"):
        ready(shapes_with_masks, missing="skip")
    panoptic = shapes_with_masks / "annotations"
    for path in (shapes_with_masks / "masks" / "train").iterdir():
        path.rename(path.with_name(path.name.removeprefix("x")))
    panoptic_files(shapes_with_masks)
    content = json.loads((panoptic / "panoptic_train.json").read_text())
    for row in content["images"]:
        row["file_name"] = f"other/{row['file_name']}"
    (panoptic / "panoptic_train.json").write_text(json.dumps(content))
    with pytest.raises(MaskError, match=r"8 of 8 images have no mask[\s\S]*make them agree"):
        ready(shapes_with_masks, missing="skip")


def test_prediction_needs_no_masks(shapes_with_masks):
    data = module(shapes_with_masks, predict=str(shapes_with_masks / "images" / "val"))
    data.prepare_data()
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert not hasattr(batch, "mask") and len(data.prediction_paths()) == 6


def test_the_loader_is_small_enough_for_worker_processes(shapes_with_masks):
    """Its function that joins samples must not drag the whole module along."""
    data = ready(shapes_with_masks)
    assert len(pickle.dumps(data.train_dataloader().collate_fn)) < 200


def test_the_module_fulfils_the_contract_with_tasks(shapes_with_masks):
    data = ready(shapes_with_masks)
    assert data.label_kinds == ("detection", "segmentation") and data.image_layout() == (3, 2)
    assert [c.name for c in data.label_classes("detection")] == ["circle", "rectangle", "triangle"]
    assert len(data.evaluation_truth("detection", "validate")["images"]) == 6
    for call in (
        lambda: data.label_classes("classification"),
        lambda: data.label_counts("detection"),
        lambda: data.evaluation_truth("segmentation", "fit"),  # it travels in the batches
    ):
        with pytest.raises(DataContractError, match="CocoDetectionAndMasks has no "):
            call()


def test_test_data_under_root_are_used_with_their_masks(shapes_with_masks):
    for folder in ("images", "masks"):
        shutil.copytree(shapes_with_masks / folder / "train", shapes_with_masks / folder / "test")
    annotations = shapes_with_masks / "annotations"
    shutil.copy(annotations / "instances_train.json", annotations / "instances_test.json")
    for path in (shapes_with_masks / "masks" / "test").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 7)).save(path)
    data = ready(shapes_with_masks, "test")
    masks = [mask for batch in data.test_dataloader() for mask in batch.truth]
    assert len(masks) == 8 and {label for mask in masks for label in mask.unique().tolist()} == {3}


def test_instance_masks_and_classes_of_pixels_travel_together(shapes_with_masks):
    """Objects drawn as polygons of their boxes; the other masks are as they were."""
    for split in ("train", "val"):
        path = shapes_with_masks / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            x, y, width, height = row["bbox"]
            row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        path.write_text(json.dumps(content))
    flip = [{"HorizontalFlip": {"p": 1.0}}]
    plain = ready(shapes_with_masks, augment=flip).train_dataloader()
    carrying = ready(shapes_with_masks, augment=flip, instances=["masks"]).train_dataloader()
    for one, other in zip(plain, carrying, strict=True):
        assert torch.equal(one.mask, other.mask) and torch.equal(one.boxes, other.boxes)
        assert one.masks is None and torch.equal(one.image, other.image)
        for i, labels in enumerate(other.labels):
            bitmaps = other.masks.bitmaps(i)
            assert len(bitmaps) == int((labels >= 0).sum())
            for bitmap, box in zip(bitmaps, other.boxes[i], strict=False):
                rows, columns = torch.where(bitmap)
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert (torch.stack(edges) - box).abs().max() <= 1
