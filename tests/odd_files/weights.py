"""Odd files of weights, and trunks that are other than they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trunkline.backbones import ResNet
from trunkline.backbones.weights import load_weights
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import Classifier
from trunkline.tasks.classification import Classification

from .case import OddFile

TOPIC = "Weights and trunks"
State = dict[str, Tensor]


def network(**options: object) -> ResNet:
    torch.manual_seed(0)
    return ResNet(10, width=2, **options)  # type: ignore[arg-type]


def writer(change: Callable[[State], object], **options: object) -> Callable[[Path], None]:
    """Return what writes the weights of a small network after a change."""

    def write(folder: Path) -> None:
        state = network(**options).state_dict()
        torch.save(change(state) or state, folder / "weights.pth")

    return write


def read(folder: Path) -> None:
    load_weights(network(), folder / "weights.pth")


def value(name: str, number: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name].view(-1)[0] = number

    return change


def without(*names: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name in names:
            del state[name]

    return change


def other_kernel(state: State) -> None:
    state["conv1.weight"] = torch.zeros(2, 3, 3, 3)


def integers(state: State) -> None:
    state["conv1.weight"] = (100 * state["conv1.weight"]).to(torch.int8)


def halves(state: State) -> State:
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}


def read_halves(folder: Path) -> None:
    net, expected = network(), network().conv1.weight.half().float()
    load_weights(net, folder / "weights.pth")
    assert net.conv1.weight.dtype == torch.float32 and torch.equal(net.conv1.weight, expected)


def read_grey(folder: Path) -> None:
    net = network(in_channels=1)
    load_weights(net, folder / "weights.pth")
    assert torch.allclose(net.conv1.weight, network().conv1.weight.sum(1, keepdim=True))


def averaged(state: State) -> dict[str, State]:
    return {"state_dict": {name: torch.zeros_like(x) for name, x in state.items()}, "state_dict_ema": state}


def read_averaged(folder: Path) -> None:
    net = network()
    load_weights(net, folder / "weights.pth")
    assert torch.equal(net.conv1.weight, network().conv1.weight)


def wrapped(state: State) -> State:
    return {f"module.model.{name}": x for name, x in state.items()}


def task(classes: int) -> Classification:
    torch.manual_seed(0)
    return Classification(backbone=network(), head=lambda levels: Classifier(levels, classes))


def write_head(folder: Path) -> None:
    torch.save(task(5).state_dict(), folder / "weights.pth")


def read_head(folder: Path) -> None:
    load_weights(task(3), folder / "weights.pth")


class Three(TrunklineData):
    """Data of three classes."""

    label_kinds = ("classification",)

    def label_classes(self, kind: str, head: str = "") -> list[LabelClass]:
        return [LabelClass(number, name) for number, name in enumerate(("cat", "cow", "dog"))]


def write_classes(folder: Path) -> None:
    for name in ("cat", "cow", "dog"):
        (folder / "train" / name).mkdir(parents=True)


def read_classes(folder: Path) -> None:
    task(5).branch.prepare(Three(), "fit")


def strides(folder: Path) -> None:
    trunk = network()
    trunk.levels = tuple(type(level)(level.channels, (4, 4)) for level in trunk.levels)
    Classification(backbone=trunk, head=lambda levels: Classifier(levels, 3)).eval().run(
        torch.zeros(1, 3, 96, 96)
    )


def single(folder: Path) -> None:
    task(3).train().run(torch.zeros(1, 3, 32, 32))


def frozen(folder: Path) -> None:
    network(frozen_stages=2)


def nothing(folder: Path) -> None:
    (folder / "README").write_text("There is no file: it is the network that is odd.\n", encoding="utf-8")


UNTRAINED = "Most of the file fits, but a layer below has nothing to load, and would give those above noise."

ODD_FILES = [
    OddFile(
        "weights_for_four_channels",
        TOPIC,
        "Weights whose first convolution reads four channels, for a trunk of three",
        writer(lambda state: None, in_channels=4),
        read,
        UNTRAINED
        + " From three channels, or one, other numbers are made; what a fourth channel meant is not known.",
        "Build the trunk with the file's number of channels, or write a file with the kernel that you want.",
    ),
    OddFile(
        "weights_for_colour",
        TOPIC,
        "Weights for three channels, for a trunk of one",
        writer(lambda state: None),
        read_grey,
        "The kernels of the channels are added up, as timm does: a grey image gives what it gave in colour.",
    ),
    OddFile(
        "weights_of_another_first_kernel",
        TOPIC,
        "Weights whose first kernel has another size",
        writer(other_kernel),
        read,
        UNTRAINED,
        "Give weights of this very network.",
    ),
    OddFile(
        "weights_without_statistics",
        TOPIC,
        "Weights without the running statistics of the first norm",
        writer(without("bn1.running_mean", "bn1.running_var")),
        read,
        UNTRAINED,
        "Save the whole state dict, buffers too.",
    ),
    OddFile(
        "weights_that_are_no_numbers",
        TOPIC,
        "Weights of a training that had failed: NaN in the statistics of a norm",
        writer(value("layer2.0.bn1.running_var", float("nan"))),
        read,
        "Some values are NaN or infinite.",
        "Take a checkpoint from before.",
    ),
    OddFile(
        "weights_in_integers",
        TOPIC,
        "Quantised weights",
        writer(integers),
        read,
        "Integers without their scale are no weights.",
        "Save the weights before they are quantised.",
    ),
    OddFile(
        "weights_in_halves",
        TOPIC,
        "Weights in float16",
        writer(halves),
        read_halves,
        "They become float32 with the same values.",
    ),
    OddFile(
        "weights_raw_and_averaged",
        TOPIC,
        "A checkpoint with raw and with averaged weights",
        writer(averaged),
        read_averaged,
        "The averaged ones are loaded.",
    ),
    OddFile(
        "weights_under_a_prefix",
        TOPIC,
        "Weights saved from inside wrappers",
        writer(wrapped),
        lambda folder: read(folder),
        "Prefixes such as module. and model. are taken away.",
    ),
    OddFile(
        "weights_of_another_head",
        TOPIC,
        "Weights of a whole network with another number of classes",
        write_head,
        read_head,
        "The trunk is loaded; the head starts anew.",
        "Train it, or give data and num_classes of the file.",
    ),
    OddFile(
        "fewer_classes_than_the_head",
        TOPIC,
        "Data of three classes for a head of five",
        write_classes,
        read_classes,
        "A head with more or fewer classes than the data have learns or evaluates classes that do not exist.",
        "Leave num_classes at auto.",
    ),
    OddFile(
        "trunk_of_other_strides",
        TOPIC,
        "A trunk whose maps are not those that it declares",
        nothing,
        strides,
        "Boxes and masks would be somewhere else. It is compared once for each size of images.",
        "Correct levels, or choose a network that does not resize its input.",
    ),
    OddFile(
        "norm_of_a_single_value",
        TOPIC,
        "One small image in a batch for batch norm",
        nothing,
        single,
        "A norm cannot compute statistics from one value.",
        "Larger batches or images, or a norm without statistics over the batch.",
    ),
    OddFile(
        "frozen_without_weights",
        TOPIC,
        "Frozen stages without weights",
        nothing,
        frozen,
        "These layers would stay random for ever.",
        "Set weights, or freeze nothing.",
    ),
]
