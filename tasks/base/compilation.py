"""The training step as one compiled function, with one graph per canvas.

Letters in shapes: B images, C channels, S spatial axes of the padded canvas (H, W or D, H, W).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...data.shared.batches import tensors_of
from ...heads.totals import over_processes

logger = logging.getLogger("trunkline")

Compile = bool | Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes that capture CUDA graphs
BACKEND = "inductor"
# Graphs of one function, of which each takes minutes to compile and has memory of its own. torch's limit of 8
# is less than the canvases of one dataset.
MOST_GRAPHS = 64

Losses = dict[str, Tensor]


class TrainingStep:
    """Computes the losses of a batch, by a function that is compiled if the task says so.

    Nothing falls back to the uncompiled function: what cannot be compiled, and more shapes than
    ``MOST_GRAPHS``, end the run. Copies and other processes compile for themselves.

    Args:
        function: takes the task and a batch, and returns named losses.
        mode: ``model.compile``: False to call the function as it is, True for torch's default mode, else one
            of torch's modes.
    """

    def __init__(self, function: Callable[[Any, Any], Losses], mode: Compile) -> None:
        self.mode = mode
        self._function = function
        self._compiled: Callable[[Any, Any], Losses] | None = None
        self._known: set[tuple[Any, ...]] = set()  # shapes for which there is a graph
        self._warned = False
        self._skipped = 0  # graphs that torch ran without CUDA graphs, in the whole process
        self._warned_of_skips = False

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self._function, self.mode)

    def check(self, accumulated: int) -> None:
        """Check before an epoch that it goes with the mode.

        Args:
            accumulated: batches of which gradients are added before an optimiser step.

        Raises:
            ValueError: if they are several and the mode captures CUDA graphs, in whose memory the gradients
                of the batch before would be overwritten.
        """
        if accumulated > 1 and self.mode in CUDA_GRAPHS:
            raise ValueError(
                f"model.compile {self.mode} keeps gradients in the memory of CUDA graphs, which the next "
                f"batch overwrites, so trainer.accumulate_grad_batches cannot be {accumulated}; set "
                "--model.compile true or max-autotune-no-cudagraphs, or a larger --data.batch_size"
            )

    def __call__(self, task: Any, batch: Any, trainer: Any = None) -> Losses:
        """Return the named losses of a batch, scalars.

        Args:
            task: whose step it is.
            batch: of this process.
            trainer: whose processes take the step together: losses are divided by the totals of all of them.

        Raises:
            RuntimeError: if the step cannot be compiled, naming the place and what to do. What the step
                itself raises comes as it is.
        """
        with over_processes(1 if trainer is None else trainer.world_size):
            return self._losses(task, batch)

    def _losses(self, task: Any, batch: Any) -> Losses:
        if self.mode is False:
            return self._function(task, batch)
        batch = batch.with_few_shapes()
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(vars(batch)))
        if shapes not in self._known:
            size, number = " x ".join(map(str, batch.image.shape)), len(self._known) + 1
            logger.info("compiling the training step for images of %s (shape %d)", size, number)
        losses = self._run_compiled(task, batch, shapes in self._known)
        self._known.add(shapes)
        if self.mode in CUDA_GRAPHS:  # the next step overwrites what this one returned
            losses = {name: loss.clone() for name, loss in losses.items()}
        return losses

    def _run_compiled(self, task: Any, batch: Any, known: bool) -> Losses:
        # Imported here: it takes a second, and few runs need it.
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._dynamo.utils import counters

        if self._compiled is None:
            mode = self.mode if isinstance(self.mode, str) else None
            self._compiled = torch.compile(
                self._function, fullgraph=True, dynamic=False, mode=mode, backend=BACKEND
            )
            self._skipped = counters["inductor"]["cudagraph_skips"]
            if self.mode in CUDA_GRAPHS and batch.image.device.type != "cuda":
                logger.warning(
                    "model.compile %s has no CUDA graphs on this %s, only compiled functions, as true has",
                    self.mode,
                    batch.image.device.type,
                )
        if self.mode in CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        graphs = counters["stats"]["unique_graphs"]
        try:
            with config.patch(recompile_limit=MOST_GRAPHS, accumulated_recompile_limit=16 * MOST_GRAPHS):
                losses = self._compiled(task, batch)
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(self._too_many(batch)) from error
        except TorchDynamoException as error:
            with torch.no_grad():
                self._function(task, batch)  # if the step itself is at fault, it says so better
            raise RuntimeError(_explained(error)) from error
        if known and counters["stats"]["unique_graphs"] > graphs and not self._warned:
            self._warned = True
            logger.warning(
                "the training step was compiled again for shapes that it knows, so something else changes "
                "between steps; TORCH_LOGS=recompiles in the environment tells what"
            )
        # What a backward pass adds is seen one step later.
        if counters["inductor"]["cudagraph_skips"] > self._skipped and not self._warned_of_skips:
            self._warned_of_skips = True
            logger.warning(
                "model.compile %s: torch runs part of the training step without CUDA graphs; its own "
                "warning, or TORCH_LOGS=cudagraphs in the environment, tells why",
                self.mode,
            )
        return losses

    def _too_many(self, batch: Any) -> str:
        return (
            f"model.compile: batches have had {len(self._known)} shapes, and this one (images of "
            f"{list(batch.image.shape)}) would be one more than the {MOST_GRAPHS} graphs that are kept; "
            "give images of fewer sizes (for boxes a shorter list of --data.canvases), or set "
            "--model.compile false"
        )


def _explained(error: Exception) -> str:
    """Say where a step could not be compiled, and what to do."""
    text = str(error)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    places = [line.strip() for line in text.partition("from user code:")[2].splitlines() if "File " in line]
    return (
        f"model.compile: the training step cannot be compiled as one graph: {reason}"
        f"{f' ({places[-1]})' if places else ''}. Part of it needs values on the host or Python that "
        "torch.compile does not know: change that part if it is your own, or set --model.compile false; "
        "TRUNKLINE_TRACEBACK=1 in the environment shows the whole message"
    )
