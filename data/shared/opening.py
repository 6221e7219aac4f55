"""Opens image files, on the disk, at addresses and in tar shards; every fault becomes a plain error."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, UnidentifiedImageError

from .bounded import BoundedFile
from .limits import LimitError, check_image, let_pillow_read, pixels_refused
from .objects import ObjectError, StorageError
from .storage import Address, is_stored, open_stored, read_stored

ImagePath: TypeAlias = str | PathLike[str] | Address  # text and addresses may lead into tar shards


class ImageError(ValueError):
    """An image file is missing, is no image, is damaged, or is not what the annotations say."""


@contextmanager
def opened(path: ImagePath, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image by its header; whatever a decoder raises inside becomes an ``ImageError``.

    Args:
        path: the file.
        content: its bytes, as in ``read_image``. Without them only the beginning is fetched from an address.

    Raises:
        StorageError: if a server does not answer, which says nothing of the image.
    """
    let_pillow_read()
    try:
        with (
            _source(path) if content is None else io.BytesIO(content) as file,
            Image.open(file) as image,
        ):
            check_image(image)
            yield image
    except ObjectError as error:
        raise ImageError(str(error)) from error
    except (ImageError, StorageError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise image_error(path, error) from error


def content_of(path: ImagePath, content: bytes | None = None) -> bytes | None:
    """Return the bytes of a file at an address or in tar shards; None for one on the disk.

    Args:
        path: the file.
        content: its bytes, if they are known; they are returned.

    Raises:
        ImageError: if it is missing or may not be read.
        StorageError: if a server does not answer.
    """
    if content is not None or not is_stored(path):
        return content
    try:
        return read_stored(str(path))
    except ObjectError as error:
        raise ImageError(str(error)) from error


def bytes_of(path: ImagePath, content: bytes | None = None) -> bytes:
    """Return the bytes of a file, wherever it lies; errors as ``content_of``, and OSError."""
    content = content_of(path, content)
    return Path(str(path)).read_bytes() if content is None else content


def _source(path: ImagePath) -> Any:
    """Return the opened file, or one that fetches what is read of it."""
    if is_stored(path):
        return open_stored(str(path))
    mode = os.stat(str(path)).st_mode  # opening a FIFO would wait for a writer without end
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError(f"{path}: is a pipe, a socket or a device, not an image file; remove or rename it")
    return BoundedFile(str(path))


def image_error(path: ImagePath, error: Exception) -> ImageError:
    """Say in an ``ImageError`` what a decoder's error means and what to do."""
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{path}: no such file; check the image folder and the file name")
    if isinstance(error, IsADirectoryError):
        return ImageError(f"{path}: is a folder, not an image file")
    if isinstance(error, PermissionError):
        return ImageError(f"{path}: may not be read; check the permissions of the file")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{path}: is no image that Pillow can read; convert, replace or remove it")
    if isinstance(error, LimitError):
        return ImageError(f"{path}: {error}")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{path}: {pixels_refused()}")
    return ImageError(f"{path}: damaged image ({type(error).__name__}: {error}); replace or remove it")
