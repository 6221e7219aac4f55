"""Shared by all tests: few threads, quiet libraries, a tiny dataset."""

import warnings

import pytest
import torch

warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*The number of training batches.*")


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A synthetic COCO-format folder with 8 training and 6 validation images."""
    from trunkline.data.synthetic import write_detection

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_detection(folder, train=8, val=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """Synthetic class folders with 6 training and 3 validation pictures."""
    from trunkline.data.synthetic import write_classification

    folder = tmp_path_factory.mktemp("data") / "class_folders"
    write_classification(folder, train=6, val=3, size=32, seed=1, progress=False)
    return folder
