"""Time and memory of Faster R-CNN R50-FPN, training and inference, beside torchvision's own.

    python benchmarks/speed_detection.py

Both networks have the same random weights, made so that there are about as many proposals and detections as a
trained detector has, the same images and the same objects. torchvision gets float images at their final size,
so its resizing does nothing. Before anything is timed, detections must be equal, and so must training losses:
of all boxes, as the two would sample others.

On a CPU: 480x640 pixels, batch 1 and 2. On a GPU: 800x1344, batch 16, 8, 2 and 1, bf16 autocast on both
sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, box_iou

from pairs import Pair, bench_parser, run_pairs
from trunkline.backbones import FPN, ResNet, load_weights
from trunkline.data.detection.batches import DetectionBatch
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import RoIOptions, RPNOptions
from trunkline.tasks.base.compilation import Compile, TrainingStep
from trunkline.tasks.base.task import training_losses
from trunkline.tasks.detection.task import Detection

CLASSES = 90  # as many as torchvision's detectors have
PEER = f"torchvision {torchvision.__version__}"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of one comparison."""

    batch: int
    size: tuple[int, int]
    objects: int = 10

    def described(self) -> dict[str, Any]:
        precision = "bf16 autocast" if DEVICE == "cuda" else "float32"
        return {"batch": self.batch, "size": list(self.size), "objects": self.objects, "precision": precision}


def spread_weights(model: nn.Module) -> None:
    """Give a detector of torchvision random weights with which features, scores and boxes vary a lot."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(std=0.1, generator=generator)
            elif ".bn3." in name or "downsample.1" in name:
                value.uniform_(0.3, 0.6, generator=generator)
            elif value.ndim == 1:
                value.uniform_(0.8, 1.2, generator=generator)
            else:
                value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        model.rpn.head.cls_logits.weight.mul_(0.1)  # torchvision's sigmoid makes large logits equal
        model.rpn.head.bbox_pred.weight.mul_(0.05)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.2)
        # Inputs are never negative; rows that sum to 0 keep one class from winning everywhere.
        scores = model.roi_heads.box_predictor.cls_score.weight
        scores.sub_(scores.mean(1, keepdim=True)).mul_(0.6)


def peer_network(size: tuple[int, int], **options: Any) -> nn.Module:
    """torchvision's detector with its usual frozen parts."""
    trunk = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = TorchvisionFasterRCNN(
        trunk, num_classes=CLASSES + 1, min_size=min(size), max_size=max(size), **options
    )
    spread_weights(model)
    return model.to(DEVICE)


def our_network(peer: nn.Module, sampled: int | None = None) -> Detection:
    """Our detector with torchvision's weights; with ``sampled`` it learns from that many boxes per image."""
    rpn, roi = RPNOptions(), RoIOptions()
    if sampled is not None:
        rpn = RPNOptions(batch_size=sampled, positive_fraction=1.0)
        roi = RoIOptions(batch_size=sampled, positive_fraction=1.0)
    task = Detection(
        backbone=ResNet(50, norm="frozen_batch", frozen_stages=2),
        neck=lambda trunk: FPN(trunk, channels=256),
        head=lambda levels: FasterRCNN(levels, CLASSES, rpn=rpn, roi=roi),
        channels_last=True,
    )
    report = load_weights(task, peer.state_dict())
    assert report.fraction == 1 and not report.missing and not report.skipped
    return task.to(DEVICE)


