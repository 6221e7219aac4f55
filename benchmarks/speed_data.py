"""From JPEG files and COCO annotations to padded training batches: our loader beside plain pipelines.

    python benchmarks/speed_data.py
    python benchmarks/speed_data.py --data COCO_FOLDER --images 256

Everything runs on one core without worker processes, so the numbers are images per second and core. The peers
are what people write: torchvision's transforms v2 on Pillow images, in the order of torchvision's detection
reference, once with normalised float pixels and once with pixels that stay uint8 as ours do; and
albumentations on what OpenCV reads. All load the same images in the same batches, flip half of them, resize
the shorter side and pad to a common size. Without --data, photograph-like JPEGs of 640 x 480 pixels are made.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: E402, N812
import cv2  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from pairs import Pair, bench_parser, run_pairs  # noqa: E402
from photos import write_photos  # noqa: E402
from trunkline.data.detection.batches import DetectionBatch
from trunkline.data.detection.module import CocoDetection  # noqa: E402
from trunkline.data.shared.loading import limit_threads

FLIP = [{"HorizontalFlip": {"p": 0.5}}]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_BOX = 2.0  # pixels; boxes narrower than that are kept by some and dropped by others


@dataclasses.dataclass
class Loaded:
    """One image of a batch: ``[3, h, w]`` pixels in 0..255, ``[m, 4]`` boxes in its pixels."""

    pixels: Tensor
    boxes: Tensor


class ResizeShortSide(v2.Transform):
    """``v2.Resize`` with sides rounded to the nearest pixel instead of down, so that all sizes are equal."""

    def __init__(self, short_side: int, long_side: int) -> None:
        super().__init__()
        self.short_side, self.long_side = short_side, long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.functional.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        scale = min(self.short_side / min(size), self.long_side / max(size))
        return {"size": [int(side * scale + 0.5) for side in size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=True)


def torchvision_data(root: Path, index: Any, sides: tuple[int, int], flip: float, floats: bool) -> Dataset:
    """torchvision's COCO dataset with its transforms v2."""
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(flip),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            ResizeShortSide(*sides),
            *(normalise if floats else []),
            v2.ToPureTensor(),
        ]
    )
    annotations = root / "annotations" / "instances_train.json"
    with contextlib.redirect_stdout(io.StringIO()):
        data = torchvision.datasets.CocoDetection(index.folder, annotations, transforms=transforms)
    return torchvision.datasets.wrap_dataset_for_transforms_v2(
        data, target_keys=("boxes", "labels", "image_id")
    )


