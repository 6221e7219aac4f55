"""The import rules of the house: cli -> planning -> tasks -> {heads, data, evaluation} -> backbones.

Rules on how the code is written are in test_style.py.
"""

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
# The same for the rooms of a folder: what each may import of the others.
ROOMS = {
    "data": {
        "shared": set(),
        "detection": {"shared"},
        "segmentation": {"shared"},
        "classification": {"shared"},
        "multitask": {"shared", "detection", "segmentation"},
        "scans": {"shared"},
        "synthetic": {"shared"},
    },
    "tasks": {
        "run": set(),
        "base": {"run"},
        "settings": {"base", "run"},
        "detection": {"base"},
        "segmentation": {"base"},
        "classification": {"base"},
        "multitask": {"base"},
        "volumes": {"base", "run", "segmentation"},  # labels of voxels are labels of pixels, and more
    },
    "evaluation": {
        "pictures": set(),
        "detection": {"pictures"},
        "segmentation": {"pictures"},
        "classification": {"pictures"},
        "volumes": {"pictures"},
    },
    "heads": {"detection": set(), "segmentation": set()},
    "backbones": {"weights": set()},
}
EVERYWHERE = {"constants", "compat"}  # import nothing of the package at the top
MODEL_LIBRARIES = {"torch", "torchvision", "__future__"} | set(sys.stdlib_module_names)
# What reading a file of that kind, or wrapping such a trunk, needs: imported where it is used.
INSIDE_FUNCTIONS = {"backbones": {"numpy", "safetensors", "timm"}, "heads": set()}
# Files of kernels for GPUs, by the end of their names; others import them inside functions.
KERNELS = "_triton.py"


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


def targets_of(path: Path) -> set[str]:
    """Return every module of the package that a file imports, dotted, without the name of the package.

    A name that is imported from a folder counts as a module if there is one of its name.
    """
    targets = set()
    for module, names in imports_of(path):
        if module.split(".")[0] != "trunkline":
            continue
        place = module.split(".")[1:]
        modules = [name for name in names if is_module(ROOT.joinpath(*place, name))]
        targets |= {".".join([*place, name]) for name in modules}
        if len(modules) < len(names) or not names:
            targets.add(".".join(place))
    return targets


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folder_imports_only_what_lies_below_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for module, _ in imports_of(path):
            parts = module.split(".")
            if parts[0] == "trunkline" and len(parts) > 1 and parts[1] != folder:
                assert parts[1] in ALLOWED[folder] | EVERYWHERE, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_every_room_imports_only_what_lies_below_it(folder):
    rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert rooms == set(ROOMS[folder]), "a room without a rule, or a rule without a room"
    for room, allowed in ROOMS[folder].items():
        for path in sorted((ROOT / folder / room).rglob("*.py")):
            for target in targets_of(path):
                place = target.split(".")
                if place[0] == folder and len(place) > 1 and place[1] in rooms - {room}:
                    assert place[1] in allowed, f"{path.relative_to(ROOT)} imports {target}"


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_what_a_folder_shares_imports_none_of_its_rooms(folder):
    """The files beside the rooms are what these build on; lists of exports and the command apart."""
    reached = {
        "evaluation": {"pictures"},  # evaluators draw
        "backbones": {"weights"},  # every trunk can load some
    }.get(folder, set())
    for path in sorted((ROOT / folder).glob("*.py")):
        for target in targets_of(path) if path.name not in ("__init__.py", "command.py") else ():
            place = target.split(".")
            inside = place[0] == folder and len(place) > 1
            assert not inside or place[1] not in set(ROOMS[folder]) - reached, f"{path} imports {target}"


def test_the_constants_import_nothing():
    assert imports_of(ROOT / "constants.py") == []


def test_heads_know_of_backbones_only_the_feature_level_and_what_makes_layers():
    for path in sorted((ROOT / "heads").rglob("*.py")):
        for module, names in imports_of(path):
            makers = ("trunkline.backbones.layers", "trunkline.backbones.constants")
            if module.startswith("trunkline.backbones") and module not in makers:
                assert set(names) == {"FeatureLevel"}, f"{path.relative_to(ROOT)} imports {names}"


@pytest.mark.parametrize("folder", sorted(INSIDE_FUNCTIONS))
def test_model_code_needs_only_torch_and_torchvision(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for nested, more in ((False, set()), (True, INSIDE_FUNCTIONS[folder])):
            for module, _ in imports_of(path, nested):
                allowed = MODEL_LIBRARIES | {"trunkline"} | more
                allowed |= {"triton"} if path.name.endswith(KERNELS) else set()
                assert module.split(".")[0] in allowed, f"{path.relative_to(ROOT)}: {module}"


def test_kernels_are_imported_where_triton_is_there():
    files = sorted((ROOT / "heads").rglob("*.py"))
    kernels = {path.stem for path in files if path.name.endswith(KERNELS)}
    assert kernels
    for path in files:
        outside = imports_of(path, nested=False)
        assert not any(kernels & {module.split(".")[-1], *names} for module, names in outside), path


def test_one_file_knows_albumentations_and_one_decodes_images():
    for path in sorted(ROOT.glob("[a-z]*/**/*.py")):
        if path.relative_to(ROOT).parts[0] not in ALLOWED:
            continue
        libraries = {module.split(".")[0] for module, _ in imports_of(path)}
        name = path.relative_to(ROOT).as_posix()
        assert "albumentations" not in libraries or name == "data/shared/augment/transforms.py", name


def test_help_does_not_import_torch():
    code = "import sys; from trunkline.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trunkline fit" in done.stdout


def test_every_folder_of_the_package_has_its_tests():
    for folder in ALLOWED:
        for inside in sorted({path.parent for path in (ROOT / folder).rglob("*.py")}):
            name = inside.relative_to(ROOT)
            assert list((ROOT / "tests" / name).rglob("test_*.py")), f"tests/{name} has no tests"


def test_every_folder_of_tests_is_one_of_the_package():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.parent.relative_to(ROOT / "tests")
        if name.parts[:1] in (("gpu",), ("hostile",)):  # run all of them
            continue
        assert (ROOT / name).is_dir(), f"tests/{name} mirrors nothing"
