"""Accuracy beside a peer: two U-Nets for scans, from scratch, on the same patches.

    python benchmarks/accuracy_scans.py --data HIPPOCAMPUS_FOLDER --model trunkline
    python benchmarks/accuracy_scans.py --data HIPPOCAMPUS_FOLDER --model dynunet
    python benchmarks/accuracy_scans.py --plot

HIPPOCAMPUS_FOLDER holds images/{train,val}, labels/{train,val} and classes.txt (Medical Segmentation
Decathlon, Task04). ``trunkline`` is our U-Net on a residual encoder, ``dynunet`` MONAI's DynUNet with
residual blocks: the same stages, widths, strides, norm and deep supervision. Both see the same patches in
the same order, have the same augmentation, optimiser, schedule and loss, and are scored by the same sliding
window on whole scans, each on its own grid. Each call trains one model and writes its learning curve, at the
end a table of cases and pictures of slices, to benchmarks/results/; --plot draws all curves found there.

nnU-Net is published with a mean Dice of about 0.89 to 0.90 over five folds of the whole training set (260
scans), after 250,000 steps of nine patches: another split and another budget.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import nn
from tqdm import tqdm

from common import curve_parser, environment, train_or_plot, with_metrics, write_result
from trunkline.backbones import ResidualEncoder
from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.data.scans.formats.files import read_scan
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.evaluation.pictures.boxes import contact_sheet, save_picture
from trunkline.evaluation.pictures.volumes import slice_picture
from trunkline.evaluation.volumes.evaluator import VolumeEvaluator
from trunkline.heads import UNet
from trunkline.heads.segmentation.base import RawSegmentation, SegmentationHead
from trunkline.heads.segmentation.losses import CrossEntropy, Dice, WeightedSum
from trunkline.tasks.volumes.inference import VolumeInference
from trunkline.tasks.volumes.task import VolumeSegmentation

RESULTS = Path(__file__).parent / "results"
MODELS = ("trunkline", "dynunet")
STRIDES = [1, 2, 2, 2]


class NoTrunk(Backbone):
    """Hands the image on, for heads that are whole networks."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = (FeatureLevel(1, (1, 1, 1)),)

    def forward(self, image):
        return [image]


class DynUNetHead(SegmentationHead):
    """MONAI's network behind our head's contract, so that loss and inference are the same for both."""

    def __init__(self, levels, classes: int, channels: list[int], loss) -> None:
        from monai.networks.nets import DynUNet

        super().__init__(levels, classes, loss=loss)
        self.network = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=classes,
            kernel_size=[3] * len(channels),
            strides=STRIDES,
            upsample_kernel_size=STRIDES[1:],
            filters=channels,
            norm_name=("INSTANCE", {"affine": True}),
            deep_supervision=True,
            deep_supr_num=len(channels) - 2,
            res_block=True,
        )

    def auxiliary_weight(self, index: int) -> float:
        return 0.5 ** (index + 1)

    def forward(self, features, image_size):
        scores = self.network(features[0])
        if scores.ndim == 5:  # outside of training: the finest scale alone
            return RawSegmentation(scores, ())
        return RawSegmentation(scores[:, 0], tuple(scores[:, 1:].unbind(1)))  # [B, scales, K, *S]


def build(name: str, classes: int, channels: list[int], blocks: list[int]) -> VolumeSegmentation:
    loss = WeightedSum([CrossEntropy(), Dice(include_background=False)])
    inference = VolumeInference(overlap=0.5)
    if name == "dynunet":
        return VolumeSegmentation(
            backbone=NoTrunk(), head=lambda x: DynUNetHead(x, classes, channels, loss), inference=inference
        )
    trunk = ResidualEncoder(ndim=3, in_channels=1, channels=channels, blocks=blocks, strides=STRIDES)
    return VolumeSegmentation(
        backbone=trunk,
        head=lambda levels: UNet(
            levels,
            classes,
            channels=channels[-2::-1],
            convs=2,
            upsampling="transposed",
            norm="instance",
            activation="leaky_relu",
            deep_supervision=True,
            loss=loss,
        ),
        inference=inference,
    )


def augment() -> list[dict]:
    """nnU-Net's kinds without mirroring: anterior and posterior, medial and lateral mean something here."""
    return [
        {
            "RandAffine": {
                "prob": 0.4,
                "rotate_range": [0.3, 0.3, 0.3],
                "scale_range": [0.2, 0.2, 0.2],
            }
        },
        {"RandGaussianNoise": {"prob": 0.1, "std": 0.1}},
        {"RandGaussianSmooth": {"prob": 0.1}},
        {"RandScaleIntensity": {"prob": 0.15, "factors": 0.25}},
        {"RandAdjustContrast": {"prob": 0.15, "gamma": [0.7, 1.5]}},
    ]


def regions(data) -> dict[str, tuple[int, ...]]:
    return {c.name: (k,) for k, c in enumerate(data.label_classes("segmentation")) if k}