class AlbumentationsData(Dataset):
    """What OpenCV reads, through albumentations."""

    def __init__(self, root: Path, index: Any, sides: tuple[int, int], flip: float) -> None:
        self.index, self.sides = index, sides
        boxes = A.BboxParams(format="pascal_voc", label_fields=["labels"], clip=True)
        # Which of the two limits holds depends on the image.
        self.transforms = [
            A.Compose(
                [resize, A.HorizontalFlip(p=flip), A.Normalize(MEAN, STD), ToTensorV2()], bbox_params=boxes
            )
            for resize in (A.SmallestMaxSize(sides[0]), A.LongestMaxSize(sides[1]))
        ]

    def __getitem__(self, position: int) -> tuple[Tensor, dict[str, Any]]:
        rows = self.index.rows(position)
        image = cv2.cvtColor(cv2.imread(str(self.index.path(position))), cv2.COLOR_BGR2RGB)
        ratio = max(image.shape[:2]) / min(image.shape[:2])
        transform = self.transforms[int(ratio > self.sides[1] / self.sides[0])]
        result = transform(
            image=image, bboxes=self.index.boxes[rows].numpy(), labels=self.index.labels[rows].numpy()
        )
        return result["image"], {
            "image_id": int(self.index.image_ids[position]),
            "boxes": torch.as_tensor(result["bboxes"], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.as_tensor(result["labels"]),
        }


def pad(samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[tuple[int, int]], list[dict]]:
    """Collate as torchvision's detectors do: into the largest height and width, rounded up to 32."""
    images, targets = zip(*samples, strict=True)
    height, width = (-(-max(image.shape[k] for image in images) // 32) * 32 for k in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch, [tuple(image.shape[1:]) for image in images], list(targets)


class Setting:
    """The same images in the same batches for us and for peers.

    Args:
        root: folder in COCO format.
        images: how many images to load in one run.
        batch_size: images per batch.
        sides: short and long side of the resized images.
        reduced: our ``reduced_decoding``.
    """

    def __init__(
        self, root: Path, images: int, batch_size: int, sides: tuple[int, int], reduced: bool = False
    ) -> None:
        self.root, self.sides, self.batch_size, self.reduced = root, sides, batch_size, reduced
        self.count = images // batch_size
        self.module = self._module(FLIP)
        self.index = self.module.index_of("train")
        requests = itertools.islice(self.module.train_dataloader().sampler, self.count)
        self.batches = [[request.index for request in batch] for batch in requests]

    def _module(self, augment: list[dict]) -> CocoDetection:
        module = CocoDetection(
            str(self.root),
            batch_size=self.batch_size,
            workers=0,
            short_side=self.sides[0],
            long_side=self.sides[1],
            augment=augment,
            on_bad_box="drop",
            reduced_decoding=self.reduced,
        )
        module.setup("fit")
        return module

    def ours(self, flip: bool = True) -> Iterator[DetectionBatch]:
        """Yield our batches."""
        module = self.module if flip else self._module([])
        yield from itertools.islice(module.train_dataloader(), self.count)

    def torchvision(self, floats: bool, flip: float = 0.5) -> Callable[[], Iterator[Any]]:
        """Make a function that yields torchvision's batches."""
        data = torchvision_data(self.root, self.index, self.sides, flip, floats)
        place = {image_id: position for position, image_id in enumerate(data.ids)}
        ids = self.index.image_ids.tolist()
        batches = [[place[ids[position]] for position in batch] for batch in self.batches]
        return lambda: iter(DataLoader(data, batch_sampler=batches, collate_fn=pad))

    def albumentations(self, flip: float = 0.5) -> Callable[[], Iterator[Any]]:
        """Make a function that yields the batches of albumentations."""
        data = AlbumentationsData(self.root, self.index, self.sides, flip)
        return lambda: iter(DataLoader(data, batch_sampler=self.batches, collate_fn=pad))


def our_images(batches: Iterator[DetectionBatch]) -> dict[int, Loaded]:
    """Take our batches apart."""
    images_by_id = {}
    for batch in batches:
        for n, (height, width) in enumerate(batch.image_sizes.tolist()):
            real = batch.labels[n] >= 0
            pixels = batch.image[n, :, :height, :width].float()
            images_by_id[int(batch.image_ids[n])] = Loaded(pixels, batch.boxes[n, real])
    return images_by_id


def peer_images(batches: Iterator[Any]) -> dict[int, Loaded]:
    """Take a peer's batches apart, and undo the normalisation."""
    images_by_id = {}
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    for images, sizes, targets in batches:
        for image, (height, width), target in zip(images, sizes, targets, strict=True):
            pixels = image[:, :height, :width]
            if pixels.is_floating_point():
                pixels = (pixels * std + mean) * 255
            images_by_id[int(target["image_id"])] = Loaded(pixels.float(), target["boxes"])
    return images_by_id


def disagreement(ours: dict[int, Loaded], theirs: dict[int, Loaded]) -> float:
    """Mean difference of the pixels in grey levels; infinite unless ids, sizes and boxes are equal."""
    if ours.keys() != theirs.keys():
        return float("inf")
    differences = []
    for image_id, one in ours.items():
        other = theirs[image_id]
        boxes = [
            rows[(rows[:, 2:] - rows[:, :2] >= SMALL_BOX).all(dim=1)] for rows in (one.boxes, other.boxes)
        ]
        if one.pixels.shape != other.pixels.shape or boxes[0].shape != boxes[1].shape:
            return float("inf")
        if not torch.allclose(*boxes, rtol=0, atol=0.05):
            return float("inf")
        differences.append((one.pixels - other.pixels).abs().mean())
    return float(torch.stack(differences).mean())


def row(setting: Setting, peer: str, make: Callable[..., Any], tolerance: float, **arguments: Any) -> Pair:
    """Our loader beside one peer; ``make`` is a method of the setting, with its arguments."""
    theirs = make(**arguments)

    def difference(*_: Any) -> float:  # what was timed is flipped at random
        return disagreement(our_images(setting.ours(flip=False)), peer_images(make(**arguments, flip=0.0)()))

    return Pair(
        name=f"training batches, {setting.sides[0]} x {setting.sides[1]}"
        + (", reduced_decoding" if setting.reduced else ""),
        peer=peer,
        ours=lambda: [None for _ in setting.ours()],
        theirs=lambda: [None for _ in theirs()],
        difference=difference,
        tolerance=tolerance,
        agrees_on="mean pixel in grey levels, without flips; ids, sizes and boxes are equal",
        settings={
            "images": setting.count * setting.batch_size,
            "batch_size": setting.batch_size,
            "short_side": setting.sides[0],
            "long_side": setting.sides[1],
        },
        target=1.5 if "float" in peer else None,
        note="seconds are of all images on one core, without worker processes",
    )


def pairs(options: argparse.Namespace, root: Path) -> Iterator[Pair]:
    """Each peer at the size of the COCO recipe and at a small one."""
    theirs = f"torchvision {torchvision.__version__}, transforms v2 on Pillow images"
    for sides in ((800, 1333), (224, 373)):
        setting = Setting(root, options.images, options.batch_size, sides)
        yield row(setting, f"{theirs}, float pixels", setting.torchvision, 0.5, floats=True)
        yield row(setting, f"{theirs}, uint8 pixels", setting.torchvision, 0.5, floats=False)
        # OpenCV does not antialias, so what is shrunk differs.
        tolerance = 0.5 if sides[0] == 800 else 8.0
        yield row(setting, f"albumentations {A.__version__}, OpenCV", setting.albumentations, tolerance)
    reduced = Setting(root, options.images, options.batch_size, (224, 373), reduced=True)
    yield row(reduced, f"{theirs}, float pixels", reduced.torchvision, 1.5, floats=True)


def large_photographs(root: Path) -> Pair:
    """Our loader with ``reduced_decoding`` beside our loader without, on photographs of 12 megapixels."""
    reduced, whole = (Setting(root, 8, 4, (800, 1333), reduced=flag) for flag in (True, False))
    return Pair(
        name="large photographs, 800 x 1333",
        peer="ours, without reduced_decoding",
        ours=lambda: [None for _ in reduced.ours()],
        theirs=lambda: [None for _ in whole.ours()],
        difference=lambda *_: disagreement(*(our_images(one.ours(flip=False)) for one in (reduced, whole))),
        tolerance=1.0,
        agrees_on="mean pixel in grey levels, without flips; ids, sizes and boxes are equal",
        settings={"images": 8, "batch_size": 4, "pixels": [3000, 4000]},
        note="photograph-like JPEGs of 12 megapixels; 8 images on one core, without worker processes",
    )


def main() -> None:
    parser = bench_parser(__doc__, repeats=11)
    parser.add_argument("--data", type=Path, help="COCO folder with images/train and annotations")
    parser.add_argument("--images", type=int, default=64, help="images per run (default 64)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    limit_threads()
    logging.getLogger("trunkline").setLevel(logging.ERROR)  # it warns that there is no validation
    torch.set_num_threads(options.threads)
    what = "from JPEG files and COCO annotations to padded training batches, per core"
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or write_photos(Path(folder), options.images)
        large = write_photos(Path(folder) / "large", 8, sizes=((3000, 4000),))
        questions = itertools.chain(pairs(options, root), (large_photographs(place) for place in [large]))
        run_pairs("data", what, questions, options)


if __name__ == "__main__":
    main()