def example(setting: Setting) -> DetectionBatch:
    """Blobs of colour, and objects anywhere."""
    generator = torch.Generator().manual_seed(1)
    height, width = setting.size
    coarse = torch.rand(setting.batch, 3, height // 16, width // 16, generator=generator)
    image = nn.functional.interpolate(coarse, setting.size, mode="bicubic").clamp(0, 1)
    corner = torch.rand(setting.batch, setting.objects, 2, generator=generator) * 0.7
    extent = 0.1 + 0.2 * torch.rand(setting.batch, setting.objects, 2, generator=generator)
    boxes = torch.cat([corner, corner + extent], dim=-1) * torch.tensor([width, height, width, height])
    sizes = torch.tensor([setting.size] * setting.batch)
    batch = DetectionBatch(
        image=(image * 255).round().to(torch.uint8),
        image_sizes=sizes,
        boxes=boxes,
        labels=torch.randint(CLASSES, boxes.shape[:2], generator=generator),
        crowd=torch.zeros(boxes.shape[:2], dtype=torch.bool),
        image_ids=torch.arange(setting.batch),
        original_sizes=sizes,
    )
    return move_data_to_device(batch, DEVICE)


def as_theirs(batch: DetectionBatch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The same images and objects as torchvision wants them."""
    targets = [
        {"boxes": boxes, "labels": labels + 1}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    return list(batch.image.float() / 255), targets


def autocast() -> contextlib.AbstractContextManager:
    """bf16 on a GPU; nothing on the CPU."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Convolutions and products in float32 on a GPU too, whose default is TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield  # products of matrices do not take TF32 by default


# -- inference


def unmatched(ours: Any, theirs: list[dict[str, Tensor]]) -> float:
    """Largest share, over the images, of detections that the other side does not have."""
    shares = []
    for image, wanted in enumerate(theirs):
        number = int(ours.count[image])
        same = ours.labels[image, :number, None] == wanted["labels"] - 1
        same &= (ours.scores[image, :number, None] - wanted["scores"]).abs() < 5e-3
        same &= box_iou(ours.boxes[image, :number], wanted["boxes"]) > 0.98
        shares += [1 - float(same.any(axis).float().mean()) for axis in (0, 1)]
    print(f"  {number} and {len(wanted['boxes'])} detections in the last image")
    return max(shares)


def inference(setting: Setting, optimised: bool, target: float | None, backend: str | None = None) -> Pair:
    """Images at their final size to boxes; with ``backend`` through ``torch.compile``."""
    peer = peer_network(setting.size).eval()
    task = our_network(peer).eval()
    if optimised:
        task = task.optimised()
    network = task if backend is None else torch.compile(task, dynamic=False, backend=backend)
    batch = example(setting)
    images, _ = as_theirs(batch)

    @torch.inference_mode()
    def ours() -> Any:
        with autocast():
            return network(batch.image, batch.image_sizes)

    @torch.inference_mode()
    def theirs() -> list[dict[str, Tensor]]:
        with autocast():
            return peer(images)

    def difference(mine: Any, others: list[dict[str, Tensor]]) -> float:
        if DEVICE == "cpu":
            return unmatched(mine, others)
        with torch.inference_mode(), exact():
            alike = unmatched(task(batch.image, batch.image_sizes), peer(images))
        return max(alike, unmatched(mine, others) / 10)

    agrees_on = "share of detections that the other lacks (label, score within 0.005, IoU over 0.98)"
    return Pair(
        name=f"inference, batch {setting.batch}"
        + (", optimised()" if optimised else "")
        + (", compiled" if backend else ""),
        peer=PEER,
        ours=ours,
        theirs=theirs,
        difference=difference,
        tolerance=0.03 if DEVICE == "cpu" else 0.06,
        agrees_on=agrees_on
        if DEVICE == "cpu"
        else f"in float32, the {agrees_on}; in bf16, a tenth of that share",
        settings=setting.described(),
        target=target,
    )


# -- training


def loss_difference(setting: Setting) -> float:
    """Largest relative difference of the four losses over all anchors and proposals of smaller images."""
    small = Setting(1, (128, 160), objects=3)
    every = 100_000
    sampling = {f"{stage}_batch_size_per_image": every for stage in ("rpn", "box")}
    shares = {f"{stage}_positive_fraction": 1.0 for stage in ("rpn", "box")}
    peer = peer_network(small.size, **sampling, **shares).train()
    task = our_network(peer, every).train()
    batch = example(small)
    with torch.no_grad(), exact():
        losses = task.head.losses(task.raw(batch.image, batch.image_sizes), batch)
        expected = peer(*as_theirs(batch))
    names = {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
    names |= {"roi_class": "loss_classifier", "roi_box": "loss_box_reg"}
    return max(float((losses[a] - expected[b]).abs() / expected[b].abs()) for a, b in names.items())


def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step: losses, gradients, SGD with momentum."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            total = loss()
        total.backward()
        optimizer.step()

    return run


def training(
    setting: Setting, target: float | None, peak_target: float | None, mode: Compile = False
) -> Pair:
    """One step of SGD; ``mode`` as ``model.compile``."""
    peer = peer_network(setting.size).train()
    task = our_network(peer).train()
    batch = example(setting)
    images, targets = as_theirs(batch)
    losses = TrainingStep(training_losses, mode)

    def ours() -> Tensor:
        return sum(losses(task, batch).values())

    def theirs() -> Tensor:
        return sum(peer(images, targets).values())

    return Pair(
        name=f"training step, batch {setting.batch}" + (f", compile {mode}".lower() if mode else ""),
        peer=PEER,
        ours=step(task, ours),
        theirs=step(peer, theirs),
        difference=lambda *_: loss_difference(setting),
        tolerance=1e-3,
        agrees_on="relative difference of losses without sampling",
        settings=setting.described(),
        target=target,
        peak_target=peak_target,
    )


def pairs() -> Iterator[Pair]:
    if DEVICE == "cpu":
        size = (480, 640)
        yield inference(Setting(1, size), False, None)
        yield inference(Setting(1, size), True, 1.4)
        yield training(Setting(2, size), 1.15, None)
        return
    size = (800, 1344)
    yield training(Setting(16, size), 2.5, 0.75)
    yield training(Setting(2, size), None, None)
    yield inference(Setting(8, size), False, None)
    yield inference(Setting(8, size), True, 2.5)
    yield inference(Setting(1, size), True, 1.5)


def main() -> None:
    options = bench_parser(__doc__, repeats=9).parse_args()
    what = "Faster R-CNN R50-FPN from images on the device to detections, or to changed weights"
    run_pairs("detection", what, pairs(), options)


if __name__ == "__main__":
    main()
