"""What the base of data modules does where a subclass lacks a method, and how splits stand in for others."""

import logging

import pytest

from trunkline.data.shared.module import DataContractError, SplitData


class Own(SplitData):
    """Splits that are lists of their own names; ``absent`` are not there."""

    def __init__(self, absent=()):
        super().__init__()
        self.absent, self.reads = absent, []
        self.hparams["predict"] = "folder"

    def has_split(self, split):
        return split not in self.absent

    def read_split(self, split):
        self.reads.append(split)
        return [split]

    def read_prediction(self, given):
        return given

    def make_loader(self, split, index):
        return split, index


METHODS = [
    ("has_split", "fit"),
    ("read_split", "fit"),
    ("make_loader", "fit"),
    ("read_prediction", "predict"),
]


@pytest.mark.parametrize(("method", "stage"), METHODS)
def test_a_missing_method_is_an_error_that_names_it(method, stage):
    """Not silence: without has_split a module would train without validation."""
    methods = {
        "has_split": lambda self, split: True,
        "read_split": lambda self, split: [split],
        "read_prediction": lambda self, given: given,
        "make_loader": lambda self, split, index: index,
    }
    data = type("Other", (SplitData,), {name: made for name, made in methods.items() if name != method})()
    data.hparams["predict"] = "folder"
    with pytest.raises(DataContractError, match=rf"Other has no {method}\(.*implement it"):
        data.setup(stage)
        data.train_dataloader()


def test_a_module_without_a_batch_size_is_told_so():
    with pytest.raises(DataContractError, match="Own has no batch_size"):
        Own().sampler_options("train")
    data = Own()
    data.batch_size = 3  # eval_batch_size and seed are the user's to have
    assert data.sampler_options("val")["batch_size"] == 3


def test_each_split_is_read_once():
    data = Own()
    data.setup("fit")
    data.setup("validate")
    assert data.reads == ["train", "val"]
    assert data.train_dataloader() == ("train", ["train"]) and data.val_dataloader() == ("val", ["val"])


def test_the_validation_data_take_the_place_of_test_data_that_are_not_there_and_it_is_said(caplog):
    data = Own(absent=("test",))
    data.setup("test")
    assert data.test_dataloader() == ("test", ["val"]) and data.reads == ["val"]
    assert "there are no test data: the val data take their place" in caplog.text
    caplog.clear()
    Own().setup("test")
    assert not caplog.records


def test_training_goes_without_validation_and_says_so(caplog):
    data = Own(absent=("val",))
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "training without validation" in caplog.text
    assert data.val_dataloader() == [] and data.reads == ["train"]


def test_a_loader_before_setup_is_an_error():
    with pytest.raises(RuntimeError, match="the train data have not been read: call setup"):
        Own().train_dataloader()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on_bad_image": "Skip"}, "data.on_bad_image is 'Skip'; it must be error or skip"),
        ({"on_bad_image": None}, "data.on_bad_image is None; it must be error or skip"),
        ({"on_changed_data": "yes"}, "data.on_changed_data is 'yes'; it must be error or accept"),
        ({"max_bad_images": -1}, "data.max_bad_images is -1; it must be at least 0"),
    ],
)
def test_values_that_mean_nothing_are_refused_in_python_too(given, message):
    with pytest.raises(ValueError, match=message):
        SplitData(**given)
