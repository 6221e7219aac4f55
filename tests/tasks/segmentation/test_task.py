"""The segmentation task: metrics at native size, losses, padding, inference options."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmentation_tasks import Memory, segmenter, trainer

from trunkline.data.segmentation.batches import SegmentationSample, collate_segmentation
from trunkline.heads.segmentation.base import RawSegmentation
from trunkline.heads.segmentation.losses import CrossEntropy
from trunkline.tasks.segmentation import branch as segmentation_branch
from trunkline.tasks.segmentation.inference import InferenceOptions


def by_hand(task, data):
    """Confusion counts of the logits resized to each mask on disk, pixel by pixel."""
    counts = np.zeros((3, 3), dtype=np.int64)
    task.eval()
    with torch.no_grad():
        for batch in data.batches:
            logits = task.raw(batch.image, batch.image_sizes).logits
            for scores, truth in zip(logits, batch.truth, strict=True):
                resized = F.interpolate(scores[None], truth.shape, mode="bilinear", align_corners=False)[0]
                for row, column in zip(
                    truth.flatten().tolist(), resized.argmax(0).flatten().tolist(), strict=True
                ):
                    if row != 255:
                        counts[row, column] += 1
    return counts


def test_metrics_are_of_the_masks_on_disk(tmp_path, capsys):
    task, data = segmenter(), Memory()
    logged = trainer(tmp_path).validate(task, data, verbose=False)[0]
    counts = by_hand(task, data)
    assert (task.result.confusion == counts).all() and task.result.images == 5
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert logged["val/mIoU"] == pytest.approx(np.mean(np.diag(counts)[union > 0] / union[union > 0]))
    assert logged["val/pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    shown = capsys.readouterr().out
    assert "road" in shown and "mean intersection over union" in shown


def test_the_loss_of_validation_is_the_mean_over_images(tmp_path):
    task, data = segmenter(), Memory()
    logged = trainer(tmp_path).validate(task, data, verbose=False)[0]
    task.eval()
    total = 0.0
    with torch.no_grad():
        for batch in data.batches:
            logits = task.raw(batch.image, batch.image_sizes).logits
            total += len(batch) * F.cross_entropy(logits, batch.mask.long(), ignore_index=255).item()
    assert logged["val/loss"] == pytest.approx(total / 5, rel=1e-5)


def test_the_network_runs_once_per_step_also_in_validation(tmp_path):
    task, calls = segmenter(), []
    task.trunk.register_forward_hook(lambda *_: calls.append(task.training))
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, Memory())
    assert calls == [True, True, False]


def test_training_learns_and_an_ignored_batch_costs_nothing(tmp_path):
    task, data = segmenter(optimizer=lambda p: torch.optim.Adam(p, lr=0.02)), Memory(factor=1)
    for batch in data.batches:  # the brightness of 6x8 pixels tells their class
        cells = batch.mask[:, 3::6, ::8]
        batch.mask = cells.repeat_interleave(6, 1).repeat_interleave(8, 2)
        batch.image = (batch.mask * 200)[:, None].expand(-1, 3, -1, -1).contiguous()
    data.batches[0].mask.fill_(255)
    before = by_hand_loss(task, data.batches[1])
    trainer(tmp_path, max_epochs=30, limit_val_batches=0).fit(task, data)
    assert by_hand_loss(task, data.batches[1]) < 0.7 * before
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())
    empty = data.batches[0]
    losses = task.head.losses(task.raw(empty.image, empty.image_sizes), empty)
    assert [value.item() for value in losses.values()] == [0.0]


def by_hand_loss(task, batch):
    task.eval()
    with torch.no_grad():
        raw = task.raw(batch.image, batch.image_sizes)
        loss = task.head.losses(raw, batch)["cross_entropy"].item()
    task.train()
    return loss


def test_the_check_before_training_leaves_no_trace(tmp_path):
    """The metrics of an epoch are those of its own images, and weights used in the check still learn."""
    task, data = segmenter(head={"loss": CrossEntropy(class_weights=[1.0, 2.0, 3.0])}), Memory()
    trainer(tmp_path, limit_train_batches=1, num_sanity_val_steps=2).fit(task, data)
    assert task.result.images == 5 and (task.result.confusion == by_hand(task, data)).all()


def test_classes_may_come_in_turn_where_the_image_is_large(monkeypatch):
    logits = torch.randn(1, 7, 6, 8, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = logits[:, 2]  # of equal ones the first, as if at once
    expected = F.interpolate(logits, (13, 20), mode="bilinear", align_corners=False)[0].argmax(0)
    sizes, real = [], F.interpolate
    counted = lambda x, *a, **b: sizes.append(x.shape[1]) or real(x, *a, **b)  # noqa: E731
    monkeypatch.setattr(F, "interpolate", counted)
    for most, steps in ((3 * 13 * 20 + 5, [3, 3, 1]), (1, [1] * 7), (2**26, [7])):
        monkeypatch.setattr(segmentation_branch, "MOST_VALUES", most)
        found = segmentation_branch.labels_at(logits, (13, 20))
        assert torch.equal(found.long(), expected) and found.dtype == torch.uint8
        assert sizes == steps
        sizes.clear()


def test_sizes_between_multiples_of_the_stride_are_padded_and_cut(tmp_path):
    """A cell stands for as many pixels as its stride: what is inside equals the padded picture's scores."""
    task = segmenter(head={"aux": 0}).eval()
    image = torch.randint(0, 256, (1, 3, 13, 18), dtype=torch.uint8)
    with torch.no_grad():
        found = task.inferred(image, torch.tensor([[13, 18]]))
        padded = F.pad(image, (0, 2, 0, 3))
        whole = task.raw(padded, torch.tensor([[13, 18]]))
        fitting = task.inferred(padded, torch.tensor([[13, 18]]))
    torch.testing.assert_close(found.logits, whole.logits[:, :, :13, :18])
    assert found.aux == () and torch.equal(fitting.logits, whole.logits) and len(fitting.aux) == 1