@torch.no_grad()
def evaluate(model, data, surfaces: bool, pictures: Path | None = None):
    """Return the metrics on the whole validation scans; draw the first and the worst of them if asked to."""
    model.eval()
    evaluator = VolumeEvaluator(regions(data), surfaces=surfaces)
    kept = {}
    for case in data.val_dataloader():
        mask = model.segment(case.image, case.placement)
        evaluator.add(case.case.name, mask, case.truth, case.placement.grid.spacing)
        if pictures is not None:
            kept[case.case.name] = (case, mask)
    result = evaluator.compute()
    if pictures is not None:
        shown = [*list(kept)[:3], *result.worst_cases(3)]
        save_picture(pictures, contact_sheet([draw(*kept[name], data) for name in dict.fromkeys(shown)], 2))
    return result


def draw(case, mask, data):
    scan = read_scan(case.case.images[0])
    colours = np.array([c.colour for c in data.label_classes("segmentation")], dtype=np.uint8)
    names = [c.name for c in data.label_classes("segmentation")]
    return slice_picture(
        scan.voxels[0], mask, case.truth, names, colours, scan.grid.spacing, affine=scan.grid.affine
    )


def train(options) -> None:
    """Train one model and write its curve after every evaluation, so that an interrupted run is of use."""
    pl.seed_everything(options.seed, workers=True)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = ScanSegmentation(
        root=str(options.data),
        preparation=Preparation(spacing=[1.0, 1.0, 1.0]),
        patch=options.patch,
        batch_size=options.batch_size,
        steps_per_epoch=options.steps_per_epoch,
        augment=augment(),
        cache="memory",
        workers=options.workers,
        seed=options.seed,
    )
    data.prepare_data()
    data.setup("fit")
    classes = len(data.label_classes("segmentation"))
    model = build(options.model, classes, options.channels, options.blocks).to(device)
    model.branch.patch = list(options.patch)
    steps = options.epochs * options.steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    loader = data.train_dataloader()
    name, curve, began = f"accuracy_scans_{options.model}{options.tag}", [], time.process_time()
    for epoch in range(1, options.epochs + 1):
        total = train_epoch(model, loader, epoch, optimizer, schedule, device, options)
        row = {"epoch": epoch, "train_loss": total / len(loader), "cpu_seconds": time.process_time() - began}
        last = epoch == options.epochs
        if last or epoch % options.evaluate_every == 0:
            result = evaluate(model, data, surfaces=last, pictures=RESULTS / f"{name}.jpg" if last else None)
            row["metrics"] = result.metrics
            row["classes"] = result.as_dict()["classes"]
            print(
                f"{options.model} epoch {epoch}: loss {row['train_loss']:.3f}, {result.metrics}", flush=True
            )
            if last:
                result.write_csv(RESULTS / f"{name}.csv")
        curve.append(row)
        settings = {k: v for k, v in vars(options).items() if k not in ("data", "plot", "tag")}
        parameters = sum(p.numel() for p in model.parameters())
        written = {
            "settings": settings,
            "parameters": parameters,
            "environment": environment(),
            "curve": curve,
        }
        write_result(RESULTS / f"{name}.json", written)


def train_epoch(model, loader, epoch, optimizer, schedule, device, options) -> float:
    """Return the summed losses of one pass over ``loader``."""
    model.train()
    loader.sampler.set_epoch(epoch - 1)
    total = 0.0
    for batch in tqdm(loader, desc=f"{options.model} epoch {epoch}/{options.epochs}", leave=False):
        batch = move_data_to_device(batch, device)
        losses = model.head.losses(model.raw(batch.image, batch.image_sizes), batch)
        loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12)
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total


def plot() -> None:
    """Draw training loss and mean Dice over epochs of every curve in the results folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    colours = dict(zip(MODELS, ("tab:blue", "tab:orange"), strict=True))
    for path in sorted(RESULTS.glob("accuracy_scans_*.json")):
        result = json.loads(path.read_text())
        name, seed = result["settings"]["model"], result["settings"]["seed"]
        rows, scored = result["curve"], with_metrics(result)
        style = {
            "color": colours[name],
            "linestyle": ("-", "--", ":")[seed % 3],
            "label": f"{name}, seed {seed}",
        }
        axes[0].plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], **style)
        axes[1].plot([r["epoch"] for r in scored], [r["metrics"]["mean_Dice"] for r in scored], **style)
    axes[0].set(xlabel="epoch", ylabel="training loss with auxiliary maps (dynunet 2, trunkline 1)")
    axes[1].set(xlabel="epoch", ylabel="mean Dice on the validation scans")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("U-Nets from scratch on the hippocampus: same patches, loss, optimiser and schedule")
    figure.savefig(RESULTS / "accuracy_scans.png", dpi=120)
    print(RESULTS / "accuracy_scans.png")


def main() -> None:
    parser = curve_parser(__doc__, "folder with images/, labels/ and classes.txt", MODELS)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--steps-per-epoch", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40], help="voxels")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 1, 1, 1], help="of the residual encoder")
    parser.add_argument("--lr", type=float, default=2e-3)
    train_or_plot(parser, train, plot)


if __name__ == "__main__":
    main()
