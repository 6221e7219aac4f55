"""Finding the files of a dataset, and what is wrong with them."""

import json
import logging

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image

from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared.augment.transforms import AugmentationError
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError

SMALL = {"short_side": 64, "long_side": 107, "batch_size": 4, "workers": 0}


@pytest.mark.parametrize("images", ["images/{}", "{}2017", "images/{}2017", "images"])
@pytest.mark.parametrize("annotations", ["instances_{}.json", "instances_{}2017.json"])
def test_usual_layouts_are_found(tmp_path, images, annotations):
    (tmp_path / "annotations").mkdir()
    for number, split in enumerate(("train", "val")):
        path = tmp_path / images.format(split) / f"{split}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        content = {
            "images": [{"id": number, "file_name": path.name, "height": 30, "width": 40}],
            "annotations": [],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / "annotations" / annotations.format(split)).write_text(json.dumps(content))
    module = CocoDetection(str(tmp_path), **SMALL)
    module.prepare_data()
    module.setup("fit")
    assert module.splits["train"].path(0) == tmp_path / images.format("train") / "train.png"
    assert module.splits["val"].path(0) == tmp_path / images.format("val") / "val.png"


def test_explicit_paths_are_relative_to_root(own):
    (own / "images" / "train").rename(own / "pictures")
    (own / "annotations" / "instances_train.json").rename(own / "boxes.json")
    module = CocoDetection(str(own), train_images="pictures", train_annotations="boxes.json", **SMALL)
    module.setup("fit")
    assert module.splits["train"].path(0).exists()
    paths = {"train_images": str(own / "pictures"), "train_annotations": str(own / "boxes.json")}
    module = CocoDetection(**paths, **SMALL)  # no root
    module.setup("fit")
    assert len(module.splits["train"]) == 6 and "val" not in module.splits and module.val_dataloader() == []


def test_what_was_looked_for_is_listed(own):
    (own / "annotations" / "instances_train.json").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        CocoDetection(str(own), **SMALL).setup("fit")
    for word in ("instances_train.json", "instances_train2017.json", "data.train_annotations"):
        assert word in str(caught.value)
    with pytest.raises(DataNotFoundError, match="data.train_annotations: .*x.json does not exist"):
        CocoDetection(str(own), train_annotations="x.json", **SMALL).setup("fit")
    with pytest.raises(DataNotFoundError, match="no train data: give data.root"):
        CocoDetection(**SMALL).setup("fit")


def test_training_without_validation_is_said_and_validation_without_it_an_error(own, caplog):
    (own / "annotations" / "instances_val.json").unlink()
    module = CocoDetection(str(own), **SMALL)
    with caplog.at_level(logging.WARNING, "trunkline"):
        module.setup("fit")
    assert "val" not in module.splits and module.val_dataloader() == []
    assert "training without validation" in caplog.text
    with pytest.raises(DataNotFoundError, match="instances_val.json"):
        CocoDetection(str(own), **SMALL).setup("validate")
    with pytest.raises(DataNotFoundError, match="val_annotations"):
        CocoDetection(str(own), val_annotations="gone.json", **SMALL).setup("fit")


def test_differing_categories_are_an_error(own):
    source = own / "annotations" / "instances_val.json"
    source.write_text(source.read_text().replace('"triangle"', '"pyramid"'))
    with pytest.raises(
        AnnotationError, match=r"val annotations differ .*pyramid \(id 7\), triangle \(id 7\)"
    ):
        CocoDetection(str(own), **SMALL).setup("fit")


def test_images_are_checked_before_training(own, recorder, trainer):
    (own / "images" / "train" / "000001.jpg").unlink()
    Image.new("RGB", (9, 9)).save(own / "images" / "val" / "000002.jpg")
    with pytest.raises(ImageError, match="image id 1: .*000001.jpg: no such file"):
        trainer(max_epochs=1).fit(recorder(), CocoDetection(str(own), **SMALL))
    with pytest.raises(ImageError, match="image id 2: .*is 9x9 pixels"):
        trainer().validate(recorder(), CocoDetection(str(own), **SMALL), verbose=False)
    module = CocoDetection(str(own), check_images="off", **SMALL)
    module.prepare_data()
    module.setup("fit")


def test_decoding_check_finds_damage_in_the_pixels(own):
    path = own / "images" / "train" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    CocoDetection(str(own), **SMALL).prepare_data()
    with pytest.raises(ImageError, match="image id 1: .*damaged"):
        CocoDetection(str(own), check_images="decode", **SMALL).prepare_data()


def test_bad_boxes_follow_the_option(own):
    source = own / "annotations" / "instances_train.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["bbox"][2] = 0
    source.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"instances_train.json: bad boxes[\s\S]*annotation id 1,"):
        CocoDetection(str(own), **SMALL).setup("fit")
    module = CocoDetection(str(own), on_bad_box="drop", **SMALL)
    module.setup("fit")
    assert len(module.splits["train"].boxes) == len(content["annotations"]) - 1


def test_bad_augmentation_is_an_error_at_setup(root):
    with pytest.raises(AugmentationError, match="did you mean HorizontalFlip"):
        CocoDetection(str(root), augment=[{"HorizontalFlop": None}], **SMALL).setup("fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"long_side": 0}, "long_side"),
        ({"short_side": 2000}, r"short_side 2000 .*long_side \(1333\)"),
        ({"short_side": []}, "short_side"),
        ({"short_side": [0, 5]}, "short_side"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CocoDetection("x", **options)


def test_loader_before_setup_is_an_error(root):
    with pytest.raises(RuntimeError, match="setup"):
        CocoDetection(str(root)).train_dataloader()


def test_arguments_come_from_yaml(root, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data:
  class_path: trunkline.data.coco.CocoDetection
  init_args:
    root: {root}
    short_side: [32, 48]
    canvases: [[64, 96]]
    on_bad_box: clip
    augment:
      - HorizontalFlip: {{p: 1.0}}
      - RandomCrop: {{height: 32, width: 32}}
      - VerticalFlip:
"""
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(CocoDetection, "data")
    module = parser.instantiate(parser.parse_args([f"--config={config}", "--data.batch_size=3"])).data
    module.setup("fit")
    assert next(iter(module.train_dataloader())).image.shape == (3, 3, 64, 96)
    assert [type(transform).__name__ for transform in module._augmentation().compose] == [
        "HorizontalFlip", "RandomCrop", "VerticalFlip",
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match="on_bad_box"):
        parser.parse_args([f"--config={config}", "--data.on_bad_box=repair"])


def test_help_explains_the_arguments(capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(CocoDetection, "data")
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=trunkline.data.coco.CocoDetection"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--data.long_side LONG_SIDE limit of the longer side after resizing, in pixels." in shown