def test_padding_is_cut_off_before_scores_are_resized_to_the_image():
    sizes, originals = [(12, 16), (7, 10)], [(24, 32), (21, 15)]
    batch = collate_segmentation(
        [
            SegmentationSample(
                torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8), n, original
            )
            for n, (size, original) in enumerate(zip(sizes, originals, strict=True))
        ]
    )
    logits = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    found = segmenter().branch.predictions(RawSegmentation(logits), batch)
    for n, ((height, width), original) in enumerate(zip(sizes, originals, strict=True)):
        inside = logits[n : n + 1, :, :height, :width]
        resized = F.interpolate(inside, original, mode="bilinear", align_corners=False)[0]
        assert (found[n]["image_id"], found[n]["size"]) == (n, original)
        assert torch.equal(found[n]["mask"].long(), resized.argmax(0))


@pytest.mark.parametrize("options", [{}, {"inference": InferenceOptions(window=8, flip=True)}])
def test_half_precision_and_channels_last_change_neither_loss_nor_metrics_much(tmp_path, options):
    exact = trainer(tmp_path).validate(segmenter(**options), Memory(), verbose=False)[0]
    task = segmenter(channels_last=True, **options)
    half = trainer(tmp_path, precision="bf16-mixed").validate(task, Memory(), verbose=False)[0]
    assert half["val/loss"] == pytest.approx(exact["val/loss"], rel=0.01) and half != exact
    assert half["val/pixel_accuracy"] == pytest.approx(exact["val/pixel_accuracy"], abs=0.05)


def test_inference_options_average_views_and_change_losses_and_metrics_alike(tmp_path):
    options = InferenceOptions(flip=True)
    task, data = segmenter(inference=options, head={"aux": 0}), Memory()
    logged = trainer(tmp_path).validate(task, data, verbose=False)[0]
    task.eval()
    total, counts = 0.0, np.zeros((3, 3), dtype=np.int64)
    with torch.no_grad():
        for batch in data.batches:
            straight = task.raw(batch.image, batch.image_sizes).logits.softmax(1)
            turned = task.raw(batch.image.flip(3), batch.image_sizes).logits.softmax(1).flip(3)
            mean = (straight + turned) / 2
            loss = F.nll_loss(mean.log(), batch.mask.long(), ignore_index=255)
            total += len(batch) * loss.item()
            for scores, truth in zip(mean.log(), batch.truth, strict=True):
                found = F.interpolate(scores[None], truth.shape, mode="bilinear", align_corners=False)
                known = truth != 255
                np.add.at(counts, (truth[known].numpy(), found[0].argmax(0)[known].numpy()), 1)
    assert logged["val/loss"] == pytest.approx(total / 5, rel=1e-5)
    assert (task.result.confusion == counts).all()
    plain = segmenter(head={"aux": 0})
    assert trainer(tmp_path).validate(plain, data, verbose=False)[0]["val/loss"] != logged["val/loss"]
