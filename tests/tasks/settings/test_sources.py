"""Configs are read strictly. What is said about odd ones is in tests/odd_files/configs.py."""

import json

import pytest
from odd_files.configs import CONFIG, config, read

from trunkline.tasks.settings.sources import SettingError, read_sources, with_names_as_text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", '{"data": {"root": "a", "root": "b"}}'], "--config: root is there twice; remove one"),
        (["--data.augment=[{Flip: {p: 1, p: 0}}]"], "--data.augment: p is there twice"),
        (["--trainer", "{max_epochs: 1, max_epochs: 2}"], "--trainer: max_epochs is there twice"),
        (["--config", "{model: null}"], "--config: nothing is below model:"),
        (["--config", "{1: 2}"], "--config: '1' is no section"),
        (["--config", "{data: [}"], r"--config, line 1, column 9|--config"),
    ],
)
def test_inline_values_are_read_as_strictly_as_files(words, said):
    with pytest.raises(SettingError, match=said):
        read_sources(["fit", *words])


@pytest.mark.parametrize(("first", "second"), [("1", "01"), ("1", "0x1"), ("a", "'a'"), ("true", "yes")])
def test_keys_that_python_takes_for_one_are_there_twice(first, second):
    with pytest.raises(SettingError, match="is there twice"):
        read_sources(["fit", f"--data.classes={{{first}: x, {second}: y}}"])


def test_the_same_key_in_several_places_and_after_a_merge_is_none_too_many(tmp_path):
    text = "data: &d {a: 1, b: {a: 1}}\nmodel: {<<: *d, a: 2}\ntrainer: [{a: 1}, {a: 2}]\n"
    (tmp_path / "c.yaml").write_text(text)
    [source] = read_sources(["fit", "--config", str(tmp_path / "c.yaml")])
    assert source.find(["data", "b", "a"]).value == "1" and source.find(["data", "c"]) is None


def test_a_config_of_one_section_is_read_as_strictly(tmp_path):
    (tmp_path / "trainer.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n")
    with pytest.raises(
        SettingError, match="trainer.yaml, line 2: max_epochs is there twice, first in line 1"
    ):
        read_sources(["fit", f"--trainer={tmp_path / 'trainer.yaml'}"])


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(SettingError, match=f"{path} cannot be read: "):
            read_sources(["fit", "--config", str(path)])


def test_an_anchor_that_contains_itself_does_not_hang(tmp_path):
    (tmp_path / "c.yaml").write_text("data: &d\n  a: *d\n")
    with pytest.raises(SettingError, match="an alias repeats what it stands in"):
        read_sources(["fit", "--config", str(tmp_path / "c.yaml")])


def test_names_of_files_that_yaml_takes_for_something_else_stay_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a: b", "[x]", "plain"):
        (tmp_path / name).mkdir()
    words = ["predict", "--data.predict", "a: b", "--x", "--data.root=[x]", "--data.other", "c: d", "--y=1"]
    inline = [json.dumps({"data": {"predict": "a: b"}}), json.dumps({"data": {"root": "[x]"}})]
    expected = [f"--config={inline[0]}", "--x", f"--config={inline[1]}", "--data.other", "c: d", "--y=1"]
    assert with_names_as_text(words) == ["predict", *expected]
    assert with_names_as_text(["fit", "--data.root", "plain"]) == ["fit", "--data.root", "plain"]


@pytest.mark.parametrize(
    "name", ["1e3", "1e400", "0123", "no", "2024-01-01", "1.10", "12:30", "nan", ".inf", "~x", "a #b"]
)
def test_a_name_on_the_command_line_arrives_as_it_is(tmp_path, name):
    """A folder 1e3 became 1000.0: PyYAML writes it without quotes, and jsonargparse reads a number."""
    config()(tmp_path)
    assert read(tmp_path, "--data.predict", name)["data.init_args.predict"] == name
    assert read(tmp_path, f"--data.root={name}")["data.init_args.root"] == name


def test_a_list_of_names_is_not_turned_into_numbers(tmp_path):
    config()(tmp_path)
    with pytest.raises(SettingError, match=r"--data.predict: expected text.*got 1\.1; put it in quotes"):
        read(tmp_path, "--data.predict=[1.10, no]")
    given = read(tmp_path, "--data.predict=['1.10', 'no', '1e3']")["data.init_args.predict"]
    assert given == ["1.10", "no", "1e3"]


def test_the_place_of_a_setting_is_the_last_config_that_has_it(tmp_path):
    config()(tmp_path)
    (tmp_path / "more.yaml").write_text("\n\ntrainer: {max_epochs: many}\n")
    with pytest.raises(
        SettingError, match=r"more.yaml, line 3: trainer.max_epochs: expected a whole number or null"
    ):
        read(tmp_path, "--config", str(tmp_path / "more.yaml"))
    assert "max_epochs: 1" in CONFIG
