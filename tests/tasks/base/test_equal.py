"""Two processes train to the weights of one whose batches are twice as large, and evaluate to its metrics.

Weights differ by the rounding of float32 alone: sums of gradients are taken in another order. After the steps
here that is some 1e-6 of a weight; a loss that is divided by the numbers of each process, another image or
another augmentation changes them by more than 1e-3.
"""

import math

import pytest
import pytorch_lightning as pl
import torch
from mask_files import fill_boxes
from memory_tasks import TinyTrunk
from two_processes import ranks

from trunkline.backbones import FPN, ResidualEncoder
from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.multitask import CocoDetectionAndMasks
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare import Preparation
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.synthetic import pictures
from trunkline.data.synthetic.scans import write_scans
from trunkline.heads import Classifier, FasterRCNN, SemanticFPN, UNet
from trunkline.heads.detection import AnchorOptions, RoIOptions, RPNOptions
from trunkline.heads.segmentation import CrossEntropy, Dice, Focal, Tversky, WeightedSum
from trunkline.tasks.classification import Classification
from trunkline.tasks.detection import Detection
from trunkline.tasks.multitask import MultiTask
from trunkline.tasks.segmentation import SemanticSegmentation
from trunkline.tasks.volumes import VolumeSegmentation
from trunkline.tasks.volumes.inference import VolumeInference

pytestmark = pytest.mark.forks

ALL = 10**6  # boxes to sample: none is left to chance
FLIP = [{"HorizontalFlip": {"p": 0.5}}]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def boxes(levels):
    return FasterRCNN(
        levels,
        num_classes=3,
        anchors=AnchorOptions(scale=4.0),
        rpn=RPNOptions(batch_size=ALL, positive_fraction=1.0, pre_nms_train=20, post_nms_train=20),
        roi=RoIOptions(
            hidden=16, pool_size=3, levels=2, batch_size=ALL, positive_fraction=1.0, score_threshold=0.0
        ),
    )


def masks(levels):
    losses = [CrossEntropy([1.0, 2.0, 3.0, 4.0]), Dice(), Focal(), Tversky(per_image=True)]
    return SemanticFPN(levels, num_classes=4, channels=8, pyramid_levels=3, loss=WeightedSum(losses))


def parts():
    torch.manual_seed(0)
    return {"backbone": TinyTrunk(), "neck": lambda trunk: FPN(trunk, channels=8), "optimizer": sgd}


def detection(folder, size):
    options = {"short_side": [48, 64], "long_side": 96, "augment": FLIP, "workers": 0}
    return Detection(head=boxes, **parts()), CocoDetection(str(folder / "shapes"), batch_size=size, **options)


def both(folder, size):
    options = {"short_side": [48, 64], "long_side": 96, "augment": FLIP, "workers": 0}
    data = CocoDetectionAndMasks(root=str(folder / "shapes"), batch_size=size, **options)
    return MultiTask(heads={"boxes": boxes, "stuff": masks}, **parts()), data


def segmentation(folder, size):
    crop = [{"RandomCrop": {"height": 64, "width": 64, "pad_if_needed": True}}, *FLIP]
    data = ImageSegmentation(str(folder / "masks"), batch_size=size, augment=crop, workers=0)
    return SemanticSegmentation(head=masks, **parts()), data


def classification(folder, size):
    data = ImageClassification(str(folder / "classes"), batch_size=size, size=32, workers=0)
    weights = {"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.1}
    given = {**parts(), "neck": None}  # of a pyramid it would read the coarsest map alone
    return Classification(head=lambda levels: Classifier(levels, 3, **weights), **given), data


def scans(folder, size):
    torch.manual_seed(0)
    trunk = ResidualEncoder(channels=[4, 4, 8, 8], blocks=[1] * 4, strides=[1, 2, 2, 2], norm="instance")
    loss = WeightedSum([CrossEntropy(), Dice()])
    task = VolumeSegmentation(
        backbone=trunk,
        head=lambda levels: UNet(levels, 4, norm="instance", deep_supervision=True, loss=loss),
        inference=VolumeInference(window=[24, 24, 16], overlap=0),
        optimizer=sgd,
    )
    data = ScanSegmentation(
        root=str(folder / "scans"), patch=[16, 16, 16], batch_size=size, steps_per_epoch=2, workers=0,
        preparation=Preparation(spacing=[6, 6, 6]), cache_folder=str(folder / "cache"),
    )  # fmt: skip
    return task, data


CASES = {made.__name__: made for made in (detection, segmentation, classification, scans, both)}


def trainer(folder, devices, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_checkpointing": False}
    strategy = "ddp" if devices > 1 else "auto"
    return pl.Trainer(
        default_root_dir=folder, devices=devices, strategy=strategy, **{**quiet, **settings, **options}
    )


def trained(rank, folder, data_folder, world=2):
    """The weights after two epochs, and the metrics of an evaluation before, by case."""
    found = {}
    for name, made in CASES.items():
        pl.seed_everything(0, verbose=False)
        task, data = made(data_folder, 4 // world)
        run = trainer(folder, world, max_epochs=2, check_val_every_n_epoch=3)
        (losses,) = run.validate(task, data, verbose=False)
        metrics = [result.as_dict() for branch in task.branches.values() for result in branch.results]
        run.fit(task, data)
        weights = {key: value.detach().clone() for key, value in task.named_parameters()}
        found[name] = {"weights": weights, "metrics": metrics, "losses": losses, "steps": run.global_step}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and each of two have found."""
    folder = tmp_path_factory.mktemp("equal")
    pictures.write_detection(folder / "shapes", train=7, val=5, seed=1)
    fill_boxes(folder / "shapes")
    pictures.write_segmentation(folder / "masks", train=6, val=3, seed=1, progress=False)
    pictures.write_classification(folder / "classes", train=6, val=3, size=32, seed=1, progress=False)
    write_scans(folder / "scans", train=2, val=1, seed=2, progress=False)
    one = trained(0, folder, folder, world=1)
    return one, ranks(trained, folder / "two", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_to_the_weights_of_one(found, name):
    one, two = found
    for other in two:
        assert other[name]["steps"] == one[name]["steps"] == 4
        for key, value in one[name]["weights"].items():
            torch.testing.assert_close(other[name]["weights"][key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_evaluate_to_the_metrics_of_one(found, name):
    """Of 5, 3 and 1 images, which do not divide by two; all numbers are equal, not nearly."""
    one, two = found
    for other in two:
        assert str(other[name]["metrics"]) == str(one[name]["metrics"])
        assert other[name]["losses"].keys() == one[name]["losses"].keys()
        for key, value in one[name]["losses"].items():
            assert other[name]["losses"][key] == pytest.approx(value, rel=1e-6, nan_ok=True), key
    assert any(not math.isnan(value) for value in one[name]["losses"].values())
