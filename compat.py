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

# Modules by their old path. Those that are folders now export the released names themselves.
MOVED = {
    "backbones.weight_files": "backbones.weights.files",
    "data.augment": "data.shared.augment",
    "data.batches": "data.shared.batches",
    "data.coco": "data.detection.module",
    "data.io": "data.shared.io",
    "data.multi": "data.multitask.module",
    "data.scans.files": "data.scans.formats.files",
    "data.scans.intensity": "data.scans.prepare.intensity",
    "data.synthetic_scans": "data.synthetic.scans",
    "evaluation.coco": "evaluation.detection.evaluator",
    "evaluation.masks": "evaluation.pictures.masks",
    "evaluation.volume_result": "evaluation.volumes.result",
    "tasks.branched": "tasks.base.task",
    "tasks.branches": "tasks.base.branch",
    "tasks.inference": "tasks.segmentation.inference",
    "tasks.mixing": "tasks.classification.mixing",
    "tasks.multi": "tasks.multitask.task",
    "tasks.optimization": "tasks.base.optimization",
    "tasks.planning": "planning.plan",
    "tasks.volume_inference": "tasks.volumes.inference",
}


class _Alias(types.ModuleType):
    """A module under its old path; its names are those of the new one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(sys.modules[self.__dict__["__moved_to__"]], name)


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        package, _, name = module.__name__.partition(".")
        new = f"{package}.{MOVED[name]}"
        warnings.warn(
            f"{module.__name__} is {new} since version 0.2; the old path goes with 0.3", FutureWarning, 3
        )
        importlib.import_module(new)
        module.__dict__["__moved_to__"] = new


def install() -> None:
    """Let imports find modules under their old paths."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
