"""Names that begin with ~: the home folder where one is meant, else the name itself."""

from pathlib import Path

import pytest

from trunkline.data.detection import CocoDetection
from trunkline.data.shared.home import expanded


def test_the_home_folder_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("~/a/b") == Path("/home/someone/a/b")
    assert expanded(Path("~")) == Path("/home/someone")
    assert expanded("a/~b") == Path("a/~b")


@pytest.mark.parametrize("name", ["~no_such_user_1", "~no_such_user_1/a"])
def test_a_name_that_is_no_users_stays(name):
    with pytest.raises(RuntimeError, match="home directory"):
        Path(name).expanduser()
    assert expanded(name) == Path(name)


def test_a_folder_of_such_a_name_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match="~no_such_user_1"):
        CocoDetection(predict="~no_such_user_1").setup("predict")
