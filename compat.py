"""What keeps names and checkpoints of version 0.1 working for one more version; delete this file with it."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# Where the names of a module are now, by its old path. Those that are folders now export theirs themselves.
MOVED = {
    "backbones.weight_files": "backbones.weights.files",
    "data.augment": "data.shared.augment.transforms",
    "data.batches": "data.shared.batches data.detection.batches data.classification.batches "
    "data.segmentation.batches",
    "data.coco": "data.detection.module",
    "data.io": "data.shared.io",
    "data.locate": "data.shared.locate",
    "data.multi": "data.multitask data.multitask.dataset",
    "data.scans.files": "data.scans.formats.files",
    "data.scans.grid": "data.scans.formats.scan",
    "data.scans.intensity": "data.scans.prepare.intensity",
    "data.scans.restore": "data.scans.prepare.restore",
    "data.scans.scan": "data.scans.formats.scan",
    "data.synthetic_scans": "data.synthetic.scans",
    "evaluation.coco": "evaluation.detection.evaluator",
    "evaluation.masks": "evaluation.pictures.masks",
    "evaluation.volume_result": "evaluation.volumes.result",
    "tasks.branched": "tasks.base.task",
    "tasks.branches": "tasks.base.branch tasks.base.writer",
    "tasks.inference": "tasks.segmentation.inference",
    "tasks.mixing": "tasks.classification.mixing",
    "tasks.multi": "tasks.multitask.task",
    "tasks.optimization": "tasks.base.optimization",
    "tasks.planning": "planning.plan",
    "tasks.volume_inference": "tasks.volumes.inference",
}


class _Alias(types.ModuleType):
    """A module under its old path; its names are those of the new ones."""

    def __getattr__(self, name: str) -> Any:
        modules = [sys.modules[new] for new in self.__dict__.get("__moved_to__", ())]
        for module in modules if not name.startswith("__") else ():
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        package, _, name = module.__name__.partition(".")
        moved = [f"{package}.{new}" for new in MOVED[name].split()]
        warnings.warn(
            f"{module.__name__} is {' and '.join(moved)} since version 0.2; the old path goes with 0.3",
            FutureWarning,
            3,
        )
        for new in moved:
            importlib.import_module(new)
        module.__dict__["__moved_to__"] = moved


def install() -> None:
    """Let imports find modules under their old paths."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Bring what version 0.1 stored in a checkpoint into the form of this one, in place.

    It kept the classes of a single head at the top, under a name for each task.
    """
    if "branches" not in checkpoint:
        names = ("class_weights", "regions", "patch", "slice_axis")
        checkpoint["branches"] = {"": {name: checkpoint[name] for name in names if name in checkpoint}}
        checkpoint["branches"][""] |= {
            name: checkpoint[name] for name in ("categories", "classes", "class_names") if name in checkpoint
        }
    for state in checkpoint["branches"].values():
        state["classes"] = state.pop("categories", None) or state.get("classes") or []
        names = state.pop("class_names", [])
        state["classes"] = state["classes"] or [{"id": k, "name": name} for k, name in enumerate(names)]


def upgrade_settings(checkpoint: dict[str, Any]) -> None:
    """Bring the settings of a data module that version 0.1 stored into the form of this one, in place.

    There ``augment: null`` meant a recipe of the data module; here it means none. Class paths become the new
    ones, so that what is saved next opens without this file.
    """
    data = checkpoint.get("datamodule_hyper_parameters", {})
    for stored in (data, checkpoint.get("hyper_parameters", {})):
        module, _, name = stored.get("_class_path", "").rpartition(".")
        moved = MOVED.get(module.removeprefix(f"{__package__}."))
        if moved is not None:
            stored["_class_path"] = f"{__package__}.{moved.split()[0]}.{name}"
    if "trunkline_version" in checkpoint or not data:
        return
    if "missing_masks" in data:
        data["missing"] = "error" if data.pop("missing_masks") == "error" else "skip"
    name = data.get("_class_path", "").rpartition(".")[2]
    if data.get("augment") is not None:
        return
    if name == "ImageClassification" and isinstance(data.get("size", 224), int) and _axes(checkpoint) == 2:
        data["augment"] = [{"HorizontalFlip": {"p": 0.5}}]
    elif name == "ScanSegmentation":
        from .data.scans.augment import default_transforms

        data["augment"] = default_transforms(data.get("patch"))


def _axes(checkpoint: dict[str, Any]) -> int:
    """Return the number of spatial axes of the trunk that a checkpoint is of: 3 for scans."""
    backbone = checkpoint.get("hyper_parameters", {}).get("backbone") or {}
    return (backbone.get("init_args") or {}).get("ndim", 2)
