"""Loader processes that are asked to stop leave the run time to save its state."""

import os
import signal
import time

from trunkline.data.shared.loading import ImageBatchSampler, batch_loader


class Numbers:
    """Gives the numbers of images and of the process that read them, slowly."""

    def __len__(self):
        return 8

    def __getitem__(self, request):
        time.sleep(0.05)
        return request.index, os.getpid()


def test_batches_go_on_after_sigterm_to_the_loader_process():
    loader = batch_loader(Numbers(), ImageBatchSampler(8, batch_size=1), list, workers=1, trainer=None)
    batches = iter(loader)
    [(first, process)] = next(batches)
    assert process != os.getpid()
    os.kill(process, signal.SIGTERM)
    assert [first, *(index for [(index, _)] in batches)] == list(range(8))
