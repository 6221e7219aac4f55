"""What the command line and its tasks show of a run while it goes on."""

import pytest
from pytorch_lightning.callbacks import ProgressBar


class Shown(ProgressBar):
    """A progress bar that keeps what others would show."""

    def __init__(self):
        super().__init__()
        self.losses, self.synchronised = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append((self.get_metrics(trainer, pl_module)["train/loss"], outputs["loss"].item()))
        self.synchronised += [m.meta.name for m in trainer._results.values() if m.meta.prog_bar]


def test_the_bar_shows_the_loss_of_the_step_without_lightning_reading_it(tiny, tmp_path):
    bar = Shown()
    task = tiny.classifier()
    tiny.trainer(tmp_path, callbacks=[bar], enable_progress_bar=True, limit_val_batches=0).fit(
        task, tiny.Memory()
    )
    assert len(bar.losses) == 3
    for shown, loss in bar.losses:
        assert isinstance(shown, float) and shown == pytest.approx(loss)
    assert not bar.synchronised  # Lightning would copy each of them to the host at the end of every step
