"""How time and memory grow: Faster R-CNN beside torchvision's, COCO metrics beside faster-coco-eval's.

    python benchmarks/growth.py
    python benchmarks/growth.py --only objects

One quantity at a time leaves the usual setting: images in a batch, side of the images, objects per image,
classes; for the metrics, images and classes. Both detectors are the small ones of accuracy_detection.py
(ResNet-18 FPN) with the same weights, on the same random images; they take turns. Before a point is timed,
both must give the same detections or metrics; losses, which rest on random samples, must be near each other.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from accuracy_detection import Torchvision, Trunkline
from lightning_fabric.utilities import move_data_to_device
from speed_evaluation import pair as evaluation_pair
from torch import Tensor, nn

from common import write_result
from pairs import RESULTS, Pair, bench_parser, compare, device_name
from trunkline.backbones.weights.load import load_weights
from trunkline.data.detection.batches import DetectionBatch

CHANNELS = 64
USUAL = {"batch": 2, "side": 256, "objects": 10, "classes": 80}
AXES = {
    "batch": (1, 2, 4, 8),
    "side": (128, 256, 384, 512),
    "objects": (1, 10, 100, 1000),
    "classes": (1, 80, 400, 1200),
}
EVALUATION_USUAL = {"images": 500, "detections": 100, "classes": 80}
EVALUATION_AXES = {"images": (500, 1000, 2000, 5000), "classes": (1, 80, 400, 1200)}
PEER = f"torchvision {torchvision.__version__}"


def random_batch(batch: int, side: int, objects: int, classes: int) -> DetectionBatch:
    """Square random images with boxes of 8 to a quarter of the side, in pixels."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.rand(batch, objects, 2, generator=random) * (side / 4 - 8) + 8
    corners = torch.rand(batch, objects, 2, generator=random) * (side - sizes)
    full = torch.full((batch, 2), side)
    return DetectionBatch(
        image=torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=random),
        image_sizes=full,
        boxes=torch.cat([corners, corners + sizes], dim=-1),
        labels=torch.randint(0, classes, (batch, objects), generator=random),
        crowd=torch.zeros(batch, objects, dtype=torch.bool),
        image_ids=torch.arange(batch),
        original_sizes=full,
    )


def models(batch: DetectionBatch, classes: int, device: str) -> tuple[Trunkline, Torchvision]:
    """Build both detectors with the same weights, spread so that there is something to detect."""
    torch.manual_seed(0)
    side = batch.image.shape[-1]
    ours, peer = (kind(classes, CHANNELS, side).to(device) for kind in (Trunkline, Torchvision))
    _spread(peer, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.pth"
        torch.save(peer.model.state_dict(), path)
        load_weights(ours.task, str(path))
    return ours, peer


@torch.no_grad()
def _spread(peer: Torchvision, batch: DetectionBatch) -> None:
    """Give class logits a standard deviation of about 3, so that scores pass the threshold."""
    heads = peer.model.roi_heads
    nn.init.normal_(peer.model.rpn.head.cls_logits.weight, std=0.1)
    nn.init.normal_(peer.model.rpn.head.bbox_pred.weight, std=0.02)
    hidden: list[Tensor] = []
    hook = heads.box_head.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    peer.eval().detect(batch)
    hook.remove()
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=3 / float(hidden[0].norm(dim=1).mean()))


def step(model: nn.Module, batch: DetectionBatch) -> Callable[[], Tensor]:
    """Return a training step without the optimiser's: loss and gradients."""

    def run() -> Tensor:
        model.train()
        loss = model.loss(batch)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    return run


def inference(model: nn.Module, batch: DetectionBatch) -> Callable[[], list[Tensor]]:
    """Return what detects the batch's objects and gives the scores of each image, falling."""

    @torch.no_grad()
    def run() -> list[Tensor]:
        model.eval()
        return [scores for _, scores, _ in model.detect(batch)]

    return run


def score_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference of the scores of equal rank; a missing row counts as its score."""
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        rows = max(len(one), len(other))
        sides = [torch.cat([side.cpu(), torch.zeros(rows - len(side))]) for side in (one, other)]
        largest = max(largest, float((sides[0] - sides[1]).abs().max()) if rows else 0.0)
    return largest


def loss_difference(ours: Tensor, theirs: Tensor) -> float:
    return abs(float(ours) / float(theirs) - 1)


def detection_pairs(settings: dict[str, int], device: str) -> Iterator[Pair]:
    """Inference first: a training step changes the running means."""
    batch = move_data_to_device(random_batch(**settings), device)
    ours, peer = models(batch, settings["classes"], device)
    yield Pair(
        name="inference",
        peer=PEER,
        ours=inference(ours, batch),
        theirs=inference(peer, batch),
        difference=score_difference,
        tolerance=1e-3,
        agrees_on="scores of the detections",
    )
    yield Pair(
        name="training step",
        peer=PEER,
        ours=step(ours, batch),
        theirs=step(peer, batch),
        difference=loss_difference,
        tolerance=0.25,
        agrees_on="relative difference of losses on random samples",
    )


def points(
    axes: dict[str, tuple[int, ...]], usual: dict[str, int], only: str
) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Yield settings and the axes on which they lie; the usual setting lies on all and is measured once.

    It comes last: what a process takes beyond what it holds is underestimated while it is young.
    """
    names = [axis for axis in axes if only in axis]
    for axis in names:
        for value in axes[axis]:
            if value != usual[axis]:
                yield {**usual, axis: value}, [axis]
    if names:
        yield usual, names


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per point and kind of work, with the axes that it lies on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for settings, names in points(AXES, USUAL, options.only):
        for pair in detection_pairs(settings, device):
            pair.settings = settings
            print(f"\n{settings}", end="")
            rows.append({**compare(pair, options.repeats), "axes": names})
    for settings, names in points(EVALUATION_AXES, EVALUATION_USUAL, options.only):
        pair = evaluation_pair("COCO metrics", "faster", settings)
        print(f"\n{settings}", end="")
        rows.append({**compare(pair, options.repeats), "axes": names})
    return rows


def main() -> None:
    options = bench_parser(__doc__, repeats=3).parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    if not options.only:
        what = "Medians of both sides as one quantity grows; ratio = peer / ours."
        path = options.output or RESULTS / f"growth_{device_name()}.json"
        write_result(path, {"question": "growth", "what": what, "rows": rows})


if __name__ == "__main__":
    main()
