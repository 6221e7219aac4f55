"""A head names the branch that serves it: one of the package, or one of a user by its class path."""

import pytest
import torch
from memory_tasks import HEADS, Everything, multi, single, trainer
from own_parts import UpsideDown, UpsideDownBranch

from trunkline.heads import FCN
from trunkline.tasks.segmentation.branch import SegmentationBranch


def upside_down(levels):
    return UpsideDown(levels, 3, channels=4, dropout=0.0)


def test_a_head_is_served_by_the_branch_that_it_names(tmp_path):
    task, plain = single("land", head=upside_down), single("land")
    task.load_state_dict(plain.state_dict())
    assert type(task.branch) is UpsideDownBranch and type(plain.branch) is SegmentationBranch
    given = (trainer(tmp_path).predict(each, Everything("land")) for each in (task, plain))
    for one, other in zip(*given, strict=True):
        for mine, usual in zip(one, other, strict=True):
            assert torch.equal(mine["mask"], usual["mask"].flip(0))
            assert not torch.equal(mine["mask"], usual["mask"])


def test_one_head_of_several_may_have_a_branch_of_its_own(tmp_path):
    task = multi(heads={**HEADS, "land": upside_down})
    assert type(task.branches["land"]) is UpsideDownBranch
    assert type(task.branches["sky"]) is SegmentationBranch
    logged = trainer(tmp_path).validate(task, Everything(), verbose=False)[0]
    assert {"val/land/mIoU", "val/sky/mIoU"} <= set(logged)


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("no_such_module.Branch", "No module named 'no_such_module'"),
        ("own_parts.NoSuchBranch", "has no attribute 'NoSuchBranch'"),
        ("segmentations", "Empty module name"),
        ("", "Empty module name"),
    ],
)
def test_a_branch_that_is_not_there_is_an_error_with_the_ways_out(path, cause):
    kind = type("Lost", (FCN,), {"branch": path})
    with pytest.raises(ValueError, match="model.head is a Lost, whose attribute branch is") as caught:
        single("land", head=lambda levels: kind(levels, 3))
    said = str(caught.value)
    assert repr(path) in said and cause in said and "or the class path of a Branch" in said
    assert all(name in said for name in ("classification", "detection", "segmentation", "volumes"))
    with pytest.raises(ValueError, match=r"model\.heads\.land is a Lost"):
        multi(heads={**HEADS, "land": lambda levels: kind(levels, 3)})


def test_a_class_that_is_no_branch_is_an_error():
    kind = type("Lost", (FCN,), {"branch": "own_parts.Rough"})
    with pytest.raises(ValueError, match="model.head is a Lost, whose attribute branch is 'own_parts.Rough'"):
        single("land", head=lambda levels: kind(levels, 3))
