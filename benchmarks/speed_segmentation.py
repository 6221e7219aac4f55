"""Training steps and inference of segmenters, beside torchvision and segmentation_models_pytorch.

    python benchmarks/speed_segmentation.py
    python benchmarks/speed_segmentation.py --only FCN

FCN beside torchvision's: the same network on the same weights, whose scores and training losses are equal.
Our inference runs as trained, and as the copy of ``optimised``. U-Net beside that of
segmentation_models_pytorch on the same ResNet: widths and blocks are the same, but the peer also appends the
map of the stem; each row's note says how many operations either takes. (Its FPN has no convolutions on the
pyramid and takes 0.6 of the operations of ours: nothing to compare.)

On a CPU: ResNet-18, crops of 256 pixels, batch 4, and pictures of 480x640; on a GPU: ResNet-50, crops of 512,
batch 16, 512x1024, bf16 autocast.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import torchvision
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN as TorchvisionFCN
from torchvision.models.segmentation.fcn import FCNHead

from pairs import Pair, bench_parser, run_pairs
from trunkline.backbones import ResNet, load_weights
from trunkline.data.segmentation.batches import SegmentationBatch
from trunkline.heads import FCN, UNet
from trunkline.tasks.segmentation.task import SemanticSegmentation

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CLASSES = 21
DEPTH, STRIDE, WIDTH = (
    (50, 8, 2048) if GPU else (18, 32, 512)
)  # torchvision dilates its FCNs from ResNet-50 on
CROP, BATCH, PICTURE = ((512, 512), 16, (512, 1024)) if GPU else ((256, 256), 4, (480, 640))
TORCHVISION = f"torchvision {torchvision.__version__}"
AUX_WEIGHT = 0.5


@dataclasses.dataclass
class Side:
    """One network behind the calls that are timed.

    Attributes:
        network: to train or to run.
        scores: of a batch, the main ones and those of an auxiliary classifier, if it has one.
    """

    network: nn.Module
    scores: Callable[[nn.Module, SegmentationBatch], tuple[Tensor, ...]]


def precision() -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if GPU else contextlib.nullcontext()


def batch_of(size: tuple[int, int], count: int) -> SegmentationBatch:
    """Random pictures and masks, with every twentieth pixel to ignore."""
    torch.manual_seed(1)
    image = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    mask = torch.randint(0, CLASSES, (count, *size), dtype=torch.uint8)
    mask[torch.rand(mask.shape) < 0.05] = 255
    sizes = torch.tensor([size] * count)
    batch = SegmentationBatch(
        image=image, image_sizes=sizes, mask=mask, image_ids=torch.arange(count), original_sizes=sizes
    )
    return move_data_to_device(batch, DEVICE)


# -- the networks


def ours(head, output_stride: int = 32) -> SemanticSegmentation:
    torch.manual_seed(0)
    trunk = ResNet(DEPTH, output_stride=output_stride)
    return SemanticSegmentation(backbone=trunk, head=head).to(DEVICE)


def our_scores(task: SemanticSegmentation, batch: SegmentationBatch) -> tuple[Tensor, ...]:
    raw = task.raw(batch.image, batch.image_sizes)
    return (raw.logits, *raw.aux)


def normalised(batch: SegmentationBatch) -> Tensor:
    """Do what our task does to pictures."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torchvision.transforms.functional.normalize(batch.image.float() / 255, mean, std)


def their_scores(network: nn.Module, batch: SegmentationBatch) -> tuple[Tensor, ...]:
    scores = network(normalised(batch))
    return tuple(scores.values()) if isinstance(scores, dict) else (scores,)


