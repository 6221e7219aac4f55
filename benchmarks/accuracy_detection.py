"""Accuracy beside torchvision: both Faster R-CNNs with a ResNet-18 FPN, from scratch, on the same batches.

    python benchmarks/accuracy_detection.py --data BCCD_FOLDER --model trunkline
    python benchmarks/accuracy_detection.py --data BCCD_FOLDER --model torchvision
    python benchmarks/accuracy_detection.py --plot

BCCD_FOLDER holds images/{train,val} and annotations/instances_{train,val}.json. Both models see the same
images in the same order with the same augmentation, have the same widths, optimiser and schedule, and are
scored by the same COCO evaluation after every epoch. Neither uses pretrained weights. Each call trains one
model and writes its learning curve to benchmarks/results/; --plot draws all curves found there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl
import torch
import torchvision
from lightning_fabric.utilities import move_data_to_device
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from tqdm import tqdm

from common import curve_parser, environment, train_or_plot, with_metrics, write_result
from trunkline.backbones import FPN, ResNet
from trunkline.data.detection.module import CocoDetection
from trunkline.evaluation.detection.evaluator import CocoEvaluator
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import AnchorOptions, RoIOptions, RPNOptions
from trunkline.tasks.detection.task import Detection

RESULTS = Path(__file__).parent / "results"
ANCHOR_SIZES = (16, 32, 64, 128, 256)
RPN = {
    "batch_size": 128,
    "pre_nms_train": 500,
    "post_nms_train": 250,
    "pre_nms_test": 500,
    "post_nms_test": 250,
}
ROI = {"batch_size": 128, "hidden": 256}


class Trunkline(nn.Module):
    """Our detector behind the two calls that the loop below needs."""

    def __init__(self, classes: int, channels: int, short_side: int) -> None:
        super().__init__()
        self.task = Detection(
            backbone=ResNet(depth=18),
            neck=lambda trunk: FPN(trunk, channels=channels),
            head=lambda levels: FasterRCNN(
                levels,
                num_classes=classes,
                anchors=AnchorOptions(sizes=ANCHOR_SIZES),
                rpn=RPNOptions(**RPN),
                roi=RoIOptions(**ROI),
            ),
        )

    def loss(self, batch):
        raw = self.task.raw(batch.image, batch.image_sizes)
        return sum(self.task.head.losses(raw, batch).values())

    def detect(self, batch):
        rows = self.task.branch.predictions(self.task.raw(batch.image, batch.image_sizes), batch)
        return [(row["boxes"], row["scores"], row["labels"]) for row in rows]


class Torchvision(nn.Module):
    """torchvision's detector behind the same two calls, given the same images at the same size."""

    def __init__(self, classes: int, channels: int, short_side: int) -> None:
        super().__init__()
        trunk = torchvision.models.resnet18(weights=None)
        layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
        backbone = BackboneWithFPN(trunk, layers, [64, 128, 256, 512], channels)
        self.model = TorchvisionFasterRCNN(
            backbone,
            num_classes=None,
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in ANCHOR_SIZES), ((0.5, 1.0, 2.0),) * 5),
            rpn_batch_size_per_image=RPN["batch_size"],
            rpn_pre_nms_top_n_train=RPN["pre_nms_train"],
            rpn_post_nms_top_n_train=RPN["post_nms_train"],
            rpn_pre_nms_top_n_test=RPN["pre_nms_test"],
            rpn_post_nms_top_n_test=RPN["post_nms_test"],
            box_batch_size_per_image=ROI["batch_size"],
            box_head=TwoMLPHead(channels * 49, ROI["hidden"]),
            box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(
                ROI["hidden"], classes + 1
            ),
            # The data module has resized already: each image has this short side, so nothing changes.
            min_size=short_side,
            max_size=2 * short_side,
        )

    @staticmethod
    def images(batch):
        return [
            image[:, :height, :width].float() / 255
            for image, (height, width) in zip(batch.image, batch.image_sizes.tolist(), strict=True)
        ]

    def loss(self, batch):
        real = (batch.labels >= 0) & ~batch.crowd
        targets = [
            {"boxes": boxes[keep], "labels": labels[keep] + 1}
            for boxes, labels, keep in zip(batch.boxes, batch.labels, real, strict=True)
        ]
        return sum(self.model(self.images(batch), targets).values())

    def detect(self, batch):
        rows = []
        scales = (batch.original_sizes / batch.image_sizes).flip(1).repeat(1, 2)  # [B, 4] for x1 y1 x2 y2
        for each, scale in zip(self.model(self.images(batch)), scales, strict=True):
            rows.append((each["boxes"] * scale, each["scores"], each["labels"] - 1))
        return rows


