"""Images that cannot be read in training: an error that says what to do, or others in their place."""

import errno
import itertools
import logging

import numpy as np
import pytest
import torch

from trunkline.data.shared.augment.checks import AugmentationError
from trunkline.data.shared.batches import Batch
from trunkline.data.shared.canvas import CanvasBatchSampler
from trunkline.data.shared.failed import FailedImage
from trunkline.data.shared.faults import BadImagesError, SkippedImages, is_bad_image, on_unreadable
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.loading import ImageBatchSampler, batch_loader


class Images(torch.utils.data.Dataset):
    """Ten images, of which some cannot be read; a sample is its position and seed."""

    def __init__(self, bad, error=None):
        self.bad, self.error = set(bad), error or ImageError("damaged")

    def __len__(self):
        return 10

    def __getitem__(self, request):
        if request.index in self.bad:
            raise self.error
        return request.index, request.seed


def named(request):
    return 100 + request.index, f"{request.index}.png"


def collate(samples):
    ids, seeds = torch.tensor(samples).T
    return Batch(image=seeds.view(-1, 1, 1, 1), image_sizes=torch.ones(len(ids), 2), image_ids=ids)


def loader(bad, what="skip", training=True, workers=0, error=None, groups=None, sampler=None):
    sampler = sampler or ImageBatchSampler(10, 3, shuffle=training, seed=5)
    dataset, joined = on_unreadable(what, training, Images(bad, error), collate, named, groups)
    return batch_loader(dataset, sampler, joined, workers, None)


def content(batches):
    return [(b.image_ids.tolist(), b.image.flatten().tolist()) for b in batches]


def test_another_image_takes_the_place_and_the_others_stay():
    whole, skipped = content(loader([])), list(loader([2, 7]))
    assert len(whole) == len(skipped)
    replaced = []
    for (ids, seeds), batch in zip(whole, skipped, strict=True):
        assert batch.image.flatten().tolist() == seeds  # the augmentation is the request's
        for before, now in zip(ids, batch.image_ids.tolist(), strict=True):
            assert now not in (2, 7)
            assert before == now or before in (2, 7)
            replaced += [before] if before != now else []
    assert set(replaced) == {2, 7}
    named_ones = {image.file_name for batch in skipped for image in batch.failed}
    assert named_ones == {"2.png", "7.png"}


def test_the_replacement_does_not_depend_on_workers():
    assert content(loader([2, 7])) == content(loader([2, 7], workers=2))


def test_an_image_of_the_same_canvas_is_drawn_first():
    sizes = np.array([[40, 60]] * 5 + [[60, 40]] * 5)
    sampler = CanvasBatchSampler(sizes, 2, [32], 64, [(32, 64), (64, 32)], shuffle=True, seed=1)
    batches = list(loader([0, 6], groups=sampler.groups, sampler=sampler))
    assert sum(len(batch.failed) for batch in batches) >= 2
    for batch, requests in zip(batches, sampler, strict=True):
        for now, request in zip(batch.image_ids.tolist(), requests, strict=True):
            assert (now < 5) == (request.index < 5)
    alone = list(loader([0, 1, 2, 3, 4], groups=sampler.groups, sampler=sampler))  # nothing else is left
    assert all(now >= 5 for batch in alone for now in batch.image_ids.tolist())


def test_no_image_that_can_be_read_is_an_error():
    with pytest.raises(BadImagesError, match=r"none of these images can be read"):
        list(loader(range(10)))


def test_evaluation_leaves_the_image_out():
    batches = list(loader([4], training=False))
    assert list(itertools.chain(*(b.image_ids.tolist() for b in batches))) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [image.file_name for batch in batches for image in batch.failed] == ["4.png"]


@pytest.mark.parametrize("training", [True, False])
def test_error_names_the_remedy(training):
    with pytest.raises(ImageError, match="damaged; --data.on_bad_image skip goes on"):
        list(loader([4], "error", training))
    with pytest.raises(ImageError, match="4.png: cannot be read .*Input/output.*on_bad_image skip"):
        list(loader([4], "error", training, error=OSError(errno.EIO, "Input/output error")))


LACKING = [
    AugmentationError("wrong transform"),
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", LACKING, ids=["augmentation", "memory", "descriptors", "room"])
@pytest.mark.parametrize("what", ["skip", "error"])
def test_what_all_images_would_have_is_not_skipped(error, what):
    assert not is_bad_image(error)
    with pytest.raises(type(error)) as raised:
        list(loader([4], what, error=error))
    assert "on_bad_image" not in str(raised.value)
    with pytest.raises(type(error)):
        list(loader([4], what, training=False, error=error))


def test_a_decoders_error_is_not_of_the_image_where_the_machine_lacks_something():
    wrapped = ImageError("x.png: damaged image (OSError: Too many open files)")
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert not is_bad_image(wrapped)


def test_each_image_counts_once_against_the_budget(caplog):
    skipped = SkippedImages(2)
    one, two, three = (FailedImage(n, f"{n}.png", "damaged") for n in (1, 2, 3))
    with caplog.at_level(logging.WARNING, "trunkline"):
        skipped.add([one, one])
        skipped.add([one, two])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "skipped image id 1, 1.png: damaged (1 of at most 2, data.max_bad_images)",
        "skipped image id 2, 2.png: damaged (2 of at most 2, data.max_bad_images)",
    ]
    resumed = SkippedImages(2)
    resumed.join([skipped.state()])
    with pytest.raises(BadImagesError, match=r"3 images .* more than the 2 of data.max_bad_images") as raised:
        resumed.add([three])
    assert all(f"{n}.png" in str(raised.value) for n in (1, 2, 3))


def test_the_budget_counts_over_processes():
    first, second = SkippedImages(2), SkippedImages(2)
    first.add([FailedImage(1, "1.png", "damaged"), FailedImage(2, "2.png", "damaged")])
    second.add([FailedImage(2, "2.png", "damaged"), FailedImage(3, "3.png", "damaged")])
    for each in (first, second):
        each.join([first.state(), second.state()])
        with pytest.raises(BadImagesError, match="3 images"):
            each.check()
