"""Two runs from files end with equal weights, of every task; the number of loader processes changes nothing.

``test_deterministic.py`` does the same by the ways of devices, from data in memory.
"""

import pytest
import pytorch_lightning as pl
import torch
from exact_runs import TASKS, Trunk

from trunkline.data.synthetic.scans import write_scans
from trunkline.heads import FCN
from trunkline.tasks.volumes import VolumeSegmentation


@pytest.fixture
def root(request, tmp_path):
    """The folder of a task's dataset."""

    def of(task):
        if task == "scans":
            write_scans(tmp_path / "scans", train=2, val=1, seed=2, progress=False)
            return tmp_path / "scans"
        names = {"detection": "shapes", "segmentation": "masked_shapes", "classification": "class_folders"}
        return request.getfixturevalue(names.get(task, "shapes_with_masks"))

    return of


def four_classes(**options):
    return VolumeSegmentation(
        backbone=Trunk(3, 1), head=lambda levels: FCN(levels, 4, channels=4, dropout=0.5), **options
    )


def weights(task, root, folder, workers, seed=7, deterministic=True):
    """Train one epoch; the order of images and their augmentation follow a seed of the data, which stays."""
    try:
        pl.seed_everything(seed, verbose=False)
        build, data = TASKS[task](root, workers=workers)
        if task == "scans":  # the synthetic ones have four classes
            build = four_classes
        module = build(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.02), pictures=0)
        quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, num_sanity_val_steps=0, limit_val_batches=1,
            deterministic=deterministic, default_root_dir=folder, **quiet,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    finally:
        torch.use_deterministic_algorithms(False)
    assert trainer.global_step > 1
    return module.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_runs_with_one_seed_are_equal_for_any_number_of_workers(task, root, tmp_path):
    folder = root(task)
    first = weights(task, folder, tmp_path, workers=0)
    assert equal(first, weights(task, folder, tmp_path, workers=0))
    assert equal(first, weights(task, folder, tmp_path, workers=2))
    assert equal(first, weights(task, folder, tmp_path, workers=0, deterministic=False))  # on a CPU
    assert not equal(first, weights(task, folder, tmp_path, workers=0, seed=8))
    assert all(value.isfinite().all() for value in first.values())
