"""Voxels that the tests of all formats write."""

import numpy as np
import pytest


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)
