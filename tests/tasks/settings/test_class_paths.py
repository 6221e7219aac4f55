"""A wrong class path is named, with where Python looked and what went wrong there."""

import json
import sys

import pytest

from trunkline.tasks.settings.class_paths import check_class_paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules that is neither the working directory nor on the path of Python."""
    place, modules = tmp_path / "work", tmp_path / "modules"
    place.mkdir()
    modules.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (modules / "sound_parts.py").write_text("class Head:\n    pass\n")
    (modules / "broken_parts.py").write_text("raise RuntimeError('no licence')\n")
    (modules / "needy_parts.py").write_text("import not_installed_anywhere\n")
    yield modules
    for name in ("sound_parts", "broken_parts", "needy_parts"):
        sys.modules.pop(name, None)


def config(folder, content):
    path = folder / "config.yaml"
    path.write_text(content)
    return str(path)


NESTED = """
model:
  class_path: Detection
  init_args:
    evaluators:
      - class_path: CocoEvaluator
      - class_path: {path}
"""


def test_classes_are_found_beside_the_config_and_in_the_working_directory(folder, tmp_path):
    (tmp_path / "work" / "local_parts.py").write_text("class Trunk:\n    pass\n")
    words = ["fit", "--config", config(folder, NESTED.format(path="sound_parts.Head"))]
    check_class_paths([*words, "--model.backbone", "local_parts.Trunk", "--data.root=images.v2"])
    assert sys.path[-2:] == [str(tmp_path / "work"), str(folder)]  # last, so that they hide nothing
    check_class_paths(words)
    assert sys.path.count(str(folder)) == 1
    assert {"sound_parts", "local_parts"} <= set(sys.modules)
    sys.modules.pop("local_parts")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing_parts.Head", r"the module missing_parts fails \(ModuleNotFoundError: No module named"),
        ("sound_parts.Heads", r"the module sound_parts \(.*sound_parts\.py\) has no class Heads"),
        ("broken_parts.Head", r"fails \(RuntimeError: no licence\)"),
        ("needy_parts.Head", r"importing the module needy_parts fails .*not_installed_anywhere"),
    ],
)
def test_a_wrong_path_is_named_with_its_place_and_cause(folder, path, words):
    given = config(folder, NESTED.format(path=path))
    with pytest.raises(ValueError, match=words) as caught:
        check_class_paths(["fit", "--config", given])
    start = f"model.init_args.evaluators[1].class_path in {given}: "
    assert str(caught.value).startswith(start)
    sound = config(folder, "trainer: {max_epochs: 1}\n")
    for option in ("--model", "--data", "--model.head"):
        for spelling in ([option, path], [f"{option}={path}"]):
            with pytest.raises(ValueError, match=words) as caught:
                check_class_paths(["fit", "--config", sound, *spelling])
            assert str(caught.value).startswith(f"{option}: ")


def test_where_python_looked_is_part_of_the_message(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "work"), *sys.path])  # as with python -m trunkline
    with pytest.raises(ValueError, match="then in") as caught:
        check_class_paths(["fit", f"--config={config(folder, NESTED.format(path='missing_parts.Head'))}"])
    assert str(tmp_path / "work") in str(caught.value) and str(folder) in str(caught.value)


def test_an_inline_config_is_looked_through_too(folder):
    inline = json.dumps({"data": {"class_path": "missing_parts.Data"}})
    with pytest.raises(ValueError, match=r"data\.class_path in --config: missing_parts\.Data"):
        check_class_paths(["fit", f"--config={inline}"])


def test_what_is_no_class_path_is_left_alone(folder):
    words = ["fit", "--data.root=folder.Of.Data", "--model.weights=file.PTH", "--data.predict", "photo.JPG"]
    check_class_paths([*words, "--config", config(folder, "model: {class_path: Detection}\n")])
    check_class_paths(["fit", "--config", config(folder, "model: [unclosed\n")])  # the parser will say so
