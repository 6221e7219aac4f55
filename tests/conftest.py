"""Shared by all tests: few threads, quiet libraries, a tiny dataset."""

import ctypes
import gc
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mask_files import fill_boxes

warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*The number of training batches.*")


class Memory:
    """Lets the collector run when much has piled up: a trainer and its model refer to each other.

    They are few objects, so by itself it runs rarely, and a process of the tests would grow to several GiB.
    """

    step = 100  # MB

    def __init__(self):
        self.after = 0

    def collect(self):
        if self.used() > self.after + self.step:
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
            self.after = self.used()

    @staticmethod
    def used():
        """The resident memory of this process in MB; 0 where the system does not tell."""
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) * 4096 // 10**6 if statm.exists() else 0


MEMORY = Memory()


@pytest.fixture(autouse=True)
def give_memory_back():
    yield
    MEMORY.collect()


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A synthetic COCO-format folder with 8 training and 6 validation images."""
    from trunkline.data.synthetic.pictures import write_detection

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_detection(folder, train=8, val=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """Synthetic class folders with 6 training and 3 validation pictures."""
    from trunkline.data.synthetic.pictures import write_classification

    folder = tmp_path_factory.mktemp("data") / "class_folders"
    write_classification(folder, train=6, val=3, size=32, seed=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def masked_shapes(tmp_path_factory):
    """Synthetic pictures with masks: 6 for training, 4 for validation."""
    from trunkline.data.synthetic.pictures import write_segmentation

    folder = tmp_path_factory.mktemp("data") / "masked_shapes"
    return write_segmentation(folder, train=6, val=4, seed=1, progress=False)


@pytest.fixture
def shapes_with_masks(shapes, tmp_path):
    """The dataset ``shapes`` with masks beside it, in which every box is filled with its category id."""
    root = tmp_path / "shapes_with_masks"
    shutil.copytree(shapes, root)
    fill_boxes(root)
    return root
