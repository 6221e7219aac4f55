"""A config is data until its classes are built: no tags, no bombs of aliases, no endless nesting."""

import pytest

from trunkline.tasks.settings.sources import SettingError, read_sources


def refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_sources(["fit", "--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system ['x']", "name:os.system ''", "module:os ''", "object:a {}"]
)
def test_tags_of_python_are_refused(tmp_path, tag):
    refused(
        tmp_path, f"model:\n  class_path: !!python/{tag}\n", "python/.* is not known; remove it|class_path"
    )
    refused(tmp_path, f"data: [!!python/{tag}]\n", "python/.* is not known; remove it")


def test_aliases_do_not_multiply(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    refused(
        tmp_path, "\n".join(lines), r"repeat parts until there are \d[\d,]{20,} values; more than 100,000"
    )
    refused(tmp_path, "data: &a {root: *a}\n", "line 1: an alias repeats what it stands in")


def test_deep_nesting_is_refused(tmp_path):
    refused(tmp_path, "data: " + "[" * 20_000 + "]" * 20_000, "nested too deep")


def test_usual_aliases_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {lr: &lr 0.1}\ntrainer: {x: *lr, y: [*lr, *lr]}\n")
    assert len(read_sources(["fit", "--config", str(tmp_path / "a.yaml")])) == 1
