"""Depth with and without shortcuts on CIFAR-10: the experiment of He et al. 2016, figure 6.

    python benchmarks/degradation.py --data cifar10.zip --net plain-20
    python benchmarks/degradation.py --data cifar10.zip --net resnet-56 --size 16 --iterations 5000
    python benchmarks/degradation.py --plot

cifar10.zip holds {train,test}/<class>/*. The defaults are the paper's: 64,000 iterations of 128 images, SGD
with momentum 0.9, rate 0.1 divided by 10 at one half and three quarters, weight decay 1e-4, 4 pixels of
padding, random crops and flips, test error of the whole images. With --size 16 the images are halved, and
--iterations shortens the schedule with its steps: what a processor without a GPU manages in an hour or so.
Networks of 110 layers and more start at rate 0.01 until the training error is below 80 %, as in the paper.
All data lies on the device. Each call trains one network and writes its curve to benchmarks/results/;
--plot draws all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from common import environment, write_result
from trunkline.backbones import CifarResNet

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {
    "resnet-20": 8.75,
    "resnet-56": 6.97,
    "resnet-110": 6.43,
}  # test error in %, table 6 of the paper


class Net(nn.Module):
    """A CIFAR trunk with the linear classifier on its last map's mean."""

    def __init__(self, name: str, classes: int, zero_init: bool = False) -> None:
        super().__init__()
        kind, _, depth = name.partition("-")
        shortcut = "none" if kind == "plain" else "pad"
        self.trunk = CifarResNet(int(depth), shortcut=shortcut, zero_init_residual=zero_init)
        self.fc = nn.Linear(self.trunk.levels[-1].channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.trunk(image)[-1].mean((2, 3)))


def read(path: Path, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Return images ``[N, 3, size, size]`` (each pixel the mean of those that it stands for) and labels."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(
            name for name in archive.namelist() if name.startswith(f"{split}/") and name[-1] != "/"
        )
        classes = sorted({name.split("/")[1] for name in names})
        labels = torch.tensor([classes.index(name.split("/")[1]) for name in names])
        images = []
        for name in tqdm(names, desc=f"decoding {split}", leave=False):
            images.append(pil_to_tensor(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
    whole = torch.stack(images).float() / 255
    return F.avg_pool2d(whole, whole.shape[-1] // size), labels


def augment(images: Tensor, padding: int) -> Tensor:
    """Crop each of ``[B, 3, S, S]`` at random after padding with zeros, and mirror half of them."""
    count, _, size, _ = images.shape
    padded = F.pad(images, (padding,) * 4)
    device = images.device
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), device=device)
    rows, columns = shifts + torch.arange(size, device=device)  # [B, S] each
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count, device=device)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]]  # [B, S, S, 3]
    return crops.permute(0, 3, 1, 2)  # [B, 3, S, S] in channels-last order


@torch.no_grad()
def test_error(net: Net, images: Tensor, labels: Tensor) -> float:
    """Return the error in per cent on all test images."""
    net.eval()
    wrong = sum(
        int((logits(net, part).argmax(1) != truth).sum())
        for part, truth in zip(images.split(500), labels.split(500), strict=True)
    )
    net.train()
    return 100 * wrong / len(labels)


