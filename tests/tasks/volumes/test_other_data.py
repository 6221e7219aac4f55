"""Evaluation and prediction on data other than those of the training: classes by name, sizes of voxels."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_lightning.plugins.precision import HalfPrecision
from volume_tasks import oracle

from trunkline.data.scans.batches import EvaluationCase
from trunkline.data.scans.cases.types import Case
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare.prepare import Placement
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData, VolumeSettings
from trunkline.tasks.volumes.branch import VolumeFiles


def rows(*pairs):
    return [LabelClass(number, name, (number, 0, 0)) for number, name in pairs]


TRAINED = rows((0, "background"), (1, "liver"), (2, "tumour"))


class Data(TrunklineData):
    label_kinds = ("volumes",)

    def __init__(self, classes, **settings):
        super().__init__()
        self.rows, self.settings = classes, VolumeSettings(**settings)

    def label_classes(self, kind, head=""):
        return self.rows

    def volume_settings(self):
        return self.settings


def state(classes=TRAINED, **settings):
    """What a checkpoint of a training on such data holds."""
    branch = oracle().branch
    branch.prepare(Data(classes, **settings), "fit", fitting=True)
    return branch.state()


def restored(data, stored, stage="validate", first=False):
    branch = oracle().branch
    if first:
        branch.restore(stored, predicting=stage == "predict")
    branch.prepare(data, stage)
    if not first:
        branch.restore(stored, predicting=stage == "predict")
    return branch


def case(truth, spacing=(1, 1, 1), name="a"):
    grid = Grid(truth.shape, np.diag([*spacing, 1.0]))
    axes = len(truth.shape)
    place = Placement(
        grid, tuple((k, 1) for k in range(axes)), tuple((0, s) for s in truth.shape), truth.shape, spacing
    )
    image = np.zeros((1, *truth.shape), np.float32)
    return EvaluationCase(image, place, Case(name, (f"{name}.nii",), None, name), truth, np.array([0]))


def test_weights_of_half_precision_leave_a_whole_scan_as_it_is():
    whole = case(np.zeros((4, 4, 4), np.uint8))
    assert HalfPrecision("bf16-true").convert_input(whole) is whole


def measured(branch, predicted, truth):
    branch.evaluators = branch.default_evaluators()
    branch.reset()
    branch.update([{"image_id": 0, "mask": predicted}], case(truth))
    branch.compute()
    return {row.name: row.means["Dice"] for row in branch.result.per_class}


@pytest.mark.parametrize("first", [False, True])
def test_the_same_classes_under_other_ids_are_evaluated_by_name(first):
    """Liver and tumour are 1 and 2 in training, 6 and 3 here: the data's labels are tumour 1 and liver 2."""
    other = Data(rows((0, "background"), (3, "tumour"), (6, "liver")), regions={"all": (1, 2), "liver": (2,)})
    branch = restored(other, state(), first=first)
    assert branch.class_names == ["background", "liver", "tumour"] and branch.ids().tolist() == [0, 1, 2]
    truth = np.zeros((4, 5, 6), np.uint8)
    truth[1], truth[2], truth[3] = 1, 2, 255
    predicted = np.zeros_like(truth)
    predicted[1], predicted[2] = 2, 1
    branch.regions = branch.named_regions({})
    assert measured(branch, predicted, truth) == {"liver": 1, "tumour": 1}
    assert measured(branch, truth.clip(max=2), truth) == {"liver": 0, "tumour": 0}


def test_regions_keep_their_meaning_under_other_ids():
    stored = state(regions={"all": (1, 2), "liver": (1,)})
    other = rows((0, "background"), (3, "tumour"), (6, "liver"))
    assert restored(Data(other, regions={"all": (1, 2), "liver": (2,)}), stored).regions == {
        "all": (1, 2),
        "liver": (1,),
    }
    again = restored(Data(other, regions={"liver": (2,)}), stored, first=True)
    assert again.regions == {"liver": (1,)}


def test_classes_of_other_names_are_refused_still():
    for other in (rows((0, "background"), (1, "spleen"), (2, "tumour")), TRAINED[:2]):
        with pytest.raises(ValueError, match="trained on the classes|the data have 2 classes"):
            restored(Data(other), state())
    branch = oracle().branch  # a training that goes on would learn other numbers
    branch.prepare(Data(rows((0, "background"), (3, "tumour"), (6, "liver"))), "fit", fitting=True)
    with pytest.raises(ValueError, match="the checkpoint was trained on the classes"):
        branch.restore(state(), predicting=False)


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_voxels_unlike_those_of_the_training_are_said_once(tmp_path, caplog, stage):
    branch = restored(Data(TRAINED), state(spacing=(1.0, 1.0, 3.0)), stage)
    assert branch.spacing == [1, 1, 3]
    truth = np.zeros((4, 5, 6), np.uint8)
    with caplog.at_level(logging.WARNING, "trunkline"):
        for spacing in ((1, 1, 3), (1000, 1000, 3000), (1000, 1000, 3000)):
            if stage == "validate":
                branch.evaluators = []
                branch.update([{"image_id": 0, "mask": truth}], case(truth, spacing))
            else:
                branch.compare_spacing(case(truth, spacing))
    assert len(caplog.records) == 1
    assert (
        "a.nii: its voxels measure 1000 x 1000 x 3000 mm, those of the training 1 x 1 x 3 mm, 1000 times as "
        "large along axis 0; is the unit of its header right (mm, micron, m)?"
    ) in caplog.text


def test_files_of_predictions_compare_voxels(tmp_path, monkeypatch):
    asked = []
    branch = SimpleNamespace(compare_spacing=asked.append, ids=lambda: np.arange(3), regions={})
    monkeypatch.setattr("trunkline.tasks.volumes.branch.write_labels", lambda *a, **k: None)
    truth = np.zeros((4, 5, 6), np.uint8)
    VolumeFiles(tmp_path, branch).add({"mask": truth}, tmp_path / "a.nii", case(truth), 0)
    assert [batch.case.name for batch in asked] == ["a"]


def test_regions_that_are_written_otherwise_than_the_dataset_says(caplog):
    from volume_tasks import Look

    from trunkline.heads import FCN
    from trunkline.tasks.volumes.task import VolumeSegmentation

    task = VolumeSegmentation(
        backbone=Look(3),
        head=lambda levels: FCN(levels, 4, regions=[[1, 2, 3], [2, 3]], region_labels=[1, 2]),
    )
    four = [*TRAINED, *rows((3, "core"))]
    said = {"regions": {"whole": (1, 2, 3), "core": (2, 3)}, "region_labels": {"whole": 1, "core": 3}}
    task.branch.prepare(Data(four, **said), "fit", fitting=True)
    assert (
        "region tumour+core is written as id 2, but the dataset (regions_class_order) writes it as 3"
        in caplog.text
    )
    caplog.clear()
    said["region_labels"]["core"] = 2
    task.branch.prepare(Data(four, **said), "fit", fitting=True)
    assert not caplog.text
