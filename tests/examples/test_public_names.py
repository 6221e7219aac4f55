"""Examples use public names alone, are complete, and are not part of the package."""

import ast
import importlib
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
PUBLIC = {
    "trunkline.backbones",
    "trunkline.data.classification",
    "trunkline.data.detection",
    "trunkline.data.multitask",
    "trunkline.data.segmentation",
    "trunkline.data.shared",
    "trunkline.evaluation",
    "trunkline.heads",
    "trunkline.heads.detection",
    "trunkline.heads.segmentation",
    "trunkline.tasks",
}
LIBRARIES = {"torch", "numpy", "scipy", "albumentations", "pytorch_lightning"} | sys.stdlib_module_names


def imports_of(path):
    """Yield every imported module with its names, and the attributes that the file uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            modules.append((node.module, [alias.name for alias in node.names]))
    return modules, {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def problems_of(path):
    modules, attributes = imports_of(path)
    found = []
    for module, names in modules:
        if module.split(".")[0] != "trunkline":
            found += [] if module.split(".")[0] in LIBRARIES else [f"imports {module}"]
        elif module not in PUBLIC or not names:
            found.append(f"imports {module}, which is no public package")
        else:
            public = importlib.import_module(module).__all__
            found += [f"{name} is not public in {module}" for name in names if name not in public]
    private = {name for name in attributes if name.startswith("_") and not name.startswith("__")}
    return found + [f"uses {name}" for name in sorted(private)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_uses_public_names_alone(path):
    assert problems_of(path) == []


def test_what_is_not_public_is_noticed(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "import trunkline.heads.base\n"
        "import timm\n"
        "from trunkline.heads.detection.boxes import decode\n"
        "from trunkline.heads.detection import decode, runs_on_cpu\n"
        "decode._private\n"
    )
    assert problems_of(path) == [
        "imports trunkline.heads.base, which is no public package",
        "imports timm",
        "imports trunkline.heads.detection.boxes, which is no public package",
        "runs_on_cpu is not public in trunkline.heads.detection",
        "uses _private",
    ]


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_public_names_are_there_and_listed_once(module):
    found = importlib.import_module(module)
    assert all(getattr(found, name) is not None for name in found.__all__)
    assert len(set(found.__all__)) == len(found.__all__)


def test_public_packages_are_those_of_the_guide():
    guide = (ROOT / "docs" / "extend" / "README.md").read_text(encoding="utf-8")
    assert {name for name in PUBLIC if f"`{name}`" in guide} == PUBLIC


def test_every_example_is_a_file_and_a_config_that_names_its_classes():
    assert [path.stem for path in FILES] == sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
    for path in FILES:
        text = path.with_suffix(".yaml").read_text(encoding="utf-8")
        assert f"{path.stem}." in text and {"model", "data", "trainer"} <= set(yaml.safe_load(text))


def test_retinanet_has_about_a_hundred_lines():
    assert len((EXAMPLES / "retinanet.py").read_text(encoding="utf-8").splitlines()) <= 130


def test_examples_are_not_in_the_wheel():
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)["tool"]["setuptools"]
    assert not [name for name in settings["packages"] if "example" in name]
    assert not (EXAMPLES / "__init__.py").exists()
