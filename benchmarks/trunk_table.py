"""Writes the table of trunks in docs/trunks.md: what each costs, and the line of YAML that selects it.

    python benchmarks/trunk_table.py            rewrites the table
    python benchmarks/trunk_table.py --check    exits with 1 if the committed table is out of date

Parameters and multiply-adds are counted without memory, on torch's meta device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trunkline.backbones.base import Backbone
from trunkline.backbones.cifar import CifarResNet
from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.residual_encoder import ResidualEncoder
from trunkline.backbones.resnet import ResNet
from trunkline.backbones.timm_backbone import TimmBackbone
from trunkline.evaluation.files import write_atomically

PAGE = Path(__file__).parent.parent / "docs" / "trunks.md"
BEGIN, END = "<!-- trunks:begin -->", "<!-- trunks:end -->"
KINDS = {kind.__name__: kind for kind in (ResNet, CifarResNet, DenseNet, ResidualEncoder, TimmBackbone)}


@dataclass(frozen=True)
class Row:
    """One trunk of the table.

    Attributes:
        title: what people call it.
        kind: name of its class.
        arguments: what its YAML says.
        size: of the image or volume that multiply-adds are counted for.
        classes: of the published classifier on top.
        channels: of the image.
    """

    title: str
    kind: str
    arguments: dict[str, Any]
    size: tuple[int, ...] = (224, 224)
    classes: int = 1000
    channels: int = 3


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: list[Row] = field(default_factory=list)


def _resnets() -> list[Row]:
    return [
        Row(f"ResNet-{depth}", "ResNet", {"depth": depth}) for depth in (10, 18, 26, 34, 50, 101, 152, 200)
    ]


def _relatives() -> list[Row]:
    def row(title: str, depth: int, **options: Any) -> Row:
        return Row(title, "ResNet", {"depth": depth, **options})

    return [
        row("ResNeXt-50 32x4d", 50, groups=32, width_per_group=4),
        row("ResNeXt-101 32x8d", 101, groups=32, width_per_group=8),
        row("ResNeXt-101 64x4d", 101, groups=64, width_per_group=4),
        row("Wide ResNet-50-2", 50, width_per_group=128),
        row("Wide ResNet-101-2", 101, width_per_group=128),
        row("ResNet-50-D", 50, stem="deep", shortcut="average"),
        row("SE-ResNet-50", 50, squeeze_excitation=True),
        row("ResNet-50 v2", 50, pre_activation=True),
        row("Plain-18", 18, shortcut="none"),
        row("Plain-34", 34, shortcut="none"),
    ]


def _small() -> list[Row]:
    rows = []
    for depth in (20, 32, 44, 56, 110, 1202):
        rows.append(Row(f"ResNet-{depth}", "CifarResNet", {"depth": depth}, (32, 32), 10))
    for depth in (20, 32, 44, 56):
        plain = {"depth": depth, "shortcut": "none"}
        rows.append(Row(f"Plain-{depth}", "CifarResNet", plain, (32, 32), 10))
    return rows


def _volumes() -> list[Row]:
    size, uneven = (64, 128, 128), [[1, 2, 2], [1, 2, 2], 2, 2, 2]
    scan = {"ndim": 3, "in_channels": 1}
    rows = []
    for title, kind, depth in (("ResNet-18", "ResNet", 18), ("ResNet-50", "ResNet", 50)):
        rows.append(Row(f"{title}, 3-D", kind, {"depth": depth, **scan}, size, channels=1))
    arguments = {"depth": 50, **scan, "strides": uneven}
    rows.append(Row("ResNet-50, 3-D, thick slices", "ResNet", arguments, size, channels=1))
    rows.append(Row("DenseNet-121, 3-D", "DenseNet", {"depth": 121, **scan}, size, channels=1))
    rows.append(Row("Residual encoder, nnU-Net's M", "ResidualEncoder", {}, size, channels=1))
    small = {"channels": [32, 64, 128, 256], "blocks": [1, 1, 1, 1]}
    rows.append(Row("Residual encoder, small", "ResidualEncoder", small, size, channels=1))
    return rows


def groups() -> list[Group]:
    """Return all rows of the table."""
    timm = (
        "convnext_tiny",
        "efficientnet_b0",
        "mobilenetv3_large_100",
        "regnety_032",
        "swin_tiny_patch4_window7_224",
    )
    return [
        Group("Residual networks", _resnets()),
        Group("Their relatives: options of `ResNet`", _relatives()),
        Group("Densely connected networks", [_densenet(depth) for depth in (121, 169, 201, 161)]),
        Group("For small images (32x32)", _small()),
        Group("For volumes (1x64x128x128)", _volumes()),
        Group("A few of timm's", [Row(name, "TimmBackbone", {"name": name}) for name in timm]),
    ]


def _densenet(depth: int) -> Row:
    return Row(f"DenseNet-{depth}", "DenseNet", {"depth": depth})


def build(row: Row) -> Backbone:
    """Build a row's trunk without memory."""
    with torch.device("meta"):
        return KINDS[row.kind](**row.arguments).eval()


