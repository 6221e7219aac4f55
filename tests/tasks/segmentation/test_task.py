"""The segmentation task: figures at native size, class lists, inference options, files and checkpoints."""

import csv
import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.data.segmentation.batches import SegmentationSample, collate_segmentation
from trunkline.data.shared.io import read_mask
from trunkline.data.shared.labels import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import FCN, Classifier
from trunkline.heads.segmentation.base import RawSegmentation
from trunkline.heads.segmentation.losses import CrossEntropy
from trunkline.tasks.segmentation import branch as segmentation_branch
from trunkline.tasks.segmentation.inference import InferenceOptions
from trunkline.tasks.segmentation.task import SemanticSegmentation

CLASSES = [
    LabelClass(id=3, name="road", colour=(10, 20, 30)),
    LabelClass(id=7, name="tree", colour=(200, 0, 0)),
    LabelClass(id=255, name="sky", colour=(0, 0, 250)),
]


class TinyTrunk(Backbone):
    """Two levels, of strides 2 and 4."""

    def __init__(self, channels=3):
        super().__init__()
        self.one = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.two = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.levels = (FeatureLevel(5, (2, 2)), FeatureLevel(6, (4, 4)))

    def forward(self, image):
        first = self.one(image).relu()
        return [first, self.two(first).relu()]


class Memory(TrunklineData):
    """Pictures of 12x16 pixels whose masks on disk are twice as large; the last class fills no mask."""

    label_kinds = ("segmentation",)

    def __init__(self, folder=None, classes=CLASSES, count=5, batch=2, factor=2):
        super().__init__()
        self.listed = tuple(classes)
        generator = torch.Generator().manual_seed(0)
        samples = []
        for number in range(count):
            image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8, generator=generator)
            truth = torch.randint(0, 2, (12 * factor, 16 * factor), dtype=torch.uint8, generator=generator)
            truth[:3] = 255
            mask = truth[::factor, ::factor]
            size = tuple(truth.shape)
            samples.append(SegmentationSample(image, mask, number, size, truth))
        chunks = [samples[i : i + batch] for i in range(0, count, batch)]
        self.batches = [collate_segmentation(chunk, multiple=4) for chunk in chunks]
        self.paths = {}
        if folder is not None:
            for sample in samples:
                path = folder / str(sample.image_id) / "same.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                large = sample.image.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
                Image.fromarray(large).save(path)
                self.paths[sample.image_id] = path
            self.paths[0] = self.paths[0].rename(folder / "other.png")

    def image_layout(self):
        return 3, 2

    def label_classes(self, kind, head=""):
        return self.listed

    def label_counts(self, kind, head=""):
        return [30, 10, 0]

    def prediction_paths(self):
        return self.paths

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def segmenter(num_classes=3, head=None, **options):
    torch.manual_seed(0)
    return SemanticSegmentation(
        backbone=TinyTrunk(), head=lambda levels: FCN(levels, num_classes, **(head or {})), **options
    )


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=folder, **{**settings, **quiet, **arguments})


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


def test_figures_are_of_the_masks_on_disk(tmp_path, capsys):
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


def test_classes_must_fit_the_head_and_the_checkpoint(tmp_path, caplog):
    with pytest.raises(
        ValueError, match="the data have 3 classes, the head num_classes 2; set --model.head.num_c"
    ):
        trainer(tmp_path).validate(segmenter(2), Memory())
    task = segmenter()
    task.on_load_checkpoint({"classes": [{"id": 1, "name": "cat", "colour": [0, 0, 0]}]})
    with pytest.raises(ValueError, match=r"trained on the classes \[1 cat\].*class 0 is '1 cat' there"):
        trainer(tmp_path).validate(task, Memory())
    small = segmenter(2)  # more classes than the checkpoint's network has: other data, not another network
    small.on_load_checkpoint({"classes": [{"id": 1, "name": "cat", "colour": [0, 0, 0]}]})
    with pytest.raises(ValueError, match="trained on the classes"):
        trainer(tmp_path).validate(small, Memory())
    with caplog.at_level("WARNING", "trunkline"):
        trainer(tmp_path).validate(segmenter(4), Memory(), verbose=False)
    assert "the data have 3 classes, the head num_classes 4" in caplog.text


def test_balanced_weights_come_from_the_data_and_return_from_the_checkpoint(tmp_path):
    head = {"loss": CrossEntropy(class_weights="balanced")}
    task = segmenter(head=head)
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, Memory())
    # 40 pixels, 2 classes occur: 40 / (2 * 30), 40 / (2 * 10), and 1 for the class without pixels
    assert task.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])
    run.save_checkpoint(tmp_path / "one.ckpt")
    fresh = segmenter(head={"loss": CrossEntropy(class_weights="balanced")})
    trainer(tmp_path).validate(fresh, Memory(), ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert fresh.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])
    resumed, data = segmenter(head={"loss": CrossEntropy(class_weights="balanced")}), Memory()
    data.pixel_counts = lambda: torch.tensor([1, 1, 1])  # more data than before: the run goes on as it was
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=0)
    run.fit(resumed, data, ckpt_path=tmp_path / "one.ckpt")
    assert run.global_step == 2 and resumed.head.loss.class_weights == pytest.approx([2 / 3, 2.0, 1.0])


