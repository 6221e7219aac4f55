"""Pictures with masks: a dataset to read, and one that a test may damage."""

import pytest

from trunkline.data.synthetic.pictures import write_segmentation


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_segmentation(tmp_path_factory.mktemp("made") / "shapes", 13, 9, (40, 52), progress=False)


@pytest.fixture
def own(tmp_path):
    """A dataset that a test may damage."""
    return write_segmentation(tmp_path / "own", 4, 3, (32, 40), progress=False)
