"""Accuracy beside peers: three segmenters on a ResNet-18, from scratch, on the same batches.

    python benchmarks/accuracy_segmentation.py --data CAMVID_FOLDER --model trunkline
    python benchmarks/accuracy_segmentation.py --data CAMVID_FOLDER --model torchvision
    python benchmarks/accuracy_segmentation.py --data CAMVID_FOLDER --model smp-unet
    python benchmarks/accuracy_segmentation.py --plot

CAMVID_FOLDER holds images/{train,val}, masks/{train,val} and classes.txt. ``trunkline`` is our FCN on our
ResNet-18, ``torchvision`` its FCN head on its ResNet-18, both with an auxiliary classifier on C4 and output
stride 32 (torchvision's ResNet-18 cannot be dilated), ``smp-unet`` the U-Net of segmentation_models_pytorch,
which has another decoder and no auxiliary classifier; ``trunkline-unet`` is our U-Net. All see the same crops
in the same order, have the same optimiser, schedule and loss, and are scored on whole images by the same
metrics. None uses pretrained weights. Each call trains one model and writes its learning curve to
benchmarks/results/; --plot draws all curves found there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning_fabric.utilities import move_data_to_device
from torch import nn
from tqdm import tqdm

from common import curve_parser, environment, train_or_plot, with_metrics, write_result
from trunkline.backbones import ResNet
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.evaluation.segmentation.evaluator import SegmentationEvaluator
from trunkline.heads import FCN, UNet
from trunkline.tasks.segmentation.task import SemanticSegmentation

RESULTS = Path(__file__).parent / "results"
AUX_WEIGHT = 0.5
MODELS = ("trunkline", "torchvision", "smp-unet", "trunkline-unet")


class Trunkline(nn.Module):
    """Our segmenter behind the two calls that the loop below needs."""

    def __init__(self, classes: int, unet: bool = False) -> None:
        super().__init__()

        def head(levels):
            return UNet(levels, classes) if unet else FCN(levels, classes, aux=-2, aux_weight=AUX_WEIGHT)

        self.task = SemanticSegmentation(backbone=ResNet(depth=18), head=head)

    def loss(self, batch):
        raw = self.task.raw(batch.image, batch.image_sizes)
        return sum(self.task.head.losses(raw, batch).values())

    def logits(self, batch):
        return self.task.raw(batch.image, batch.image_sizes).logits


class Peer(nn.Module):
    """A peer's network behind the same two calls, given images normalised alike."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def outputs(self, batch):
        image = (batch.image.float() / 255 - self.mean) / self.std
        scores = self.model(image)
        return scores if isinstance(scores, dict) else {"out": scores}

    def loss(self, batch):
        weights = {"out": 1.0, "aux": AUX_WEIGHT}
        mask = batch.mask.long()
        return sum(
            weights[name] * F.cross_entropy(logits, mask, ignore_index=255)
            for name, logits in self.outputs(batch).items()
        )

    def logits(self, batch):
        return self.outputs(batch)["out"]


def torchvision_fcn(classes: int) -> nn.Module:
    """torchvision's FCN as its ``fcn_resnet50`` is built, on its ResNet-18."""
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN as TorchvisionFCN
    from torchvision.models.segmentation.fcn import FCNHead

    trunk = IntermediateLayerGetter(resnet18(weights=None), {"layer4": "out", "layer3": "aux"})
    return TorchvisionFCN(trunk, FCNHead(512, classes), FCNHead(256, classes))


def smp_unet(classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=classes)


def build(name: str, classes: int) -> nn.Module:
    if name.startswith("trunkline"):
        return Trunkline(classes, unet=name.endswith("unet"))
    return Peer(torchvision_fcn(classes) if name == "torchvision" else smp_unet(classes))


@torch.no_grad()
def evaluate(model, data, device, padding: str | None = "replicate"):
    """Return the metrics on the whole validation images.

    CamVid's images have 360 and 480 pixels a side, not all multiples of the coarsest stride, 32, as smp's
    U-Net demands. So every model gets them with a border to the right and below, whose scores are cut off.

    Args:
        padding: ``replicate`` or ``constant`` (zero, the mean colour), what the border shows; None for none.
    """
    model.eval()
    evaluator = SegmentationEvaluator([c.name for c in data.label_classes("segmentation")])
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, device)
        height, width = batch.image.shape[2:]
        if padding is not None:
            border = (0, -width % 32, 0, -height % 32)
            if padding == "replicate":
                batch.image_sizes = batch.image_sizes + torch.tensor([border[3], border[1]], device=device)
            batch.image = F.pad(batch.image.float(), border, mode=padding).to(torch.uint8)
        predicted = model.logits(batch)[:, :, :height, :width].argmax(1)
        for labels, truth in zip(predicted, batch.truth, strict=True):
            evaluator.add(labels, truth)
    return evaluator.compute()


