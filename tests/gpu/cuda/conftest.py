"""What the tests of real devices share."""

import os

import pytest
import torch


@pytest.fixture
def device():
    """The GPU; the CPU where TRUNKLINE_GPU_TESTS_ON asks for it, to show that the tests themselves work."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
    elif os.environ.get("TRUNKLINE_GPU_TESTS_ON") == "cpu":
        yield torch.device("cpu")
    else:
        pytest.skip("there is no GPU here")


@pytest.fixture
def exact():
    """Convolutions and products in float32, without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