def test_the_check_before_training_leaves_no_trace(tmp_path):
    """The figures of an epoch are those of its own images, and weights used in the check still learn."""
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
def test_half_precision_and_channels_last_change_neither_loss_nor_figures_much(tmp_path, options):
    exact = trainer(tmp_path).validate(segmenter(**options), Memory(), verbose=False)[0]
    task = segmenter(channels_last=True, **options)
    half = trainer(tmp_path, precision="bf16-mixed").validate(task, Memory(), verbose=False)[0]
    assert half["val/loss"] == pytest.approx(exact["val/loss"], rel=0.01) and half != exact
    assert half["val/pixel_accuracy"] == pytest.approx(exact["val/pixel_accuracy"], abs=0.05)


def test_predict_writes_the_datas_own_ids_with_its_colours(tmp_path, capsys):
    task, data = segmenter(), Memory(tmp_path / "images")
    run = trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", True, 0.5))
    run.predict(task, data, return_predictions=False)
    out, values = tmp_path / "out", np.array([3, 7, 255])
    assert sorted(path.name for path in (out / "masks").iterdir()) == [
        "other.png",
        "same_1.png",
        "same_2.png",
        "same_3.png",
        "same_4.png",
    ]
    task.eval()
    with torch.no_grad():
        logits = task.raw(data.batches[0].image, data.batches[0].image_sizes).logits
    resized = F.interpolate(logits, (24, 32), mode="bilinear", align_corners=False).argmax(1).numpy()
    with Image.open(out / "masks" / "other.png") as mask:
        assert mask.mode == "P" and (np.asarray(mask) == values[resized[0]]).all()
        palette = np.array(mask.getpalette()).reshape(-1, 3)
    assert palette[3].tolist() == [10, 20, 30] and palette[255].tolist() == [0, 0, 250]
    with open(out / "classes.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["id", "name", "r", "g", "b"], ["3", "road", "10", "20", "30"]]
    images = json.loads((out / "images.json").read_text())
    assert [row["id"] for row in images] == [0, 1, 2, 3, 4] and images[0]["file_name"].endswith("other.png")
    overlay = np.asarray(Image.open(out / "pictures" / "other_0.jpg"))
    assert overlay.shape[0] > 14 * 24 and overlay.shape[1] == 14 * 32  # enlarged, and a legend below
    assert "masks of 5 images" in capsys.readouterr().out


def test_ids_above_255_are_written_with_16_bits_and_spare_classes_get_free_ids(tmp_path):
    classes = [*CLASSES[:2], LabelClass(id=300, name="sky", colour=(0, 0, 250))]
    task, data = segmenter(num_classes=7), Memory(tmp_path / "images", classes)
    run = trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    run.predict(task, data, return_predictions=False)
    task.eval()
    with torch.no_grad():
        logits = task.raw(data.batches[0].image, data.batches[0].image_sizes).logits
    labels = F.interpolate(logits, (24, 32), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    ids = [3, 7, 300, 0, 1, 2, 4]
    assert (read_mask(tmp_path / "out" / "masks" / "other.png") == np.array(ids)[labels]).all()
    with open(tmp_path / "out" / "classes.csv", newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == ids


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    task, data = segmenter(), Memory(tmp_path / "images")
    (tmp_path / "out").write_text("a file")
    run, calls = trainer(tmp_path), []
    task.trunk.register_forward_hook(lambda *_: calls.append(1))
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    with pytest.raises(OSError, match="is no folder; give another --output.folder"):
        run.predict(task, data, return_predictions=False)
    assert not calls


def test_inference_options_average_views_and_change_losses_and_figures_alike(tmp_path):
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


def test_pictures_and_figures_go_to_the_logger(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, logger=logger, limit_train_batches=1, log_every_n_steps=1)
    run.fit(segmenter(pictures=3), Memory())
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert sorted(board.Tags()["images"]) == ["val/confusion", *(f"val/image {n}" for n in range(3))]
    assert {"val/mIoU", "val/loss", "train/cross_entropy"} <= set(board.Tags()["scalars"])
    written = json.loads((tmp_path / "lightning_logs" / "version_0" / "val" / "metrics.json").read_text())
    assert written["metrics"].keys() >= {"mIoU", "pixel_accuracy", "mean_Dice"}
    assert Image.open(tmp_path / "lightning_logs" / "version_0" / "val" / "confusion.png").size[0] > 100


def test_images_of_another_number_of_channels_are_an_error_before_training(tmp_path):
    task = SemanticSegmentation(backbone=TinyTrunk(1), head=lambda levels: FCN(levels, 3))
    with pytest.raises(ValueError, match="the images have 3 channels, the trunk takes 1"):
        trainer(tmp_path).fit(task, Memory())


def test_a_head_or_data_of_another_kind_is_an_error_before_training(tmp_path):
    with pytest.raises(ValueError, match="head is a Classifier, .*SemanticSegmentation takes heads for segm"):
        SemanticSegmentation(backbone=TinyTrunk(), head=lambda levels: Classifier(levels, 3))
    data = Memory()
    data.label_kinds, calls = ("detection",), []
    task = segmenter()
    task.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="model.head is a FCN, which learns masks; Memory has boxes: set"):
        trainer(tmp_path).fit(task, data)
    assert not calls
    data.label_kinds, data.listed = ("segmentation",), ()  # a module that says nothing about its classes
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(task, data)
    assert calls
