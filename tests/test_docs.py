"""The page about trunks says what the code does: its table, its YAML and its Python."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from trunkline.backbones.base import FeatureLevel
from trunkline.backbones.fpn import FPN

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "trunks.md"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "trunk_table.py"
    spec = importlib.util.spec_from_file_location("trunk_table", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # its dataclasses look their module up
        patch.setitem(__import__("sys").modules, "trunk_table", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.slow
def test_the_table_is_up_to_date(script):
    assert script.main(["--check"]) == 0, "run python benchmarks/trunk_table.py"


def test_check_notices_one_number_and_writing_repairs_it(script, tmp_path, monkeypatch, capsys):
    row = script.Row("ResNet-18", "ResNet", {"depth": 18})
    monkeypatch.setattr(script, "groups", lambda: [script.Group("One", [row])])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    words = ["--page", str(page)]
    assert script.main([*words, "--check"]) == 1 and "old" in page.read_text()
    assert "out of date" in capsys.readouterr().out
    assert script.main(words) == 0
    assert script.main([*words, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    cells = "| ResNet-18 | 11.18 | 11.69 | 1.81 | 4, 8, 16, 32 | 64, 128, 256, 512 |"  # 11689512, torchvision
    assert cells in text
    page.write_text(text.replace("11.69", "11.70"))
    assert script.main([*words, "--check"]) == 1
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks <!-- trunks:begin -->"):
        script.main(words)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ResNet18", "ResNet-18"),
        ("ResNet50", "ResNet-50"),
        ("ResNeXt50_32X4D", "ResNeXt-50 32x4d"),
        ("Wide_ResNet50_2", "Wide ResNet-50-2"),
        ("DenseNet121", "DenseNet-121"),
        ("DenseNet161", "DenseNet-161"),
    ],
)
def test_costs_are_those_that_torchvision_publishes(script, name, title):
    published = torchvision.models.get_weight(f"{name}_Weights.IMAGENET1K_V1").meta
    (row,) = [
        row for group in script.groups() for row in group.rows if row.title == title and row.classes == 1000
    ]
    net = script.published(row, script.build(row))
    assert script.count_parameters(net) == published["num_params"]
    assert script.count_multiply_adds(net, row) / 1e9 == pytest.approx(published["_ops"], abs=6e-4)


def test_costs_of_a_small_network_by_hand(script):
    """ResNet-8 for 32x32: per stage of c channels and s x s cells, c * 9 * inputs * s * s multiply-adds."""
    row = script.Row("", "CifarResNet", {"depth": 8}, (32, 32), 10)
    net = script.published(row, script.build(row))
    layers = [(3, 16, 32), (16, 16, 32), (16, 16, 32), (16, 32, 16), (32, 32, 16), (32, 64, 8), (64, 64, 8)]
    assert script.count_multiply_adds(net, row) == sum(9 * a * b * s * s for a, b, s in layers) + 640
    norms = sum(2 * b for _, b, _ in layers)
    assert script.count_parameters(net) == sum(9 * a * b for a, b, _ in layers) + norms + 650


def test_every_row_of_the_table_is_selected_by_its_yaml(script):
    rows = [row for group in script.groups() for row in group.rows]
    page = PAGE.read_text(encoding="utf-8")
    for row in rows:
        line = script.yaml_line(row)
        assert yaml.safe_load(line) == {"class_path": row.kind, "init_args": row.arguments}
        assert f"`{line}`" in page


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_trunks_in_yaml_can_be_built(script):
    found = [yaml.safe_load(block)["backbone"] for block in blocks("yaml")]
    assert len(found) >= 6
    for trunk in found:
        arguments = {**trunk["init_args"], "weights": None}
        with torch.device("meta"):
            net = script.KINDS[trunk["class_path"]](**arguments).eval()
            size = (64,) * len(net.levels[0].stride)
            maps = net(torch.empty(1, arguments.get("in_channels", 3), *size))
        assert [x.shape[1] for x in maps] == [level.channels for level in net.levels]


def test_the_thick_slices_reach_equal_spacing(script):
    """4 mm apart with pixels of 1 mm: the first level's cells are cubes."""
    trunk, encoder = [yaml.safe_load(block)["backbone"] for block in blocks("yaml") if "strides" in block]
    with torch.device("meta"):
        levels = script.KINDS[trunk["class_path"]](**trunk["init_args"]).levels
        inner = script.KINDS[encoder["class_path"]](**encoder["init_args"]).levels
    assert [4 * levels[0].stride[0], *levels[0].stride[1:]] == [4, 4, 4]
    assert [level.stride for level in inner[:3]] == [(1, 1, 1), (2, 2, 1), (4, 4, 2)]


def test_the_trunk_in_python_keeps_the_contract():
    (block,) = blocks("python")
    names = {}
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    trunk = names["TwoLevels"](width=8)
    assert trunk.levels == (FeatureLevel(8, (4, 4)), FeatureLevel(16, (8, 8)))
    for level, x in zip(trunk.levels, trunk(torch.zeros(1, 3, 64, 32)), strict=True):
        assert tuple(x.shape) == (1, level.channels, 64 // level.stride[0], 32 // level.stride[1])
    assert [level.stride for level in FPN(trunk, channels=4).levels] == [(4, 4), (8, 8), (16, 16)]
    trunk.freeze("fine")
    assert not any(parameter.requires_grad for parameter in trunk.fine.parameters())
