"""What a run is watched for: skipped images of all processes, epochs without an object, changed data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ...data.shared.batches import Batch
from ...data.shared.common import listing, number_of
from ...data.shared.contract import TrunklineData
from ...data.shared.failed import FailedBatch
from ...data.shared.fingerprint import differences
from ...data.shared.loader_errors import LoaderProcessError, loader_problem
from ...data.shared.module import SplitData
from ...evaluation.distributed import gather_objects
from ..run.memory import ADVICE, memory_advice
from .draws import OwnDraws
from .nonfinite import SkipNonFinite
from .transfer import to_main_memory

logger = logging.getLogger("trunkline")

# What to look at if training batches of a whole epoch show none.
REMEDIES = {
    "box": "look at data.augment (crops), data.min_visibility and data.on_bad_box, at the images that "
    "trainer.limit_train_batches leaves, or set data.skip_images_without_boxes",
    "labelled pixel": "look at data.ignore, data.classes and data.augment (crops), and at the masks",
    "class": "look at the labels of the training images",
    "voxel of a class": "raise data.foreground or data.steps_per_epoch, take a larger data.patch, and look "
    "at data.ignore_id and the labels",
}


class ChangedDataError(ValueError):
    """The data of a resumed run are not those of its checkpoint."""


class RunWatch(Callback):
    """Tells of all processes together what one alone does not see; every task brings it."""

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}
        self._left_out: set[str] = set()
        self._fingerprint: Mapping[str, Any] = {}

    # -- skipped images

    def _join_skipped(self, trainer: Any) -> None:
        """Let every process know what the others have skipped, and end all if that is too much."""
        data = trainer.datamodule
        if isinstance(data, SplitData) and data.on_bad_image == "skip":
            data.skipped.join(gather_objects(data.skipped.state()))
            data.skipped.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Have the fingerprint of the data and all processes' skipped images in the checkpoint."""
        checkpoint["data_fingerprint"] = dict(self._fingerprint)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SplitData) and data.on_bad_image == "skip":
            self._join_skipped(trainer)
            key = type(data).__qualname__
            checkpoint[key] = {**checkpoint.get(key, {}), **data.state_dict()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Say how many images the metrics leave out, here and in the metrics."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SplitData) or data.on_bad_image != "skip" or trainer.sanity_checking:
            return
        self._join_skipped(trainer)
        number = len({name for names in gather_objects(sorted(self._left_out)) for name in names})
        for branch in pl_module.branches.values():
            branch.left_out = number
        if number and trainer.is_global_zero:
            logger.warning(
                "the metrics leave out %s that cannot be read (images_left_out in metrics.json); do not "
                "compare them with metrics of all images",
                number_of(number, "image"),
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin to collect the images that cannot be read."""
        self._left_out.clear()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """As for validation."""
        self._left_out.clear()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        """Collect the images of a batch that cannot be read."""
        if isinstance(batch, Batch | FailedBatch):
            self._left_out.update(image.file_name for image in batch.failed)

    def on_test_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        """As for validation."""
        self.on_validation_batch_start(trainer, pl_module, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """As for validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    # -- epochs without an object

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note on the device, without synchronising it, whether the batch shows something to learn."""
        if not isinstance(batch, Batch):
            return
        known = {name for name, seen in self._seen.items() if not seen.is_cuda and bool(seen)}
        for name, seen in batch.objects(known).items():
            self._seen[name] = self._seen[name] | seen if name in self._seen else seen

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Warn of what no batch of any process showed."""
        self._join_skipped(trainer)
        here = dict(zip(self._seen, map(bool, to_main_memory(*self._seen.values())), strict=True))
        self._seen.clear()
        everywhere: dict[str, bool] = {}
        for process in gather_objects(here):
            for name, seen in process.items():
                everywhere[name] = everywhere.get(name, False) or seen
        for name, seen in everywhere.items():
            if not seen and trainer.is_global_zero:
                logger.warning(
                    "epoch %d: no training batch showed a %s, so nothing of that kind was learned; %s",
                    trainer.current_epoch, name, REMEDIES.get(name, "look at the data"),
                )  # fmt: skip

    # -- data that are not those of the checkpoint

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the fingerprint of the data before anything is renumbered by the classes of a checkpoint."""
        if stage == "fit" and isinstance(trainer.datamodule, TrunklineData):
            self._fingerprint = trainer.datamodule.fingerprint()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the data with those of the run that goes on.

        Raises:
            ChangedDataError: if they are others and ``data.on_changed_data`` does not accept it.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        mine = differences(checkpoint.get("data_fingerprint", {}), self._fingerprint)
        changed = list(dict.fromkeys(each for one in gather_objects(mine) for each in one))
        if not changed:
            return
        text = f"the data are not those of the checkpoint:\n{listing(changed)}"
        if vars(trainer.datamodule).get("on_changed_data") != "accept":
            raise ChangedDataError(
                f"{text}\ngive the data of the run again, or go on with these by "
                "--data.on_changed_data accept; an epoch that was begun then goes on in another order"
            )
        if trainer.is_global_zero:
            logger.warning("%s\nthe run goes on with them (data.on_changed_data accept)", text)

    # -- memory

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say what to do if memory does not suffice, or a loader process was killed between two batches."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        advice = memory_advice(exception, trainer)
        if advice is None and not isinstance(exception, LoaderProcessError):
            advice = loader_problem(exception, None if data is None else data.hparams.get("workers"))
        if advice is not None:
            exception.add_note(f"{ADVICE}{advice}")
            logger.error("%s", advice)


def watches(skip_nonfinite_steps: int) -> list[Callback]:
    """Return the callbacks that watch the runs of a task; see ``model.skip_nonfinite_steps``."""
    return [RunWatch(), SkipNonFinite(skip_nonfinite_steps), OwnDraws()]
