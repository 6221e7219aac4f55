"""Mixup and cutmix against torchvision's transforms on the same random numbers, and by hand in 3-D."""

import pytest
import torch
from torchvision.transforms import v2

from trunkline.tasks.classification.mixing import Mixing, cut_and_mixed, mixed_labels, mixed_up

K = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 13, 10, generator=generator), torch.tensor([4, 0, 2, 2])


@pytest.mark.parametrize(("name", "peer"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_equals_torchvision_on_the_same_random_numbers(batch, name, peer, alpha):
    mixing, theirs = Mixing(**{name: alpha}), peer(alpha=alpha, num_classes=K)
    changed = 0
    for seed in range(10):
        torch.manual_seed(seed)
        torch.randint(1, ())  # the choice among one
        expected = theirs(*batch)
        torch.manual_seed(seed)
        image, label = mixing(*batch, K)
        torch.testing.assert_close(image, expected[0])
        torch.testing.assert_close(label, expected[1])
        changed += not torch.equal(image, batch[0])
    assert changed >= 5


def test_several_labels_are_mixed_by_the_share_that_the_image_keeps(batch):
    label = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1]])
    marks = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 13, 10)
    for seed in range(5):
        torch.manual_seed(seed)
        image, mixed = Mixing(cutmix=1.0)(marks, label, K)
        for b in range(4):
            kept = (image[b] == b).float().mean()
            torch.testing.assert_close(mixed[b], kept * label[b] + (1 - kept) * label[b - 1])


def test_cutmix_of_volumes_pastes_one_box_of_the_drawn_share():
    """In 3-D a box inside the volume has the sides (1 - share) ** (1/3), rounded down to even voxels."""
    size = (40, 60, 50)
    volume = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, *size)
    seen = 0
    for seed in range(30):
        torch.manual_seed(seed)
        mixed, share = cut_and_mixed(volume, 0.9)
        pasted = mixed[0, 0] == 1
        assert torch.equal(pasted, mixed[1, 0] == 0)
        assert share == pytest.approx(1 - pasted.double().mean().item())
        where = pasted.nonzero()
        lengths = (where.amax(0) - where.amin(0) + 1).tolist()
        assert lengths[0] * lengths[1] * lengths[2] == len(where)  # a full box
        if bool((where.amin(0) > 0).all()) and bool((where.amax(0) < torch.tensor(size) - 1).all()):
            seen += 1
            assert lengths == [2 * int(0.5 * 0.1 ** (1 / 3) * n) for n in size]
    assert seen >= 5


def test_mixup_of_volumes_by_hand():
    volume = torch.randn(3, 1, 2, 3, 4)
    mixed, share = mixed_up(volume, 0.3)
    for b in range(3):
        torch.testing.assert_close(mixed[b], 0.3 * volume[b] + 0.7 * volume[b - 1])
    assert share == 0.3


def test_with_both_each_is_drawn_about_half_of_the_time():
    torch.manual_seed(0)
    mixing = Mixing(mixup=1.0, cutmix=1.0)
    image = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    blended = 0
    for _ in range(200):
        mixed, _ = mixing(image, torch.tensor([0, 1]), 2)
        blended += bool(((mixed > 0) & (mixed < 1)).any())
    assert 75 <= blended <= 125


def test_alpha_is_that_of_the_beta_distribution():
    """Var of Beta(a, a) is 1 / (4 (2 a + 1)): 0.227 for 0.05, 0.012 for 10."""
    torch.manual_seed(0)
    for alpha in (0.05, 10.0):
        mixing = Mixing(mixup=alpha)
        shares = torch.stack(
            [mixing(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), 2)[1][0, 0] for _ in range(300)]
        )
        assert shares.mean().item() == pytest.approx(0.5, abs=0.08)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)


def test_without_alphas_nothing_changes_and_no_number_is_drawn(batch):
    state = torch.get_rng_state()
    image, label = Mixing()(*batch, K)
    assert image is batch[0] and label is batch[1] and torch.equal(torch.get_rng_state(), state)


def test_an_image_without_label_leaves_its_pair_without():
    labels = torch.tensor([[1.0, 0], [-1, -1], [0, 1], [1, 0]])
    mixed = mixed_labels(labels, 0.25)
    assert mixed.tolist() == [[1.0, 0], [-1, -1], [-1, -1], [0.25, 0.75]]
    torch.manual_seed(0)
    _, mixed = Mixing(mixup=1.0)(torch.zeros(3, 1, 2, 2), torch.tensor([-1, 1, 0]), 2)
    assert (mixed < 0).all(1).tolist() == [True, True, False]


def test_a_batch_of_one_stays_as_it_is():
    image = torch.randn(1, 3, 6, 6)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed, label = Mixing(**options)(image, torch.tensor([1]), 3)
        torch.testing.assert_close(mixed, image)
        torch.testing.assert_close(label, torch.tensor([[0.0, 1, 0]]))


@pytest.mark.parametrize("mix", [mixed_up, cut_and_mixed])
def test_memory_order_is_kept(mix):
    image = torch.randn(2, 3, 6, 8).contiguous(memory_format=torch.channels_last)
    assert mix(image, 0.5)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_negative_alpha_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} must be 0"):
        Mixing(**{name: -0.1})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shares_are_drawn_where_half_precision_is_the_default(dtype):
    image, label = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    mixed = []
    before = torch.get_default_dtype()
    for default in (torch.float32, dtype):
        torch.manual_seed(0)
        torch.set_default_dtype(default)  # as a trainer of bf16-true and 16-true does
        try:
            mixed.append(Mixing(mixup=0.2)(image, label, 2)[0])
        finally:
            torch.set_default_dtype(before)
    assert torch.equal(*mixed)