def torchvision_fcn() -> nn.Module:
    """torchvision's FCN as its ``fcn_resnet50`` is built, on the ResNet of the setting."""
    torch.manual_seed(0)
    dilation = [False, True, True] if STRIDE == 8 else None
    trunk = getattr(torchvision.models, f"resnet{DEPTH}")(replace_stride_with_dilation=dilation)
    levels = IntermediateLayerGetter(trunk, {"layer4": "out", "layer3": "aux"})
    return TorchvisionFCN(levels, FCNHead(WIDTH, CLASSES), FCNHead(WIDTH // 2, CLASSES)).to(DEVICE)


def without_dropout(network: nn.Module) -> nn.Module:
    """Leave out what draws random numbers, which differ between two networks."""
    for part in network.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
    return network


# -- what is timed


def step(side: Side, batch: SegmentationBatch, loss) -> Callable[[], Tensor]:
    """Forward, loss and backward; returns the loss."""
    side.network.train()

    def run() -> Tensor:
        side.network.zero_grad(set_to_none=True)
        with precision():
            value = loss(side.scores(side.network, batch), batch)
        value.backward()
        return value.detach()

    return run


def plain_loss(scores: tuple[Tensor, ...], batch: SegmentationBatch) -> Tensor:
    """Cross-entropy as in torchvision's references/segmentation/train.py."""
    mask = batch.mask.long()
    costs = [F.cross_entropy(x, mask, ignore_index=255) for x in scores]
    return costs[0] if len(costs) == 1 else costs[0] + AUX_WEIGHT * costs[1]


def our_step(task: SemanticSegmentation, batch: SegmentationBatch) -> Callable[[], Tensor]:
    """Forward, losses of the head and backward."""
    task.train()

    def run() -> Tensor:
        task.zero_grad(set_to_none=True)
        with precision():
            raw = task.raw(batch.image, batch.image_sizes)
        value = sum(task.head.losses(raw, batch).values())
        value.backward()
        return value.detach()

    return run


def inference(side: Side, batch: SegmentationBatch) -> Callable[[], Tensor]:
    """Run and return the scores."""
    side.network.eval()

    @torch.inference_mode()
    def run() -> Tensor:
        with precision():
            return side.scores(side.network, batch)[0].float()

    return run


def flops(side: Side, batch: SegmentationBatch) -> float:
    """Billions of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        side.scores(side.network.eval(), batch)
    return counter.get_total_flops() / 1e9


def share(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((mine - theirs).abs().max() / theirs.abs().max())


# -- the rows


def settings(batch: SegmentationBatch) -> dict:
    return {
        "trunk": f"ResNet-{DEPTH}",
        "batch": len(batch),
        "size": list(batch.image.shape[2:]),
        "classes": CLASSES,
        "precision": "bf16 autocast" if GPU else "float32",
    }


def fcn_pairs() -> Iterator[Pair]:
    peer = Side(without_dropout(torchvision_fcn()), their_scores)
    task = without_dropout(
        ours(lambda levels: FCN(levels, CLASSES, aux=-2, aux_weight=AUX_WEIGHT), output_stride=STRIDE)
    )
    load_weights(task, peer.network.state_dict())
    batch = batch_of(CROP, BATCH)
    common = {"difference": share, "tolerance": 3e-2 if GPU else 1e-4}
    yield Pair(
        "FCN, training step",
        TORCHVISION,
        our_step(task, batch),
        step(peer, batch, plain_loss),
        agrees_on="loss, as a share",
        settings=settings(batch),
        note="With the auxiliary classifier, without dropout and optimiser.",
        **common,
    )
    batch = batch_of(PICTURE, 1)
    theirs = inference(peer, batch)
    rows = {"as trained": task.eval(), "optimised": task.optimised()}
    for name, network in rows.items():
        yield Pair(
            f"FCN, inference, {name}",
            TORCHVISION,
            inference(Side(network, our_scores), batch),
            theirs,
            agrees_on="scores, as a share of the largest",
            settings=settings(batch),
            note="From uint8 pictures to scores, the auxiliary ones too.",
            **common,
        )


def unet_pairs() -> Iterator[Pair]:
    """Two decoders of a kind, which agree in their arithmetic alone."""
    import segmentation_models_pytorch as smp  # not on every machine with a GPU

    name = f"segmentation_models_pytorch {smp.__version__}"
    torch.manual_seed(0)
    task = ours(lambda levels: UNet(levels, CLASSES, [256, 128, 64, 32, 16]))
    peer = Side(smp.Unet(f"resnet{DEPTH}", encoder_weights=None, classes=CLASSES).to(DEVICE), their_scores)
    batch = batch_of(CROP, BATCH)
    counts = flops(Side(task, our_scores), batch), flops(peer, batch)
    common = {
        "difference": lambda a, b: abs(counts[0] / counts[1] - 1),
        "tolerance": 0.15,
        "agrees_on": "floating-point operations of a forward pass, as a share",
        "note": f"Not the same layers: {counts[0]:.1f} GFLOP for a batch, the peer's {counts[1]:.1f}.",
    }
    mine, theirs = our_step(task, batch), step(peer, batch, plain_loss)
    yield Pair("U-Net, training step", name, mine, theirs, settings=settings(batch), **common)
    batch = batch_of(PICTURE, 1)
    theirs = inference(peer, batch)
    for row, network in {"as trained": task.eval(), "optimised": task.optimised()}.items():
        mine = inference(Side(network, our_scores), batch)
        yield Pair(f"U-Net, inference, {row}", name, mine, theirs, settings=settings(batch), **common)


def pairs() -> Iterator[Pair]:
    yield from fcn_pairs()
    yield from unet_pairs()


def main() -> None:
    options = bench_parser(__doc__, repeats=7).parse_args()
    run_pairs("segmentation", "segmenters: training steps and inference", pairs(), options)


if __name__ == "__main__":
    main()
