"""The states of all random generators of a run, as plain values and tensors, for each process."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...evaluation.distributed import gather_objects


def random_states() -> list[dict[str, Any]]:
    """Return the states of torch (CPU and every CUDA device in use), NumPy and Python, one item per process.

    All processes of a run must call it.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    mine = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(name), torch.from_numpy(np.array(keys, np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }
    return gather_objects(mine)


def restore_random_states(states: Sequence[Mapping[str, Any]], rank: int) -> None:
    """Bring the generators of this process into the state that it had.

    A process that the run did not have before (more devices than then) gets states of its own, which follow
    from those of the first process and its rank.

    Args:
        states: of :func:`random_states`.
        rank: of this process.
    """
    mine = states[rank] if rank < len(states) else states[0]
    torch.set_rng_state(mine["torch"].cpu())
    for device, state in zip(range(_devices()), mine["cuda"], strict=False):
        torch.cuda.set_rng_state(state.cpu(), device)
    name, keys, position, has_gauss, cached = mine["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = mine["python"]
    random.setstate((version, tuple(words), gauss))
    if rank >= len(states):
        seed = int(torch.randint(2**31, (rank + 1,))[-1])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


def _devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
