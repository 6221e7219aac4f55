"""Masks and keypoints of the objects of one image while it is augmented and resized.

Letters in shapes: m objects, P keypoints of an object, h w height and width of the image in pixels, n
triangles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_PROBES = 4  # rows and columns of triangles that show whether an image was mirrored


class Instances(NamedTuple):
    """What objects have in addition to their boxes, a row each.

    Attributes:
        masks: ``[m, h, w]`` uint8, 1 on the object and 0 elsewhere; None if they are not wanted.
        keypoints: ``[m, P, 3]`` float32 x, y and visibility (0 not labelled, 1 hidden, 2 visible); x and y
            are in the pixels of boxes, so 0.5 is the centre of the first pixel. None if they are not wanted.
        partners: ``[m, P]`` int64, which keypoint each becomes in a mirror image: left and right are
            exchanged. Given with keypoints.
    """

    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    partners: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Instances:
        """Return some of the objects."""
        return Instances(*(None if column is None else column[rows] for column in self))

    def moved(self, points: np.ndarray, mirrored: bool, size: tuple[int, int]) -> Instances:
        """Return them with keypoints at other places; those outside the image become 0, 0, 0.

        Args:
            points: ``[m, P, 2]`` new x and y; NaN for those that were lost.
            mirrored: whether the image was mirrored, so that left and right are exchanged.
            size: height and width of the image, in the pixels of x and y.
        """
        assert self.keypoints is not None and self.partners is not None
        keypoints = np.concatenate([points, self.keypoints[:, :, 2:]], axis=2)
        if mirrored:
            keypoints = np.take_along_axis(keypoints, self.partners[:, :, None], axis=1)
        return self._replace(keypoints=keypoints_inside(keypoints, size))


def keypoints_inside(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return ``[m, P, 3]`` float32 keypoints; those not labelled, or outside the image, are 0, 0, 0.

    Args:
        keypoints: ``[m, P, 3]`` x, y and visibility.
        size: height and width of the image, in the pixels of x and y.
    """
    points, limits = keypoints[:, :, :2], np.array([size[1], size[0]])
    inside = ((points >= 0) & (points <= limits)).all(axis=2) & (keypoints[:, :, 2] > 0)  # [m, P]
    return np.where(inside[:, :, None], keypoints, 0).astype(np.float32)


def as_targets(instances: Instances, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return masks and keypoints as albumentations takes them; a third column numbers the points."""
    data: dict[str, np.ndarray] = {}
    if instances.masks is not None and len(instances.masks):  # it cannot stack no masks
        data["masks"] = instances.masks
    if instances.keypoints is not None:
        cells = (np.mgrid[:_PROBES, :_PROBES].reshape(2, -1).T[:, None, ::-1] + 0.25) / _PROBES  # [n, 1, 2]
        corners = np.array([[0, 0], [0.5, 0], [0, 0.5]]) / _PROBES
        probes = (cells + corners).reshape(-1, 2) * (size[1], size[0])
        points = np.concatenate([instances.keypoints[:, :, :2].reshape(-1, 2), probes])
        # It takes the centre of the first pixel for 0.
        data["keypoints"] = np.column_stack([points - 0.5, np.arange(len(points))])
    return data


def from_targets(instances: Instances, kept: np.ndarray, result: dict[str, Any]) -> Instances:
    """Return the instances of the boxes that remain, after albumentations.

    Args:
        instances: before.
        kept: rows of the boxes that remain.
        result: what it returned for :func:`as_targets`, and the new ``image``.
    """
    size, taken = result["image"].shape[:2], instances.take(kept)
    if instances.masks is not None:
        masks = np.asarray(result.get("masks", np.zeros((0, *size), np.uint8)))
        taken = taken._replace(masks=(masks[kept] == 1).astype(np.uint8))  # 255 is uncovered or blanked
    if instances.keypoints is None:
        return taken
    shape = instances.keypoints.shape[:2]
    rows = np.asarray(result["keypoints"], dtype=np.float64).reshape(-1, 3)
    points = np.full((shape[0] * shape[1] + 3 * _PROBES**2, 2), np.nan)  # some transforms lose points
    points[rows[:, 2].astype(np.int64)] = rows[:, :2] + 0.5
    first, second, third = points[shape[0] * shape[1] :].reshape(-1, 3, 2).transpose(1, 0, 2)
    (x1, y1), (x2, y2) = (second - first).T, (third - first).T
    mirrored = bool(np.nansum(np.sign(x1 * y2 - y1 * x2)) < 0)
    return taken.moved(points[: shape[0] * shape[1]].reshape(*shape, 2)[kept], mirrored, size)


def relative_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes as albumentations takes them: ``[m', 5]`` float64, 0..1 and the row; without flat ones."""
    height, width = size
    relative = (boxes.astype(np.float64) / (width, height, width, height)).clip(0, 1)
    rows = np.column_stack([relative, np.arange(len(boxes))])
    return rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
