"""Segmentation of medical scans: a label for every voxel, on the grid of the file.

Letters in shapes: B patches, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from ...data.scans.batches import EvaluationCase
from ...data.scans.prepare.restore import Restorer
from ...data.shared.common import number_of
from ...evaluation.base import Prediction
from ...heads.segmentation.base import SegmentationHead
from ..base.task import Task
from ..run.checkpoints import read_checkpoint
from .branch import VolumeBranch
from .inference import VolumeInference, best_axis, keep_largest, mirrored, sliced, sweep
from .kernels import faster_kernels


class VolumeSegmentation(Task):
    """Trains a segmenter on patches of scans, and applies it to whole scans by a sliding window.

    Scans are read, prepared and put back onto their own grids by ``ScanSegmentation``. The network may be
    3D, or 2D: then it goes through volumes slice by slice. Without an ``optimizer`` it
    trains by SGD with rate 0.01, Nesterov momentum 0.99 and weight decay 3e-5 (nnU-Net, Isensee et al.
    2021).

    Whole scans have no loss: validation gives the Dice of every class, and ``validate`` and ``test`` surface
    distances in mm too.

    Args:
        inference: sliding window, mirroring and post-processing of validation, test and prediction.
        surface_tolerance: of the surface Dice, in mm.
        ensemble: further checkpoints, such as those of the other folds, whose probabilities are averaged
            with this model's in validate, test and predict.
        **task: what every ``Task`` takes; the head is a segmentation head, such as ``UNet``.
    """

    kind = "volumes"
    branch_names = {"segmentation": "volumes"}
    predicts_on_copy = False  # its networks have no batch norms to fold
    branch: VolumeBranch
    head: SegmentationHead

    def __init__(
        self,
        inference: VolumeInference = VolumeInference(),
        surface_tolerance: float = 1.0,
        ensemble: list[str] | None = None,
        **task: Any,
    ) -> None:
        if not surface_tolerance > 0:
            raise ValueError(f"model.surface_tolerance is a distance in mm above 0, got {surface_tolerance}")
        self.evaluator_options = {"volumes": {"tolerance": surface_tolerance}}
        self.inference = inference
        super().__init__(**task)
        self._check_inference()
        self.ensemble = [str(path) for path in ensemble or ()]
        self._members: list[VolumeSegmentation] = []  # no sub-modules: they are no part of what is trained

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD with rate 0.01, Nesterov momentum 0.99 and weight decay 3e-5."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)

    # -- one scan

    def probabilities(self, windows: Tensor) -> Tensor:
        """Return ``[b, K, *W]`` float32 of normalised windows ``[b, C, *W]``, averaged over the ensemble."""
        total: Tensor | None = None
        with faster_kernels(windows) as ordered:
            for task in (self, *self._members):
                raw = task.run(ordered.to(task.dtype))  # autocast and all else take float32
                each = task.head.probabilities(raw.logits.float())
                total = each if total is None else total + each
        mean = cast(Tensor, total)
        return mean / (1 + len(self._members)) if self._members else mean

    def segment(self, image: np.ndarray, placement: Any) -> np.ndarray:
        """Label a whole scan, in bounded memory.

        Args:
            image: ``[C, *S]`` float32, prepared; may be a memory map.
            placement: where it lies in the file's grid.

        Returns:
            ``[*S0]`` uint8 labels on the file's own grid.

        Raises:
            ValueError: if there is no window, or network, scan and window have other numbers of axes.
        """
        window, axis = self._window(image.ndim - 1)
        run = mirrored(self.probabilities, self.inference.mirror)
        if axis is None:
            axis = best_axis(image.shape[1:], window)
        else:
            run = sliced(run, axis)
        restorer = Restorer(placement, axis)
        for planes in sweep(run, image, window, self.inference, self.device, axis):
            for block, scores in restorer.blocks(planes):
                restorer.write(block, self.head.decide(scores[None])[0])
                del scores  # not to be held together with those of the next block
        del planes  # they hold the buffer of all scores
        return keep_largest(restorer.labels(), self._kept())

    def _window(self, axes: int) -> tuple[list[int], int | None]:
        """Return the window, and the axis to slice along if a 2D network gets a volume."""
        window = list(self.inference.window or self.branch.patch)
        ndim = len(self.backbone.levels[0].stride)
        if len(window) != ndim:
            raise ValueError(
                f"inference.window is {window or None}; give {ndim} numbers, one per axis of the network"
            )
        if axes == ndim:
            return window, None
        if axes < ndim:
            raise ValueError(
                "the scan is a 2D image, the network is for volumes; set --model.backbone.ndim 2"
            )
        axis = 2 if self.branch.slice_axis is None else self.branch.slice_axis
        window.insert(axis, 1)
        return window, axis

    def _check_inference(self) -> None:
        """Raise a ValueError if options of the inference have other axes than the network."""
        ndim, options = len(self.backbone.levels[0].stride), self.inference
        if options.window is not None and len(options.window) != ndim:
            raise ValueError(
                f"inference.window is {options.window}; give {ndim} numbers, one per axis of the network"
            )
        if any(axis >= ndim for axis in options.mirror):
            raise ValueError(f"inference.mirror is {list(options.mirror)}; the network has {ndim} axes")

    def require_fitting_trunk(self, channels: int, axes: int) -> None:
        if not self._predicting:  # one scan that does not fit is no reason to leave out the others
            super().require_fitting_trunk(channels, axes)

    def _misfit(self, batch: EvaluationCase) -> str | None:
        """Say why a scan is no input of the network; None if it is."""
        files, ndim = ", ".join(batch.case.images), len(self.backbone.levels[0].stride)
        assert batch.image is not None  # else there is an error
        if batch.image.ndim - 1 < ndim:
            return f"{files}: is a 2D image, but the network is for volumes"
        channels, wanted = len(batch.image), self.trunk.image_channels
        if wanted not in (channels, None):
            return (
                f"{files}: has {number_of(channels, 'channel')}, but the network takes {wanted}; channels in "
                "files of their own are one scan in a folder that holds no other, or as CASE_0000, CASE_0001"
            )
        return None

    def _require_room(self, option: str, size: Sequence[int]) -> None:
        deepest = self.backbone.levels[-1].stride
        normed = any(isinstance(part, nn.modules.instancenorm._InstanceNorm) for part in self.trunk.modules())
        if size and normed and all(length <= step for length, step in zip(size, deepest, strict=False)):
            raise ValueError(
                f"{option} is {list(size)}, of which the trunk's deepest level, with strides "
                f"{list(deepest)}, keeps a single voxel, too few for instance norms; enlarge it, or take "
                "smaller strides or fewer stages"
            )

    def _kept(self) -> list[int]:
        names = self.branch.class_names
        unknown = [name for name in self.inference.keep_largest if name not in names[1:]]
        if unknown:
            raise ValueError(f"inference.keep_largest names {unknown}; the classes are {names[1:]}")
        return [names.index(name) for name in self.inference.keep_largest]

    # -- ensembles

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.ensemble:
            raise ValueError("model.ensemble is for validate, test and predict; train each fold without it")
        if stage != "fit":
            data = self.trainer.datamodule
            ours = {} if data is None else data.volume_settings().preparation
            self._members = [self._member(path, ours) for path in self.ensemble]

    def _member(self, path: str, ours: Mapping[str, Any]) -> VolumeSegmentation:
        """Load a checkpoint that was trained on scans prepared in the same way.

        Raises:
            ValueError: if it was not, or there is no such file.
        """
        if not Path(path).is_file():
            raise ValueError(f"model.ensemble: {path}: no such file; give checkpoints that fit has written")
        stored = read_checkpoint(path, "model.ensemble:")
        theirs = stored.get("datamodule_hyper_parameters", {}).get("preparation")
        if theirs and ours and _plain(theirs) != _plain(ours):
            raise ValueError(
                f"model.ensemble: {path} was trained on scans prepared in another way ({_plain(theirs)} "
                f"against {_plain(ours)}); models that are averaged need the same data.preparation"
            )
        task = type(self).load_from_checkpoint(path, map_location="cpu", ensemble=None)
        return task.eval().requires_grad_(False)

    def _begin(self) -> None:
        """Look before the work at what only a checkpoint that has been loaded tells.

        Raises:
            ValueError: if a member of the ensemble has other classes or axes, no class has a name in
                ``keep_largest``, or of patch or window a single voxel reaches an instance norm.
        """
        self._kept()
        self._require_room("data.patch", self.branch.patch)
        self._require_room("inference.window", self.inference.window or [])
        mine = self._kind()
        for path, task in zip(self.ensemble, self._members, strict=False):
            if task._kind() != mine:
                raise ValueError(
                    f"model.ensemble: {path} segments {task._kind()}, this model {mine}; models that are "
                    "averaged need the same classes, regions and axes"
                )
            task.to(self.device)

    def _kind(self) -> str:
        """Return what the scores mean, as text."""
        names, regions, axis = self.branch.class_names, self.head.regions, self.branch.slice_axis
        text = f"{', '.join(names)} in {len(self.backbone.levels[0].stride)} dimensions"
        text += "" if axis is None else f" along axis {axis}"
        return text if regions is None else f"{text} as regions {[list(labels) for labels in regions]}"

    def on_fit_start(self) -> None:
        self._begin()

    def on_validation_start(self) -> None:
        self._begin()

    def on_test_start(self) -> None:
        self._begin()

    def on_predict_start(self) -> None:
        self._begin()

    # -- evaluation and prediction

    def infer(
        self, batch: EvaluationCase, use: Callable[[Any], None] | None = None
    ) -> tuple[None, dict[str, list[Prediction]]]:
        """Return the label volume of a scan, or ``error`` if it cannot be read or does not fit the network.

        Whole scans have no raw outputs that fit the memory, so no losses.
        """
        error = batch.error or (self._misfit(batch) if batch.truth is None else None)
        prediction: Prediction = {"image_id": int(batch.image_ids[0])}
        if error is not None:
            return None, {"": [{**prediction, "error": error}]}
        assert batch.image is not None
        mask = self.segment(batch.image, batch.placement)
        return None, {"": [{**prediction, "size": mask.shape, "mask": mask}]}


def _plain(value: Any) -> Any:
    """Turn dataclasses and namespaces into dictionaries, also inside lists, so that they can be compared."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
