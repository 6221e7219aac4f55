"""Runs with ``deterministic: true``: none of torch's operators refuses, and two runs are the same."""

import pytest
import torch
from memory_tasks import Everything, multi, single, trainer

from trunkline.heads.detection.boxes import device_paths


@pytest.mark.parametrize("name", ["boxes", "land", "scene", ""])
def test_two_deterministic_runs_are_the_same(tmp_path, name):
    states = []
    try:
        for _ in range(2):
            task = multi() if not name else single(name)
            torch.manual_seed(1)
            run = trainer(tmp_path, max_epochs=2, deterministic=True)
            assert torch.are_deterministic_algorithms_enabled()
            with device_paths():
                run.fit(task, Everything(name))
            states.append(task.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
