"""Pictures and scans on their way into a batch, and the order they come in."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from trunkline.data.classification.dataset import ClassificationDataset
from trunkline.data.classification.index import ClassIndex
from trunkline.data.classification.transforms import MEAN_COLOUR, PictureTransform, ScanTransform
from trunkline.data.shared.augment.transforms import AugmentationError
from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.loading import ImageBatchSampler, ImageRequest


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


# -- evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(70, 51), (40, 97), (33, 33), (20, 31), (24, 24), (31, 24)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(shape, interpolation):
    smooth = np.array(Image.fromarray(noise(9, 9)).resize(shape[::-1], Image.Resampling.BICUBIC))
    for image in (smooth, noise(*shape)):
        mode = InterpolationMode(interpolation)
        peer = v2.Compose([v2.Resize(24, interpolation=mode), v2.CenterCrop(21), v2.PILToTensor()])
        expected = peer(Image.fromarray(image))
        actual = PictureTransform(21, 24, interpolation)(image)
        assert actual.dtype == torch.uint8 and actual.shape == (3, 21, 21)
        assert (actual.int() - expected.int()).abs().max() <= 1


# -- training


def test_a_picture_of_the_wanted_size_is_not_resampled():
    image = noise(16, 16)
    flip = PictureTransform(16, 20, augment=[{"HorizontalFlip": {"p": 1.0}}])
    assert np.array_equal(flip(image).permute(1, 2, 0).numpy(), image[:, ::-1])
    turn = PictureTransform(16, 16, augment=[{"RandomRotate90": {"p": 1.0}}])
    turned = {turn(image, seed).numpy().tobytes() for seed in range(40)}
    assert turned == {np.rot90(image, k).transpose(2, 0, 1).tobytes() for k in range(4)}


def test_any_other_is_resized_and_cut_as_in_evaluation():
    image = noise(30, 45)
    flip = PictureTransform(16, 20, augment=[{"HorizontalFlip": {"p": 1.0}}])
    expected = PictureTransform(16, 20)(np.ascontiguousarray(image[:, ::-1]))
    assert torch.equal(flip(image), expected)
    crop = PictureTransform(16, 20, augment=[{"RandomCrop": {"height": 16, "width": 16}}])
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16), axis=(0, 1))  # [15, 30, 3, 16, 16]
    assert (windows == crop(image, 5).numpy()).all(axis=(2, 3, 4)).any()


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("auto_augment", v2.AutoAugment),
        ("rand_augment", v2.RandAugment),
        ("trivial_augment_wide", v2.TrivialAugmentWide),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_policies_are_torchvisions(name, peer, interpolation):
    image = noise(16, 16)
    ours = PictureTransform(16, 16, interpolation, policy=name)
    theirs = peer(interpolation=InterpolationMode(interpolation))
    different = 0
    for seed in range(20):
        torch.manual_seed(seed)
        expected = np.array(theirs(Image.fromarray(image)))
        assert np.array_equal(ours(image, seed).permute(1, 2, 0).numpy(), expected)
        different += not np.array_equal(expected, image)
    assert different > 10


def test_erasing_paints_rectangles_in_the_mean_colour():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    erase = PictureTransform(32, 32, random_erasing=0.5)
    shares = []
    for seed in range(400):
        result = erase(image, seed)
        painted = (result > 0).any(dim=0)
        assert set(result[:, painted].T.unique(dim=0).flatten().tolist()) <= set(MEAN_COLOUR)
        rows, columns = painted.any(dim=1), painted.any(dim=0)
        assert painted.sum() == rows.sum() * columns.sum()  # a full rectangle
        shares.append(painted.float().mean().item())
    erased = [share for share in shares if share]
    assert 150 < len(erased) < 250  # 200 expected, sigma 10
    assert 0.01 < min(erased) < 0.05 and 0.25 < max(erased) < 0.37
    # Within half a grey level of the mean, hence about zero once normalised.
    mean = 255 * np.array([0.485, 0.456, 0.406])
    assert np.abs(np.array(MEAN_COLOUR) - mean).max() <= 0.5


def test_the_seed_decides_and_torchs_own_generator_goes_on_undisturbed():
    image = noise(20, 20)
    options = {"policy": "trivial_augment_wide", "random_erasing": 0.5, "augment": [{"HorizontalFlip": None}]}
    transform = PictureTransform(16, 16, **options)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = [transform(image, seed) for seed in range(30)]
    assert torch.equal(torch.rand(4), expected)
    two = [transform(image, seed) for seed in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({tuple(a.flatten().tolist()) for a in one}) > 20


def test_a_failing_transform_names_the_file(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "small.png")
    index = ClassIndex(str(tmp_path), PackedNames.pack(["small.png"]), torch.tensor([0]), ("cat",))
    transform = PictureTransform(16, 16, augment=[{"RandomCrop": {"height": 16, "width": 16}}])
    with pytest.raises(AugmentationError, match=r"small.png: augmentation failed on 8x8 pixels"):
        ClassificationDataset(index, transform)[ImageRequest(0, 0)]


# -- scans


def test_scans_are_standardised_resized_and_left_alone_without_augmentation():
    scan = np.random.default_rng(0).normal(50, 20, size=(2, 6, 5, 4)).astype(np.float32)
    result = ScanTransform((6, 5, 4))(scan, seed=9)
    flat = result.reshape(2, -1).double()
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(2, dtype=torch.double), atol=1e-6, rtol=0)
    torch.testing.assert_close(flat.std(dim=1, unbiased=False), torch.ones(2, dtype=torch.double))
    large = ScanTransform((9, 5, 8))(scan)
    expected = torch.nn.functional.interpolate(result[None], (9, 5, 8), mode="trilinear")[0]
    torch.testing.assert_close(large, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axes", [[0], [2], [0, 1, 2], []])
def test_flips_reverse_the_named_axes_independently(axes):
    scan = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    plain = ScanTransform((3, 4, 5))(scan)
    flip = ScanTransform((3, 4, 5), flip_axes=axes)
    found = Counter()
    for seed in range(64 * 2 ** len(axes)):
        result = flip(scan, seed)
        cases = [[a for n, a in enumerate(axes) if bits >> n & 1] for bits in range(2 ** len(axes))]
        matching = [tuple(c) for c in cases if torch.equal(result, plain.flip([a + 1 for a in c]))]
        assert len(matching) == 1
        found[matching[0]] += 1
    assert len(found) == 2 ** len(axes) and min(found.values()) > 32  # 64 expected, sigma below 8


def test_intensity_changes_scale_and_offset_of_each_channel_within_limits():
    scan = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    plain = ScanTransform((4, 4, 4))(scan).reshape(2, -1).double()
    jitter = ScanTransform((4, 4, 4), intensity=0.2)
    seen = []
    for seed in range(200):
        result = jitter(scan, seed).reshape(2, -1).double()
        for channel in range(2):  # a straight line through the pairs of voxels
            scale, shift = np.polyfit(plain[channel], result[channel], 1)
            line = plain[channel] * scale + shift
            torch.testing.assert_close(result[channel], line, atol=1e-5, rtol=0)
            seen.append((scale - 1, shift))
    seen = np.array(seen)
    assert (
        np.abs(seen).max() <= 0.2 + 1e-6
        and (seen.max(axis=0) > 0.18).all()
        and (seen.min(axis=0) < -0.18).all()
    )
    assert np.abs(np.corrcoef(seen.T)[0, 1]) < 0.2


# -- the sampler


def indices(batches):
    return [[request.index for request in batch] for batch in batches]


@pytest.mark.parametrize(
    ("count", "size", "ranks"), [(21, 4, 1), (21, 4, 2), (24, 4, 3), (3, 4, 2), (1, 2, 3)]
)
def test_training_gives_ranks_equally_many_full_batches_and_every_image(count, size, ranks):
    samplers = [ImageBatchSampler(count, size, True, 5, rank, ranks) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    steps = -(-count // (size * ranks))
    for sampler, mine in zip(samplers, batches, strict=True):
        assert len(sampler) == len(mine) == steps and {len(batch) for batch in mine} == {size}
    seen = Counter(i for mine in batches for batch in indices(mine) for i in batch)
    assert set(seen) == set(range(count)) and max(seen.values()) - min(seen.values()) <= 1
    seeds = [request.seed for mine in batches for batch in mine for request in batch]
    assert len(set(seeds)) == len(seeds)


def test_order_and_seeds_depend_on_seed_and_epoch_alone():
    def run(seed, epoch):
        sampler = ImageBatchSampler(20, 4, True, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert run(1, 2) == run(1, 2)
    assert len({tuple(sum(indices(run(seed, epoch)), [])) for seed in range(3) for epoch in range(3)}) == 9
    one, other = dict(sum(run(1, 0), [])), dict(sum(run(1, 1), []))
    assert all(one[index] != other[index] for index in range(20))


@pytest.mark.parametrize(("count", "size", "ranks"), [(21, 4, 1), (21, 4, 2), (3, 4, 2), (9, 2, 4)])
def test_evaluation_sees_each_image_once_over_all_ranks_in_order(count, size, ranks):
    samplers = [ImageBatchSampler(count, size, False, 5, rank, ranks) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(mine) for mine in batches]
    seen = [i for mine in batches for batch in indices(mine) for i in batch]
    assert sorted(seen) == list(range(count))
    assert all(batches), "a rank without a batch leaves the others waiting"
    if ranks == 1:
        assert seen == list(range(count)) and {request.seed for mine in batches[0] for request in mine} == {0}


def test_spread_evaluation_draws_one_order_for_all_ranks_and_epochs():
    def run(ranks, epoch=0):
        samplers = [ImageBatchSampler(21, 4, False, epoch, rank, ranks, spread=True) for rank in range(ranks)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        return [[i for batch in indices(sampler) for i in batch] for sampler in samplers]

    (alone,) = run(1)
    assert sorted(alone) == list(range(21)) and alone != list(range(21)) and run(1, epoch=3) == [alone]
    assert sorted(sum(run(2), [])) == list(range(21))
    thirds = [sum(index < 7 for index in alone[:10]), sum(index >= 14 for index in alone[:10])]
    assert min(thirds) > 0  # not file by file


def test_repetitions_share_an_epoch_and_spread_over_ranks():
    samplers = [ImageBatchSampler(24, 4, True, 0, rank, 2, repeats=3) for rank in range(2)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(mine) for mine in batches] == [3, 3]  # as without repetitions
    seen = Counter(i for mine in batches for batch in indices(mine) for i in batch)
    assert set(seen.values()) == {3} and len(seen) == 8
    seeds = [request.seed for mine in batches for batch in mine for request in batch]
    assert len(set(seeds)) == 24
    on_both = {i for b in indices(batches[0]) for i in b} & {i for b in indices(batches[1]) for i in b}
    assert len(on_both) == 8
    other = ImageBatchSampler(24, 4, True, 0, 0, 2, repeats=3)
    other.set_epoch(1)
    assert {i for b in indices(other) for i in b} != {i for b in indices(batches[0]) for i in b}