class Classifier(nn.Module):
    """A trunk with the usual classifier: linear, on the mean of the last level."""

    def __init__(self, trunk: Backbone, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fc = nn.Linear(trunk.levels[-1].channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.trunk(image)[-1].flatten(2).mean(2))


def published(row: Row, trunk: Backbone) -> nn.Module:
    """Build the published network with its classifier; timm's have further layers behind the trunk."""
    with torch.device("meta"):
        if row.kind == "TimmBackbone":
            return timm.create_model(row.arguments["name"]).eval()
        return Classifier(trunk, row.classes).eval()


def count_parameters(net: nn.Module) -> int:
    """Return the number of weights that are learned."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_multiply_adds(net: nn.Module, row: Row) -> int:
    """Return the multiplications with an addition, of one image.

    Counted are convolutions and matrix products, as published numbers count them; norms, activations and
    pooling are left out.
    """
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        net(torch.empty(1, row.channels, *row.size))
    return counter.get_total_flops() // 2


def yaml_line(row: Row) -> str:
    """Return what a config says behind ``backbone:``, in YAML's flow style."""
    arguments = ", ".join(f"{key}: {_yaml(value)}" for key, value in row.arguments.items())
    return f"{{class_path: {row.kind}, init_args: {{{arguments}}}}}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(row: Row) -> str:
    trunk = build(row)
    whole = published(row, trunk)
    giga = count_multiply_adds(whole, row) / 1e9
    cells = [
        row.title,
        f"{count_parameters(trunk) / 1e6:.2f}",
        f"{count_parameters(whole) / 1e6:.2f}",
        f"{giga:.3f}" if giga < 0.1 else f"{giga:.2f}",
        ", ".join(_stride(level.stride) for level in trunk.levels),
        ", ".join(str(level.channels) for level in trunk.levels),
        f"`{yaml_line(row)}`",
    ]
    return "| " + " | ".join(cells) + " |"


def _stride(stride: tuple[int, ...]) -> str:
    return str(stride[0]) if len(set(stride)) == 1 else "x".join(map(str, stride))


def table() -> str:
    """Return the table as Markdown, one for each group."""
    head = [
        "trunk",
        "parameters, millions",
        "with classifier",
        "GFLOPs",
        "strides",
        "channels",
        "`backbone:`",
    ]
    rule = ["---", *["---:"] * 3, *["---"] * 3]
    parts = []
    for group in groups():
        lines = [f"**{group.title}**", "", "| " + " | ".join(head) + " |", "| " + " | ".join(rule) + " |"]
        parts.append("\n".join([*lines, *map(_line, group.rows)]))
    return "\n\n".join(parts)


def with_table(page: str, text: str) -> str:
    """Return a page with the text between its two markers.

    Raises:
        ValueError: if a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}, between which the table belongs")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(words: list[str] | None = None) -> int:
    """Rewrite or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the table of trunks in docs/trunks.md.")
    parser.add_argument("--check", action="store_true", help="only compare; exit with 1 if out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="the Markdown page, docs/trunks.md")
    arguments = parser.parse_args(words)
    page = arguments.page.read_text(encoding="utf-8")
    written = with_table(page, table())
    if arguments.check:
        if page != written:
            print(f"{arguments.page} is out of date; run python benchmarks/trunk_table.py")
        return int(page != written)
    write_atomically(arguments.page, written)
    print(f"wrote {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
