"""Masks of the objects of a batch, kept as run lengths until pixels are needed.

Letters in shapes: B images, n rows asked for, H W the padded canvas; h w a resized image inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import roi_align

RunLengths = Mapping[str, Any]


class InstanceMasks:
    """The masks of the objects of a batch, row by row as its boxes.

    Bitmaps of all objects would take more memory than the images, so each mask is COCO's compressed
    run-length code (pycocotools). It stays in main memory when the batch moves to a device.

    Args:
        objects: for each of the B images the codes of its objects, ``{"size": [h, w], "counts": bytes}``, in
            the pixels of the resized image.
        canvas: height and width that images are padded to.

    Attributes:
        objects: as given; ``objects[i][r]`` is the object of ``boxes[i, r]``.
        canvas: as given.
    """

    __slots__ = ("canvas", "objects")

    def __init__(self, objects: Sequence[Sequence[RunLengths]], canvas: tuple[int, int]):
        self.objects = tuple(tuple(codes) for codes in objects)
        self.canvas = (int(canvas[0]), int(canvas[1]))

    def __len__(self) -> int:
        return len(self.objects)

    def bitmaps(self, image: int, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """Return ``[n, H, W]`` bool bitmaps of some objects of an image, on the CPU.

        Args:
            image: position in the batch.
            rows: of the objects; all objects of the image if None. The bitmap of a padding row, or of a
                negative number, is empty.
        """
        codes = self.objects[image]
        chosen = range(len(codes)) if rows is None else [int(row) for row in rows]
        bitmaps = torch.zeros(len(chosen), *self.canvas, dtype=torch.bool)
        for bitmap, row in zip(bitmaps, chosen, strict=True):
            if 0 <= row < len(codes):
                height, width = codes[row]["size"]
                bitmap[:height, :width] = torch.from_numpy(coco_mask.decode(codes[row]))
        return bitmaps

    def crop(self, image: int, rows: Sequence[int] | Tensor, boxes: Tensor, size: int) -> Tensor:
        """Return the part of each object inside a box, at a fixed size: the targets of a mask head.

        As detectron2's ``BitMasks.crop_and_resize``: RoIAlign of the bitmap, at least one half. Rows that are
        on a device synchronise it.

        Args:
            image: position in the batch.
            rows: ``[n]`` of the objects, as in :meth:`bitmaps`; they may repeat.
            boxes: ``[n, 4]`` x1 y1 x2 y2 in canvas pixels.
            size: height and width of the result.

        Returns:
            ``[n, size, size]`` bool on the device of ``boxes``.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64).cpu()
        distinct, position = rows.unique(return_inverse=True)
        bitmaps = self.bitmaps(image, distinct)[:, None].float()  # [n', 1, H, W]
        regions = torch.cat([position[:, None].float(), boxes.detach().float().cpu()], dim=1)  # [n, 5]
        return (roi_align(bitmaps, regions, size, aligned=True)[:, 0] >= 0.5).to(boxes.device)