def augment(options) -> list[dict]:
    """Random scales, flips, colours and crops, as albumentations names them."""
    side = options.crop
    return [
        {"RandomScale": {"scale_limit": [-0.6, 0.0], "p": 1.0}},
        {"HorizontalFlip": {"p": 0.5}},
        {"ColorJitter": {"p": 0.5}},
        {"RandomCrop": {"height": side, "width": side, "pad_if_needed": True, "fill": [124, 116, 104]}},
    ]


def train(options) -> None:
    """Train one model and write its curve after every evaluation, so that an interrupted run is of use."""
    pl.seed_everything(options.seed, workers=True)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = ImageSegmentation(
        root=str(options.data),
        ignore=["Unlabelled"],
        batch_size=options.batch_size,
        eval_batch_size=4,
        workers=options.workers,
        augment=augment(options),
        seed=options.seed,
    )
    data.prepare_data()
    data.setup("fit")
    model = build(options.model, len(data.label_classes("segmentation"))).to(device)
    loader = data.train_dataloader()
    steps = options.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    curve = []
    for epoch in range(1, options.epochs + 1):
        model.train()
        loader.sampler.set_epoch(epoch - 1)
        total = 0.0
        for batch in tqdm(loader, desc=f"{options.model} epoch {epoch}/{options.epochs}", leave=False):
            loss = model.loss(move_data_to_device(batch, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        row = {"epoch": epoch, "train_loss": total / len(loader)}
        if epoch % options.evaluate_every == 0 or epoch == options.epochs:
            result = evaluate(model, data, device)
            row["metrics"] = result.metrics
            row["IoU"] = {each.name: each.metrics["IoU"] for each in result.per_class}
            scored = f"mIoU {result.metrics['mIoU']:.4f}, pixels {result.metrics['pixel_accuracy']:.4f}"
            print(f"{options.model} epoch {epoch}: loss {row['train_loss']:.3f}, {scored}", flush=True)
            if epoch == options.epochs and options.model == "trunkline":
                row["by_padding"] = {
                    str(padding): evaluate(model, data, device, padding).metrics
                    for padding in (None, "constant", "replicate")
                }
        curve.append(row)
        if "metrics" not in row:
            continue
        settings = {k: v for k, v in vars(options).items() if k not in ("data", "plot", "tag")}
        parameters = sum(p.numel() for p in model.parameters())
        write_result(
            RESULTS / f"accuracy_segmentation_{options.model}{options.tag}.json",
            {
                "settings": settings,
                "parameters": parameters,
                "environment": environment(),
                "curve": curve,
            },
        )


def plot() -> None:
    """Draw mIoU and pixel accuracy over epochs of every curve in the results folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    colours = dict(zip(MODELS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    for path in sorted(RESULTS.glob("accuracy_segmentation_*.json")):
        result = json.loads(path.read_text())
        scored = with_metrics(result)
        name, seed = result["settings"]["model"], result["settings"]["seed"]
        for axis, key in zip(axes, ("mIoU", "pixel_accuracy"), strict=True):
            axis.plot(
                [row["epoch"] for row in scored],
                [row["metrics"][key] for row in scored],
                color=colours[name],
                linestyle=("-", "--", ":")[seed % 3],
                label=f"{name}, seed {seed}",
            )
            axis.set(xlabel="epoch", ylabel=f"{key.replace('_', ' ')} on the validation images")
            axis.grid(alpha=0.3)
    axes[1].legend()
    figure.suptitle("ResNet-18 segmenters from scratch on CamVid: same crops, loss, optimiser and schedule")
    figure.savefig(RESULTS / "accuracy_segmentation.png", dpi=120)
    print(RESULTS / "accuracy_segmentation.png")


def main() -> None:
    parser = curve_parser(__doc__, "folder with images/, masks/ and classes.txt", MODELS)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop", type=int, default=160, help="side of the training crops, in pixels")
    parser.add_argument("--lr", type=float, default=1e-3)
    train_or_plot(parser, train, plot)


if __name__ == "__main__":
    main()