def logits(net: Net, images: Tensor) -> Tensor:
    """Run in bfloat16 where that is faster, with logits in float32."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return net(images).float()


def train(options: argparse.Namespace) -> None:
    """Train one network; the curve is written at every evaluation, so that an interrupted run is of use."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (x.to(device) for x in read(options.data, "train", options.size))
    test_images, test_labels = (x.to(device) for x in read(options.data, "test", options.size))
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images, test_images = (images - mean) / std, (test_images - mean) / std
    net = Net(options.net, int(labels.max()) + 1, options.zero_init)
    net = net.to(device, memory_format=torch.channels_last).train()
    test_images = test_images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    careful = net.trunk.depth >= 110
    every = max(1, options.iterations // options.evaluations)
    curve, wrong, seen, started = [], torch.zeros((), device=device), 0, time.monotonic()
    order = torch.empty(0, dtype=torch.int64, device=device)
    for iteration in tqdm(range(options.iterations), desc=options.net, mininterval=30):
        if len(order) < options.batch_size:
            order = torch.randperm(len(labels), device=device)
        chosen, order = order[: options.batch_size], order[options.batch_size :]
        decayed = 0.1 ** sum(iteration >= options.iterations * part for part in (0.5, 0.75))
        optimizer.param_groups[0]["lr"] = 0.01 if careful else 0.1 * decayed
        scores = logits(net, augment(images[chosen], options.size // 8))
        loss = F.cross_entropy(scores, labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wrong += (scores.detach().argmax(1) != labels[chosen]).sum()
        seen += len(chosen)
        if careful and seen >= 25 * options.batch_size:
            careful, wrong, seen = bool(wrong / seen > 0.8), torch.zeros_like(wrong), 0
        if (iteration + 1) % every == 0 and seen:
            row = {
                "iteration": iteration + 1,
                "train_error": 100 * float(wrong) / seen,
                "test_error": test_error(net, test_images, test_labels),
                "seconds": round(time.monotonic() - started),
            }
            curve.append(row)
            wrong, seen = torch.zeros_like(wrong), 0
            print(f"{options.net}: {row}", flush=True)
            settings = {k: v for k, v in vars(options).items() if k not in ("data", "plot", "tag")}
            write_result(
                RESULTS / f"degradation_{options.net}{'-zero' * options.zero_init}{options.tag}.json",
                {
                    "settings": settings,
                    "parameters": sum(p.numel() for p in net.parameters()),
                    "published_test_error": PUBLISHED.get(options.net),
                    "environment": environment(),
                    "curve": curve,
                },
            )


def plot() -> None:
    """Draw the curves of plain and of residual nets (training dashed, test bold), and the end by depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    kinds: dict[str, dict[int, dict]] = {"plain": {}, "resnet": {}, "resnet-zero": {}}
    for path in sorted(RESULTS.glob("degradation_*.json")):
        kind, depth, *zero = path.stem.removeprefix("degradation_").split("-")
        kinds["-".join([kind, *zero])][int(depth)] = json.loads(path.read_text())
    depths = sorted({depth for results in kinds.values() for depth in results})
    shades = plt.cm.viridis([index / len(depths) for index in range(len(depths))])
    colours = dict(zip(depths, shades, strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), sharey=True, constrained_layout=True)
    for kind, results in kinds.items():
        axis, style = (axes[0], "-") if kind == "plain" else (axes[1], ":" if kind == "resnet-zero" else "-")
        for depth, result in sorted(results.items()):
            curve, colour = result["curve"], colours[depth]
            x = [row["iteration"] for row in curve]
            note = ", blocks begin as identities" if kind == "resnet-zero" else ""
            label = f"{depth} layers{note}: {curve[-1]['test_error']:.1f} %"
            axis.plot(x, [row["test_error"] for row in curve], style, lw=2.2, color=colour, label=label)
            if kind != "resnet-zero":
                axis.plot(x, [row["train_error"] for row in curve], "--", lw=1, color=colour)
    looks = {
        "plain": ("s--", "tab:red", "plain"),
        "resnet": ("o-", "black", "residual"),
        "resnet-zero": ("o:", "grey", "residual, blocks begin as identities"),
    }
    for kind, (style, colour, label) in looks.items():
        ends = [(depth, result["curve"][-1]["test_error"]) for depth, result in sorted(kinds[kind].items())]
        if ends:
            axes[2].plot(*zip(*ends, strict=True), style, color=colour, label=label)
    axes[0].set(title="plain: without shortcuts", ylabel="error in %")
    axes[1].set(title="residual: with shortcuts")
    axes[2].set(title="test error at the end", xlabel="layers", xscale="log", xticks=depths)
    axes[2].xaxis.set_major_formatter(ScalarFormatter())
    axes[2].minorticks_off()
    for axis in axes[:2]:
        axis.set(xlabel="iteration")
        axis.legend(title="test error at the end (dashed: training)", fontsize=8)
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    settings = next(iter(kinds["resnet"].values()))["settings"]
    figure.suptitle(
        f"CIFAR-10 at {settings['size']}x{settings['size']} pixels, {settings['iterations']:,} iterations of "
        f"{settings['batch_size']} images"
    )
    figure.savefig(RESULTS / "degradation.png", dpi=110)
    print(RESULTS / "degradation.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="zip of {train,test}/<class>/*")
    parser.add_argument("--net", help="plain-N or resnet-N, N = 20, 32, 44, 56, 110 ...")
    parser.add_argument("--iterations", type=int, default=64_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, choices=[32, 16], help="pixels per side")
    parser.add_argument("--evaluations", type=int, default=25, help="how often the test images are scored")
    parser.add_argument(
        "--zero-init", action="store_true", help="begin each block as the identity (Goyal et al. 2017)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tag", default="", help="appended to the result's file name, for example _seed1")
    parser.add_argument("--plot", action="store_true", help="only draw the committed curves")
    options = parser.parse_args()
    if options.plot:
        plot()
    elif options.data is None or options.net is None:
        parser.error("--data and --net are needed")
    else:
        train(options)


if __name__ == "__main__":
    main()
