"""What image files hold beside the one picture that is read: further pages, and bands that are no colours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import PurePath

from PIL import Image

from .common import in_threads, number_of
from .deep import depth_of, tiff_tag
from .io import ImageError, opened

logger = logging.getLogger("trunkline")

_CAN_HOLD_MORE = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif")
_SMALLER_VERSION = 254  # TIFF tag NewSubfileType; its lowest bit marks a smaller version of another page


def tell_extras(paths: Sequence[str], content: Callable[[int], bytes | None] | None = None) -> None:
    """Warn once of images with several pages or frames, and once of those with further bands.

    The headers of files that can hold such are read; what cannot be read is left to the check of the images.

    Args:
        paths: of the images.
        content: the bytes of an image by its position, if they do not lie at the paths.
    """
    asked = [n for n, path in enumerate(paths) if PurePath(path).suffix.lower() in _CAN_HOLD_MORE]
    found = in_threads(
        lambda n: _extras(paths[n], None if content is None else content(n)), asked, "looking at headers"
    )
    paged = [paths[n] for n, (pages, _) in zip(asked, found, strict=True) if pages]
    banded = [paths[n] for n, (_, bands) in zip(asked, found, strict=True) if bands]
    if paged:
        logger.warning(
            "%s with several pages or frames, such as %s: only the first of each is used; save the others as "
            "files of their own if they are wanted",
            number_of(len(paged), "image"), paged[0],
        )  # fmt: skip
    if banded:
        logger.warning(
            "%s with bands beside grey or red, green and blue, such as %s: these bands are left out; save "
            "the three that are wanted as red, green and blue",
            number_of(len(banded), "image"), banded[0],
        )  # fmt: skip


def _extras(path: str, content: bytes | None) -> tuple[bool, int]:
    """Return whether a file has further pages, and the number of its further bands."""
    try:
        with opened(path, content) as image:
            bands = depth_of(image).bands
            return _has_pages(image), bands
    except ImageError:
        return False, 0


def _has_pages(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return not tiff_tag(image, _SMALLER_VERSION, 0) & 1
