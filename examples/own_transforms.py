"""Augmentation of your own: two transforms written for albumentations.

Letters in shapes: h w height and width of an image in pixels, m boxes.
"""

from typing import Any

import albumentations as A
import numpy as np
from albumentations.core.type_definitions import Targets


class Haze(A.ImageOnlyTransform):
    """Mixes an image with white, as haze does. Boxes and masks stay as they are.

    Args:
        least: smallest share of white, 0 to 1.
        most: largest share of white.
        p: probability that it is applied.
    """

    def __init__(self, least: float = 0.1, most: float = 0.5, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.least = least
        self.most = most

    def get_params(self) -> dict[str, Any]:
        """Draw what ``apply`` needs. Use ``self.py_random``, so that the seed of the image decides."""
        return {"share": self.py_random.uniform(self.least, self.most)}

    def apply(self, img: np.ndarray, share: float, **params: Any) -> np.ndarray:
        """Return ``[h, w, 3]`` uint8 for ``[h, w, 3]`` uint8."""
        return (img * (1 - share) + 255 * share).round().astype(np.uint8)


class HalfTurn(A.DualTransform):
    """Turns an image by 180 degrees, with its boxes and its mask.

    Args:
        p: probability that it is applied.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Return the image ``[h, w, 3]`` turned."""
        return np.ascontiguousarray(img[::-1, ::-1])

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Return the mask ``[h, w]`` turned."""
        return np.ascontiguousarray(mask[::-1, ::-1])

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Return boxes ``[m, 4 or more]`` turned: x1 y1 x2 y2 as shares of the sides, then other columns."""
        return np.concatenate([1 - bboxes[:, [2, 3, 0, 1]], bboxes[:, 4:]], axis=1)
