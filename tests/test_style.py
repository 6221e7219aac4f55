"""Rules on how the code is written: sizes, contracts instead of guesses, one meaning for each name."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("backbones", "heads", "data", "evaluation", "tasks", "planning")
MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 60

# What may be looked for in an object, with the reason: it comes from outside, no contract of ours holds it.
LOOKED_FOR = {
    "backbones/optimised.py": {
        "hasattr(norm, part)": "timm's norms have the dropout and the activation inside",
        "hasattr(value, '__dict__')": "anything that a hook returns",
    },
    "backbones/timm_backbone.py": {
        "getattr(self.model, 'output_fmt', 'NCHW')": "timm's transformers",
        "hasattr(self.model, 'set_grad_checkpointing')": "not all of timm's networks have it",
        "getattr(self.model, 'model', None)": "timm's wrapper for feature maps",
    },
    "data/scans/augment.py": {
        "hasattr(library, f'{name}d')": "MONAI's transforms, by the name in the config",
    },
    "data/shared/augment/transforms.py": {
        "hasattr(transform, 'fill_mask')": "albumentations' transforms",
        "getattr(transform, 'mask_interpolation', cv2.INTER_NEAREST)": "albumentations' transforms",
        "getattr(transform, 'area_for_downscale', None)": "albumentations' transforms",
        "getattr(A, name, None)": "albumentations' transforms, by the name in the config",
    },
    "data/shared/loading.py": {
        "hasattr(os, 'sched_getaffinity')": "Linux alone has it",
    },
    "tasks/base/optimization.py": {
        "hasattr(scheduler, 'monitor')": "Lightning's ReduceLROnPlateau",
    },
    "tasks/settings/class_paths.py": {
        "hasattr(found, name)": "a module of the user",
    },
    "tasks/multitask/task.py": {
        "hasattr(nn.ModuleDict(), name)": "words that PyTorch uses",
    },
}
# What people derive their own classes from: it may be asked for.
CONTRACTS = {
    *("Backbone", "Head", "DetectionHead", "RoIStage", "SegmentationHead", "ClassificationHead"),
    *("SegmentationLoss", "TrunklineData", "SplitData", "Batch", "Evaluator", "Task", "Network", "Branch"),
    "WithConstants",
}
FAMILIES = CONTRACTS | {"Module", "LightningModule", "LightningDataModule"}

# Words with another meaning, or of another field, and what to say instead.
WORDS = {
    r"(?<![A-Za-z])figures(?![A-Za-z])|Figures": "metrics",
    r"\bdata sets?\b": "dataset",
    r"\bhosts? waits?\b|\bhost wait\b|\bwaits? for the (host|device)\b": "synchronises the device",
    r"\bis not waited for\b": "is not synchronised",
    r"\bbatch\.ids\b": "batch.image_ids",
}
IDENTIFIERS = {"Found": "Prediction", "on_host": "runs_on_cpu", "_some": "a name of its own"}
# What results and versions from before say is read there. (And the words stand here.)
OF_BEFORE = {"tests/test_style.py", "benchmarks/report.py", "benchmarks/common.py", "benchmarks/ten_steps.py"}


@cache
def tracked(*endings):
    """Return the files of the repository with one of the endings."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name.endswith(endings)]
    assert names
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def package_files():
    return [path for path in tracked(".py") if name_of(path).split("/")[0] in PACKAGE]


