"""What to lower if a run does not fit into the memory."""

from __future__ import annotations

from typing import Any

import torch

ADVICE = "trunkline: "  # begins the notes of errors that say what to do
_ALLOCATORS = ("can't allocate memory", "out of memory", "not enough memory")  # torch's, of other devices
# Options of data modules by which a step needs less, and what they are.
_LOWER = {
    "batch_size": "data.batch_size",
    "eval_batch_size": "data.eval_batch_size (evaluation)",
    "patch": "data.patch",
    "short_side": "data.short_side",
    "long_side": "data.long_side",
    "canvases": "data.canvases",
    "size": "data.size",
    "train_size": "data.train_size",
    "eval_short_side": "data.eval_short_side (evaluation)",
}
_OTHERS = (
    "--trainer.precision bf16-mixed needs about half of the memory on a GPU, "
    "--model.backbone.checkpointing true less for longer steps, and --trainer.accumulate_grad_batches keeps "
    "the number of images of a step. With such changes the run goes on by --ckpt_path; --resume auto would "
    "begin a new one"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what led to it, says that there is no memory left."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(told, RuntimeError) and any(words in str(told).lower() for words in _ALLOCATORS):
            return True
        told = told.__cause__
    return False


def memory_advice(error: BaseException, trainer: Any) -> str | None:
    """Return what to lower after an error for lack of memory; None after any other.

    Args:
        error: that ended the run.
        trainer: of the run.
    """
    if not is_out_of_memory(error):
        return None
    given = {} if trainer.datamodule is None else dict(trainer.datamodule.hparams)
    where = f"the memory of {trainer.strategy.root_device}"
    if isinstance(error, MemoryError) or "alloc_cpu" in str(error) or "CPUAllocator" in str(error):
        where = "the main memory (RAM)"
    lower = [f"{name} (now {given[key]})" for key, name in _LOWER.items() if given.get(key) not in (None, [])]
    if where.startswith("the main") and given.get("workers"):
        lower.append(f"data.workers (now {given['workers']})")
    options = ", ".join(lower) or "the number or size of the images of a batch"
    return (
        f"out of memory: {where} does not suffice for step {trainer.global_step}; lower {options}. {_OTHERS}"
    )
