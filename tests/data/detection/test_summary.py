"""What is counted before training, and when there is nothing to learn."""

import json
import logging

import pytest

from trunkline.data.detection import CocoDetection
from trunkline.data.detection.index import read_coco
from trunkline.data.detection.lost import LostBoxes
from trunkline.data.detection.summary import Scale, below_pixel, summarise
from trunkline.data.shared.summary import require_learnable

SMALL = {"short_side": 48, "long_side": 96, "batch_size": 2, "workers": 0}
TRAIN = "annotations/instances_train.json"


def change(folder, edit, name=TRAIN):
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    return content


def module(folder, **options):
    data = CocoDetection(str(folder), check_images="off", **{**SMALL, **options})
    data.setup("fit")
    return data


def test_counts_by_hand(own):
    def edit(content):
        first = content["images"][0]["id"]
        boxes = [
            {"bbox": [0, 0, 10, 10], "category_id": 1},
            {"bbox": [5, 5, 10, 10], "category_id": 1, "iscrowd": 1},
            {"bbox": [5, 5, 0, 10], "category_id": 3},
            {"bbox": [60, 40, 30, 30], "category_id": 3},  # leaves the 64x48 image
            {"bbox": [9, 9, float("nan"), 3], "category_id": 3},
            {"bbox": [3, 3, 0.5, 20], "category_id": 1},
        ]
        content["annotations"] = [{"id": n, "image_id": first, **row} for n, row in enumerate(boxes)]

    change(own, edit)
    summary = module(own, on_bad_box="drop").summaries()["train"]
    assert summary.counts == {
        "images": 6,
        "boxes": 2,
        "crowd regions": 1,
        "images without boxes": 5,
        "boxes below 1 pixel": 1,
        "classes without boxes": 2,
        "boxes dropped: not finite": 1,
        "boxes dropped: no area": 1,
        "boxes dropped: outside": 1,
    }
    assert summary.learnable == 1


def test_boxes_below_a_pixel_by_the_sizes_that_images_get(tmp_path):
    """A 400x200 image at a short side of 50 shrinks to a quarter, at a limit of 80 to a fifth."""
    shots = [
        {"id": 1, "file_name": "a", "width": 400, "height": 200},
        {"id": 2, "file_name": "b", "width": 1, "height": 1},
    ]
    # The last one is enlarged with its image, but training leaves out what is below a pixel of the file.
    sides = [
        (1, [10, 10, 4, 4]),
        (1, [20, 10, 3.9, 30]),
        (1, [30, 10, 40, 4.5]),
        (2, [0, 0, 1, 1]),
        (2, [0, 0, 1, 0.4]),
    ]
    rows = [{"id": n, "image_id": i, "category_id": 1, "bbox": box} for n, (i, box) in enumerate(sides)]
    content = {"images": shots, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "a.json", tmp_path)
    assert below_pixel(index, Scale(50, 100)).tolist() == [False, True, False, False, True]
    assert below_pixel(index, Scale(50, 80)).tolist() == [True, True, True, False, True]
    # Of two canvases the one counts that images shrink less for: 80 for 400.
    assert below_pixel(index, Scale(50, 100, [(30, 60), (60, 80)])).tolist() == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert below_pixel(index, Scale(50, 100, [(30, 60), (60, 100)])).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert summarise(index, Scale(50, 80)).learnable == 1  # the image of one pixel is enlarged


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        (lambda c: c["annotations"].clear(), {}, "every image is background"),
        (lambda c: [row.update(iscrowd=1) for row in c["annotations"]], {}, "all boxes have iscrowd 1"),
        (lambda c: [row.update(bbox=[9, 9, 0, 5]) for row in c["annotations"]], {"on_bad_box": "drop"},
         "all boxes were dropped"),
        (lambda c: [row.update(bbox=[9, 9, 0.5, 5]) for row in c["annotations"]], {},
         "all boxes are below 1 pixel in the file, or when .*set data.short_side above 48"),
        (lambda c: c["annotations"].clear(), {"skip_images_without_boxes": True}, "look at the annotations"),
    ],
)  # fmt: skip
def test_nothing_to_learn_ends_before_training(own, edit, options, words):
    change(own, edit)
    with pytest.raises(ValueError, match=f"(?s)hold nothing to learn; .*{words}.*images"):
        require_learnable(module(own, **options).summaries())


def test_classes_without_boxes_are_said(own, caplog):
    def edit(content):
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 7]
        content["annotations"] += [
            {"id": 900 + n, "image_id": 1, "category_id": number, "bbox": [1, 1, 9, 9]}
            for n, number in enumerate((1, 3))
        ]

    change(own, edit)
    change(
        own,
        lambda c: (
            c["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"}),
            c["annotations"].append({"id": 900, "image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9]}),
        ),
        "annotations/instances_val.json",
    )
    with caplog.at_level(logging.INFO, "trunkline"):
        data = module(own)
    assert (
        "no box of 2 of 4 classes, which the metrics leave out: shapes (id 0), triangle (id 7)" in caplog.text
    )
    assert "boxes of 1 class without any in the train data, so none can be learned: triangle" in caplog.text
    assert data.summaries()["train"].counts["classes without boxes"] == 2


def test_boxes_that_augmentation_removes_are_counted_by_epoch(own, recorder, trainer, caplog):
    """A crop to the upper left sixteenth of the image leaves few boxes."""
    crop = [{"Crop": {"x_max": 16, "y_max": 12}}]
    data = module(own, augment=crop)
    every = len(data.splits["train"].boxes)
    left = sum(int((batch.labels >= 0).sum()) for batch in data.train_dataloader())
    with caplog.at_level(logging.INFO, "trunkline"):
        trainer(max_epochs=2).fit(recorder(), data)
    share = 100 * (every - left) / every
    for epoch in range(2):
        text = f"epoch {epoch}: augmentation removed {every - left} of {every} boxes ({share:.1f} %)"
        assert caplog.text.count(text) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, "trunkline"):
        trainer(max_epochs=1).fit(recorder(), module(own, augment=[{"HorizontalFlip": None}]))
    assert "augmentation removed" not in caplog.text


def test_many_lost_boxes_are_a_warning(own, caplog):
    counts = LostBoxes()
    batch = next(iter(module(own).train_dataloader()))
    assert type(batch.boxes_given) is type(batch.boxes_lost) is int  # nothing that a device is asked for
    assert batch.boxes_given == int((batch.labels >= 0).sum()) and batch.boxes_lost == 0
    batch.boxes_given, batch.boxes_lost = 10, 6
    counts.add(batch, 0)
    counts.finish()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("augment", [None, [{"HorizontalFlip": None}], [{"Affine": {"p": 0}}]])
def test_what_training_leaves_out_is_what_was_counted(own, augment):
    """Boxes below a pixel of the file, in images that are enlarged for training."""

    def edit(content):
        for number, record in enumerate(content["annotations"]):
            record["bbox"] = [10, 10, (0.4, 0.9, 1, 1.5)[number % 4], 20]

    change(own, edit)
    data = module(own, augment=augment, short_side=480, long_side=960)
    summary = data.summaries()["train"]
    assert 0 < summary.learnable < summary.counts["boxes"]
    assert sum(int((batch.labels >= 0).sum()) for batch in data.train_dataloader()) == summary.learnable