def test_files_and_functions_are_short():
    long = []
    for path in tracked(".py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            long.append(f"{name_of(path)} has {lines} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{name_of(path)}: {node.name} has {lines} lines")
    assert long == []


def lookups(tree):
    """Yield the source of each call that looks for an attribute that may not be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            fixed = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            guess = node.func.id == "hasattr" or (
                node.func.id == "getattr" and (fixed or len(node.args) == 3)
            )
            if guess:
                yield ast.unparse(node)


def test_nothing_is_found_out_by_looking_for_attributes():
    found = {}
    for path in package_files():
        calls = set(lookups(tree_of(path)))
        if calls:
            found[name_of(path)] = calls
    assert found == {path: set(calls) for path, calls in LOOKED_FOR.items()}


def classes_of_families():
    """Return the names of all classes of the package that derive, directly or not, from the families."""
    bases = {}
    for path in package_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                parts = [part for base in node.bases for part in ast.walk(base)]  # also of Base[Parameter]
                bases.setdefault(node.name, set()).update(
                    getattr(part, "attr", getattr(part, "id", "")) for part in parts
                )
    known = set(FAMILIES)
    while more := {name for name, above in bases.items() if above & known} - known:
        known |= more
    return known - {"Module", "LightningModule", "LightningDataModule"}


def asked_classes(tree):
    """Yield the name of each class in an ``isinstance`` or ``issubclass``."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("isinstance", "issubclass"):
            for part in ast.walk(node.args[1]):
                if isinstance(part, ast.Name | ast.Attribute):
                    yield part.id if isinstance(part, ast.Name) else part.attr


def test_no_part_asks_whether_another_is_of_a_class_of_ours():
    concrete = classes_of_families() - CONTRACTS
    assert {"FasterRCNN", "ResNet", "CocoDetection", "Detection", "CocoEvaluator", "MultiHead"} <= concrete
    for path in package_files():
        if name_of(path).split("/")[0] != "backbones":
            asked = set(asked_classes(tree_of(path))) & concrete
            assert not asked, f"{name_of(path)} asks for {asked}: put what it needs into the contract"


def named_values(tree):
    """Yield (name, value) of assignments, defaults and keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), node.value
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), node.value
        elif isinstance(node, ast.keyword):
            yield node.arg or "", node.value
        elif isinstance(node, ast.arguments):
            positional = [argument.arg for argument in (*node.posonlyargs, *node.args)]
            yield from zip(positional[len(positional) - len(node.defaults) :], node.defaults, strict=True)
            yield from zip([argument.arg for argument in node.kwonlyargs], node.kw_defaults, strict=True)


def test_the_index_to_ignore_is_defined_once():
    assert "IGNORE_INDEX = 255" in (ROOT / "constants.py").read_text(encoding="utf-8")
    for path in package_files():
        for name, value in named_values(tree_of(path)):
            again = isinstance(value, ast.Constant) and value.value == 255 and "ignore" in name.lower()
            assert not again, f"{name_of(path)}: {name} = 255; import IGNORE_INDEX"


def spoken():
    """Return the files in which people read: code, pages and configs, without the history."""
    files = tracked(".py", ".md", ".yaml", ".toml")
    left_out = ("CHANGELOG.md", "benchmarks/results/", "tests/checkpoints/")
    return [
        path for path in files if not name_of(path).startswith(left_out) and name_of(path) not in OF_BEFORE
    ]


@pytest.mark.parametrize("word", WORDS)
def test_one_word_is_used_for_one_thing(word):
    for path in spoken():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not re.search(word, line), f"{name_of(path)}:{number}: {line.strip()} (say {WORDS[word]})"


def test_names_of_many_meanings_are_gone():
    for path in tracked(".py"):
        for node in ast.walk(tree_of(path)):
            names = {getattr(node, field, None) for field in ("id", "attr", "name", "arg")}
            for name in names & set(IDENTIFIERS):
                if name_of(path) not in OF_BEFORE:
                    pytest.fail(f"{name_of(path)}:{node.lineno}: {name} (say {IDENTIFIERS[name]})")


# -- the rules themselves


def test_the_rules_see_what_they_forbid():
    tree = ast.parse(
        "hasattr(head, 'rpn')\ngetattr(data, 'classes')\ngetattr(data, name, None)\ngetattr(self, name)\n"
        "isinstance(head, FasterRCNN)\nisinstance(x, (int, heads.UNet))\n"
        "IGNORE = 255\ndef f(a, ignore_index=255): g(ignore=255)\n"
    )
    assert set(lookups(tree)) == {
        "hasattr(head, 'rpn')",
        "getattr(data, 'classes')",
        "getattr(data, name, None)",
    }
    assert set(asked_classes(tree)) == {"FasterRCNN", "int", "heads", "UNet"}
    values = [name for name, value in named_values(tree) if getattr(value, "value", None) == 255]
    assert sorted(values) == ["IGNORE", "ignore", "ignore_index"]
    for said in (
        "the figures of a run",
        "CocoFigures",
        "a data set",
        "the host waits",
        "is not waited for",
        "batch.ids",
    ):
        assert any(re.search(word, said) for word in WORDS)
