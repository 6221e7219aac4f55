"""The import rules of the house: cli -> planning -> tasks -> {heads, data, evaluation} -> backbones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "backbones": set(),
    "heads": {"backbones"},
    "data": set(),
    "evaluation": set(),
    "tasks": {"heads", "data", "evaluation", "backbones"},
    "planning": {"tasks", "heads", "data", "evaluation", "backbones"},
}
EVERYWHERE = {"constants", "compat"}  # import nothing of the package at the top
MODEL_LIBRARIES = {"torch", "torchvision", "__future__"} | set(sys.stdlib_module_names)
# What reading a file of that kind, or wrapping such a trunk, needs: imported where it is used.
INSIDE_FUNCTIONS = {"backbones": {"numpy", "safetensors", "timm"}, "heads": set()}


def imports_of(path: Path, nested: bool = True) -> list[tuple[str, tuple[str, ...]]]:
    """Return (absolute dotted module, imported names) for each import in a file of the package.

    With ``nested`` false only those outside functions.
    """
    package = path.relative_to(ROOT).parent.parts
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if node in inside and not nested:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ("trunkline", *base) if node.level else ()
            found.append((".".join([*prefix, *([node.module] if node.module else [])]), names))
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folder_imports_only_what_lies_below_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for module, _ in imports_of(path):
            parts = module.split(".")
            if parts[0] == "trunkline" and len(parts) > 1 and parts[1] != folder:
                assert parts[1] in ALLOWED[folder] | EVERYWHERE, f"{path.relative_to(ROOT)} imports {module}"


def test_heads_know_of_backbones_only_the_feature_level_and_what_makes_layers():
    for path in sorted((ROOT / "heads").rglob("*.py")):
        for module, names in imports_of(path):
            if module.startswith("trunkline.backbones") and module != "trunkline.backbones.layers":
                assert set(names) == {"FeatureLevel"}, f"{path.relative_to(ROOT)} imports {names}"


@pytest.mark.parametrize("folder", sorted(INSIDE_FUNCTIONS))
def test_model_code_needs_only_torch_and_torchvision(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for nested, more in ((False, set()), (True, INSIDE_FUNCTIONS[folder])):
            for module, _ in imports_of(path, nested):
                allowed = MODEL_LIBRARIES | {"trunkline"} | more
                assert module.split(".")[0] in allowed, f"{path.relative_to(ROOT)}: {module}"


def test_one_file_knows_albumentations_and_one_decodes_images():
    for path in sorted(ROOT.glob("[a-z]*/**/*.py")):
        if path.relative_to(ROOT).parts[0] not in ALLOWED:
            continue
        libraries = {module.split(".")[0] for module, _ in imports_of(path)}
        name = path.relative_to(ROOT).as_posix()
        assert "albumentations" not in libraries or name == "data/shared/augment.py", name


def test_help_does_not_import_torch():
    code = "import sys; from trunkline.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trunkline fit" in done.stdout
