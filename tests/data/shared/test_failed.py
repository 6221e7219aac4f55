"""Images to predict on that cannot be read are named in the batches, and cost no other."""

import pickle

import pytest
import torch

from trunkline.data.shared import CollateReadable, FailedBatch, FailedImage, SkipUnreadable, batch_loader
from trunkline.data.shared.batches import Batch
from trunkline.data.shared.loading import ImageBatchSampler

BAD = {1: ValueError("b.png: damaged"), 4: OSError(5, "Input/output error"), 5: MemoryError()}


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, request):
        if request.index in BAD:
            raise BAD[request.index]
        return request.index


def named(request):
    return 10 + request.index, f"{request.index}.png"


def collate(samples):
    ids = torch.tensor(samples)
    return Batch(image=ids.view(-1, 1, 1, 1), image_sizes=torch.ones(len(ids), 2), image_ids=ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_what_can_be_read_and_name_the_rest(workers):
    loader = batch_loader(Images(), ImageBatchSampler(7, 2), collate, workers, None, named)
    batches = list(loader)
    assert [batch.image_ids.tolist() for batch in batches] == [[0], [2, 3], [], [6]]
    assert [len(batch) for batch in batches] == [1, 2, 0, 1]
    failed = [(image.image_id, image.file_name, image.error) for batch in batches for image in batch.failed]
    assert failed == [
        (11, "1.png", "b.png: damaged"),
        (14, "4.png", "[Errno 5] Input/output error"),
        (15, "5.png", "does not fit into the memory; make it smaller, or cut it into pieces"),
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_without_names_an_unreadable_image_is_an_error(workers):
    loader = batch_loader(Images(), ImageBatchSampler(2, 2), collate, workers, None)
    with pytest.raises(ValueError, match="^b.png: damaged$"):
        list(loader)


def test_errors_of_the_code_are_none_of_a_file():
    class Wrong(Images):
        def __getitem__(self, request):
            raise TypeError("wrong code")

    with pytest.raises(TypeError, match="wrong code"):
        SkipUnreadable(Wrong(), named)[0]


def test_a_batch_of_nothing_serves_every_head_and_travels():
    failed = FailedImage(3, "a.png", "gone")
    batch = pickle.loads(pickle.dumps(CollateReadable(collate)([failed])))
    assert isinstance(batch, FailedBatch) and batch.for_head("boxes") is batch
    assert batch.failed == (failed,) and batch.image_ids.tolist() == []
