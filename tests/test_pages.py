"""The pages say what is there: links, files, configs, commands, options, YAML and Python."""

import ast
import dataclasses
import importlib
import inspect
import re
import typing
from functools import cache
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml

from trunkline.cli import SUBCOMMANDS, _plan_parser, shipped_configs
from trunkline.tasks import command
from trunkline.tasks.run.averaging import WeightEMA

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXTERNAL = ("http://", "https://", "mailto:")
ROOMS = (
    "backbones",
    "heads",
    "data",
    "evaluation",
    "tasks",
    "planning",
    "benchmarks",
    "tests",
    "configs",
    "docs",
)
# Of the user, and of what a page proposes to write.
OWN = ("my_", "mymodule", "mypackage")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
# The code of docs/extend is that of the examples, which tests/examples compares and trains.
pages_with_code = pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name != "extend"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(EXTERNAL):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@every_page
def test_files_of_the_project_exist(page):
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", prose(page))
    named += re.findall(r"python (benchmarks/[\w.]+)", text_of(page))
    # Folders of the user's data are called images/train, annotations/... and the like: no rooms.
    for name in named:
        assert (ROOT / name).exists(), f"{name}: no such file"


@every_page
def test_configs_are_shipped(page):
    kinds = {name.partition("/")[0] for name in shipped_configs()}
    named = re.findall(rf"`((?:{'|'.join(kinds)})/\w+)`", prose(page))
    named += re.findall(r"--config ([a-z]\w*/\w+)(?=\s)", text_of(page))
    for name in named:
        assert name in shipped_configs(), f"{name}: no such config"


@every_page
def test_commands_exist(page):
    lines = "\n".join(blocks(page, "bash")) + "\n".join(re.findall(r"`([^`\n]+)`", prose(page)))
    for word in re.findall(r"^trunkline +([a-z]\w*)", lines, re.MULTILINE):
        assert word in (*SUBCOMMANDS, "configs", "sample", "plan"), f"trunkline {word}"
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for word in re.findall(r"^make +([a-z]+)", lines, re.MULTILINE):
        assert word in targets, f"make {word}"
    options = {name for action in _plan_parser()._actions for name in action.option_strings}
    for line in re.findall(r"^trunkline plan .*", lines, re.MULTILINE):
        assert set(re.findall(r"--[a-z_]+", line)) <= options, line


# -- options


@cache
def parameters(kind: type) -> dict[str, typing.Any]:
    """Return the arguments that a class takes, with their types; also those that it hands to its base."""
    found: dict[str, typing.Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        signature, hints = inspect.signature(base.__init__), typing.get_type_hints(base.__init__)
        found = {name: hints.get(name) for name in signature.parameters} | found
        if not any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
            break
    return found


def shipped(base: type) -> list[type]:
    return [each for each in vars(command).values() if inspect.isclass(each) and issubclass(each, base)]


TRUNKS = shipped(importlib.import_module("trunkline.backbones.base").Backbone)
HEADS = shipped(importlib.import_module("trunkline.heads.base").Head)
PARTS = {"backbone": TRUNKS, "neck": TRUNKS, "head": HEADS}
WHOLES = {"data": shipped(pl.LightningDataModule), "model": shipped(command.Task), "trainer": [pl.Trainer]}


def accepts(kinds: list[type], names: list[str]) -> bool:
    """Whether one of the classes takes the option of these names, which lead from part to part."""
    first, *rest = names
    if first == "help":
        return True
    if first == "heads" and len(rest) > 1:  # by names of the user's choice
        return accepts(HEADS, rest[1:])
    for kind in kinds:
        if first not in parameters(kind):
            continue
        inside = PARTS.get(first) or [
            each
            for each in (parameters(kind)[first], *typing.get_args(parameters(kind)[first]))
            if dataclasses.is_dataclass(each)
        ]
        # Arguments of optimisers and the like are others' own.
        if not rest or not inside or accepts(inside, rest):
            return True
    return False


@every_page
def test_options_are_arguments_of_shipped_classes(page):
    named = re.findall(r"--((?:data|model|trainer|output)\.[a-z_0-9.]*[a-z_0-9])", text_of(page))
    named += re.findall(r"`((?:data|model|trainer)\.[a-z_0-9.]*[a-z_0-9])`", prose(page))
    for option in named:
        whole, *names = option.split(".")
        if whole == "output":
            known = names[0] in {field.name for field in dataclasses.fields(command.Output)}
        else:
            known = accepts(WHOLES[whole], names)
        assert known, f"--{option}: no such option"


def test_options_that_do_not_exist_are_noticed():
    assert accepts(WHOLES["model"], ["head", "roi", "box_loss"])
    assert accepts(WHOLES["model"], ["heads", "stuff", "num_classes"])
    assert not accepts(WHOLES["model"], ["head", "roi", "box_losses"])
    assert not accepts(WHOLES["model"], ["backbone", "depths"])
    assert not accepts(WHOLES["data"], ["missing_masks"])
    assert not accepts(WHOLES["trainer"], ["epochs"])


# -- code


def class_of(path: str) -> type | None:
    """Return the class that a ``class_path`` of a page names; None if it is the reader's own."""
    if path.startswith(OWN):
        return None
    module, _, name = path.rpartition(".")
    known = vars(command) | vars(command.segmentation) | {"WeightEMA": WeightEMA}
    return getattr(importlib.import_module(module), name) if module else known[name]


def check_classes(content: typing.Any) -> None:
    if isinstance(content, dict):
        if "class_path" in content and (kind := class_of(content["class_path"])) is not None:
            names = set(parameters(kind))
            assert "kwargs" in names or set(content.get("init_args", {})) <= names, content
        for value in content.values():
            check_classes(value)
    elif isinstance(content, list):
        for value in content:
            check_classes(value)


@pages_with_code
def test_yaml_names_classes_and_their_arguments(page):
    for block in blocks(page, "yaml"):
        check_classes(yaml.safe_load(block))


@pages_with_code
def test_python_compiles_and_imports_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(OWN):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