@torch.no_grad()
def evaluate(model, data, device) -> dict[str, float]:
    """Return the 12 COCO metrics on the validation images."""
    model.eval()
    evaluator = CocoEvaluator(data.evaluation_truth("detection", "validate"))
    ids = torch.tensor([each.id for each in data.label_classes("detection")])
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, device)
        for image_id, (boxes, scores, labels) in zip(
            batch.image_ids.tolist(), model.detect(batch), strict=True
        ):
            evaluator.add(image_id, boxes.cpu(), scores.cpu(), ids[labels.cpu()])
    return evaluator.compute().metrics


def train(options) -> None:
    """Train one model and write its curve after every epoch, so that an interrupted run is of use."""
    pl.seed_everything(options.seed, workers=True)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = CocoDetection(
        root=options.data,
        batch_size=options.batch_size,
        eval_batch_size=8,
        workers=options.workers,
        short_side=options.short_side,
        long_side=2 * options.short_side,
        augment=[{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}],
        seed=options.seed,
    )
    data.prepare_data()
    data.setup("fit")
    classes = len(data.label_classes("detection"))
    kind = {"trunkline": Trunkline, "torchvision": Torchvision}[options.model]
    model = kind(classes, options.channels, options.short_side).to(device)
    loader = data.train_dataloader()
    steps = options.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=min(100, steps))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    curve = []
    for epoch in range(options.epochs):
        model.train()
        loader.sampler.set_epoch(epoch)
        total = 0.0
        for batch in tqdm(loader, desc=f"{options.model} epoch {epoch + 1}/{options.epochs}", leave=False):
            loss = model.loss(move_data_to_device(batch, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            cosine.step()
            warmup.step()
            total += loss.item()
        metrics = evaluate(model, data, device) if (epoch + 1) % options.evaluate_every == 0 else None
        row = {"epoch": epoch + 1, "train_loss": total / len(loader)}
        curve.append({**row, **({"metrics": metrics} if metrics else {})})
        scored = f", AP50 {metrics['AP50']:.4f}, AP {metrics['AP']:.4f}" if metrics else ""
        print(f"{options.model} epoch {epoch + 1}: loss {row['train_loss']:.3f}{scored}", flush=True)
        settings = {k: v for k, v in vars(options).items() if k not in ("data", "plot", "tag")}
        write_result(
            RESULTS / f"accuracy_detection_{options.model}{options.tag}.json",
            {"settings": settings, "environment": environment(), "curve": curve},
        )


def plot() -> None:
    """Draw AP50 and AP over epochs of every curve in the results folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for path in sorted(RESULTS.glob("accuracy_detection_*.json")):
        result = json.loads(path.read_text())
        scored = with_metrics(result)
        label = path.stem.removeprefix("accuracy_detection_").replace("_", " ")
        for axis, name in zip(axes, ("AP50", "AP"), strict=True):
            axis.plot(
                [r["epoch"] for r in scored], [r["metrics"][name] for r in scored], marker=".", label=label
            )
            axis.set(xlabel="epoch", ylabel=f"{name} on the validation images")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Faster R-CNN R18-FPN from scratch on BCCD: same batches, widths, optimiser and schedule")
    figure.savefig(RESULTS / "accuracy_detection.png", dpi=120)
    print(RESULTS / "accuracy_detection.png")


def main() -> None:
    parser = curve_parser(__doc__, "folder in COCO format", ("trunkline", "torchvision"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--evaluate-every", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--short-side", type=int, default=224)
    parser.add_argument("--channels", type=int, default=64, help="width of the FPN")
    parser.add_argument("--lr", type=float, default=5e-4)
    train_or_plot(parser, train, plot)


if __name__ == "__main__":
    main()
