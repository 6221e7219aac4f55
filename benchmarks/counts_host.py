"""What keeps a GPU idle, counted: synchronisations, operators, graph breaks, new shapes; and FLOPs.

    python benchmarks/counts_host.py

Counts need no GPU. Where there is one, synchronisations are counted by ``torch.cuda.set_sync_debug_mode``;
elsewhere by the operators that synchronise a GPU: those whose result is a number for Python, or has a shape
that depends on values. Both detectors run the way they do on a GPU: ours with no shape that depends on
values, torchvision's with NMS of all groups of an image at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from speed_detection import (
    DEVICE,
    PEER,
    Setting,
    as_theirs,
    autocast,
    example,
    our_network,
    peer_network,
    step,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import boxes as tv_boxes

from common import write_result
from pairs import RESULTS, device_name, synchronisations, synchronise
from trunkline.data.shared.canvas import CanvasBatchSampler, default_canvases, scaled_sizes
from trunkline.heads.detection.boxes import device_paths

SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "torchvision::nms",  # picks the boxes that stay
}
# What only describes memory anew, or makes some, starts nothing on a device.
VIEWS = {"view", "select", "slice", "expand", "permute", "transpose", "unsqueeze", "squeeze", "alias", "t"}
VIEWS |= {"as_strided", "split", "unbind", "empty", "_unsafe_view", "detach"}
SHORT_SIDES = (640, 672, 704, 736, 768, 800)  # detectron2's multi-scale training
LONG_SIDE = 1333
STEPS = 200


class Operators(TorchDispatchMode):
    """Counts operators by name; boolean indices count as ``aten::nonzero``, which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.counts[name] += 1
        if name in ("aten::index", "aten::index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            self.counts["aten::nonzero"] += len(masks)
        return func(*args, **(kwargs or {}))


def batched_nms_of_devices(rows: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
    """torchvision's ``batched_nms`` with the number of boxes from which it loops over groups on a GPU."""
    loops = rows.numel() > 100_000
    nms = tv_boxes._batched_nms_vanilla if loops else tv_boxes._batched_nms_coordinate_trick
    return nms(rows, scores, groups, limit)


@contextlib.contextmanager
def as_on_devices() -> Iterator[None]:
    """Let both detectors do on the CPU what they do on a GPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tv_boxes, "batched_nms", batched_nms_of_devices))
        stack.enter_context(device_paths())
        yield


def syncs_and_operators(run: Callable[[], Any]) -> tuple[int, int]:
    """How often a call synchronises the device, and how many operators it starts."""
    run()
    with as_on_devices(), Operators() as seen:
        run()
    started = sum(n for name, n in seen.counts.items() if name.split("::")[1] not in VIEWS)
    if DEVICE == "cpu":
        return sum(seen.counts[name] for name in SYNCHRONISING), started
    return len(synchronisations(run)), started


def graph_breaks(run: Callable[..., Any], *inputs: Any) -> int:
    """Places at which torch.compile has to leave its graph."""
    torch._dynamo.reset()
    with as_on_devices():
        return torch._dynamo.explain(run)(*inputs).graph_break_count


# -- shapes


def coco_like_sizes(number: int) -> np.ndarray:
    """Heights and widths of images in about COCO's proportions, ``[number, 2]``."""
    rng = np.random.default_rng(0)
    common = np.array([(480, 640), (640, 480), (427, 640), (640, 427), (425, 640), (640, 425), (375, 500)])
    sizes = common[rng.choice(len(common), number, p=[0.35, 0.12, 0.2, 0.08, 0.1, 0.05, 0.1])]
    odd = rng.random(number) < 0.25
    sizes[odd] = rng.integers(300, 641, (int(odd.sum()), 2))
    return sizes


def shapes(batch: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Padded sizes of 200 batches of a multi-scale epoch: ours, and torchvision's of shuffled images."""
    sizes = coco_like_sizes(batch * STEPS + 1000)
    canvases = default_canvases(SHORT_SIDES, LONG_SIDE)
    sampler = CanvasBatchSampler(sizes, batch, SHORT_SIDES, LONG_SIDE, canvases, shuffle=True)
    ours = [requests[0].canvas for _, requests in zip(range(STEPS), sampler, strict=False)]
    rng = np.random.default_rng(0)
    theirs = []
    for members in rng.permutation(len(sizes))[: batch * STEPS].reshape(STEPS, batch):
        short = rng.choice(SHORT_SIDES, batch)  # torchvision draws one per image
        scaled = [scaled_sizes(sizes[[i]], int(s), LONG_SIDE)[0] for i, s in zip(members, short, strict=True)]
        height, width = (-(-int(side) // 32) * 32 for side in np.max(scaled, axis=0))
        theirs.append((height, width))
    return ours, theirs


def compiled_graphs(padded: list[tuple[int, int]]) -> tuple[int, int]:
    """Graphs that torch.compile makes of a net over a series of sizes, and the step of the last new one."""
    torch._dynamo.reset()
    net = nn.Conv2d(3, 2, 3, stride=16)
    counter = CompileCounter()
    totals = []
    with mock.patch.object(torch._dynamo.config, "recompile_limit", 10_000):
        compiled = torch.compile(net, backend=counter, dynamic=False)
        for size in padded:
            compiled(torch.zeros(1, 3, *size))
            totals.append(counter.frame_count)
    return totals[-1], 1 + totals.index(totals[-1])


# -- share of the peak


def peak_flops() -> float:
    """FLOPs per second of a large matrix product or 3x3 convolution, whichever has more."""
    kind, side = (torch.bfloat16, 8192) if DEVICE == "cuda" else (torch.float32, 2048)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=kind) for _ in range(2))
    image, kernel = (torch.randn(*shape, 256, 256) for shape in ((2,), (3, 3)))
    image = image[:, None].expand(2, 256, 256, 256).to(DEVICE, kind, memory_format=torch.channels_last)
    kernel = kernel.permute(2, 3, 0, 1).to(DEVICE, kind, memory_format=torch.channels_last)
    with torch.no_grad():
        product = median_seconds(lambda: a @ b, 7)
        convolution = median_seconds(lambda: nn.functional.conv2d(image, kernel, padding=1), 7)
    return max(2 * side**3 / product, 2 * 9 * 256**2 * 2 * 256**2 / convolution)


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def flops(run: Callable[[], Any]) -> int:
    """FLOPs of convolutions and matrix products in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# -- rows


def row(
    name: str, unit: str, ours: float, theirs: float, target: float | None = None, note: str = ""
) -> dict[str, Any]:
    """A row of the result file; ``target`` is the most that ours should be."""
    print(f"{name}: {ours:g} and {theirs:g} {unit}", flush=True)
    return {
        "name": name,
        "peer": PEER,
        "unit": unit,
        "ours": ours,
        "theirs": theirs,
        "target": target,
        "note": note,
    }


def detector_rows(setting: Setting, peak: float) -> Iterator[dict[str, Any]]:
    """Counts of a training step and of inference."""
    peer = peer_network(setting.size)
    task, batch = our_network(peer), example(setting)
    images, targets = as_theirs(batch)

    def our_loss() -> Any:
        return sum(task.head.losses(task.raw(batch.image, batch.image_sizes), batch).values())

    def training(model: nn.Module, loss: Callable[[], Any]) -> Callable[[], None]:
        model.train()
        return step(model, loss)

    def their_loss() -> Any:
        return sum(peer(images, targets).values())

    runs = {"training step": (training(task, our_loss), training(peer, their_loss))}
    where = f"batch {setting.batch}, {setting.size[0]}x{setting.size[1]}"
    for name, (ours, theirs) in runs.items():
        (syncs, started), (their_syncs, their_started) = map(syncs_and_operators, (ours, theirs))
        yield row(f"synchronisations, {name}, {where}", "per step", syncs, their_syncs, 2)
        yield row(f"operators, {name}, {where}", "per step", started, their_started)
        work, their_work = flops(ours), flops(theirs)
        rate, their_rate = work / median_seconds(ours, 5), their_work / median_seconds(theirs, 5)
        note = f"of {peak / 1e12:.2f} TFLOP/s, the best of a matrix product and a convolution in the same run"
        shares = (round(100 * rate / peak, 1), round(100 * their_rate / peak, 1))
        yield row(f"share of the device's peak, {name}, {where}", "%", *shares, note=note)
    task.eval(), peer.eval()

    @torch.no_grad()
    def detect() -> Any:
        with autocast():
            return task(batch.image, batch.image_sizes)

    @torch.no_grad()
    def detect_theirs() -> Any:
        with autocast():
            return peer(images)

    (syncs, started), (their_syncs, their_started) = map(syncs_and_operators, (detect, detect_theirs))
    yield row(f"synchronisations, inference, {where}", "per batch", syncs, their_syncs)
    yield row(f"operators, inference, {where}", "per batch", started, their_started)


def compile_rows() -> Iterator[dict[str, Any]]:
    """What torch.compile makes of the network, and of a real series of sizes."""
    small = Setting(1, (128, 160))
    peer = peer_network(small.size).eval()
    task, batch = our_network(peer).eval(), example(small)
    images, _ = as_theirs(batch)
    network = graph_breaks(lambda x: task.head(task.backbone(x), small.size), images[0][None])
    theirs = graph_breaks(peer, images)
    note = "ours: trunk, pyramid and RPN layers, then everything; torchvision's model is one call"
    yield row("graph breaks, layers before proposals", "breaks", network, theirs, 0, note)
    whole = graph_breaks(task, batch.image, batch.image_sizes)
    yield row("graph breaks, images to detections", "breaks", whole, theirs)
    for size in (2, 16):
        ours, other = (compiled_graphs(padded) for padded in shapes(size))
        where = f"{STEPS} steps, {len(SHORT_SIDES)} scales, batch {size}"
        yield row(f"shapes, {where}", "graphs", ours[0], other[0])
        note = "no new shape comes after that step"
        yield row(f"step of the last new shape, {where}", "of 200", ours[1], other[1], note=note)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="result file, instead of the one in benchmarks/results")
    options = parser.parse_args()
    peak = peak_flops()
    size = (480, 640) if DEVICE == "cpu" else (800, 1344)
    rows = []
    for batch in (2,) if DEVICE == "cpu" else (2, 16):
        rows += detector_rows(Setting(batch, size), peak)
    rows += compile_rows()
    what = "synchronisations and new code of a device, counted; and the share of its peak"
    path = options.output or RESULTS / f"counts_host_{device_name()}.json"
    write_result(path, {"question": "host", "what": what, "rows": rows})


if __name__ == "__main__":
    main()
