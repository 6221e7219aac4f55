"""What the batches of all kinds of labels share.

Letters in shapes: B images, C channels, S spatial sizes of the padded canvas, H W two of them, h w height and
width of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from .failed import FailedImage
from .on_device import RawImage, RawImages, uint8_buffer, without_pixels


@dataclass(kw_only=True)
class Batch:
    """Images of one canvas, with their labels in the fields of a subclass.

    Lightning moves it to the device by :meth:`to`. A head reads its targets from the fields, only by their
    names. What the host has to know of a batch on a device (ids, sizes) it reads by :meth:`in_main_memory`:
    reading the field itself would synchronise the device.

    Attributes:
        image: ``[B, C, *S]``, uint8 (normalised by the task), or float32 that is normalised already.
        image_sizes: ``[B, n]`` int64, the size of each image inside the canvas, n of them.
        image_ids: ``[B]`` int64: the ids in the annotation file, or positions in the index of the data.
        failed: images to predict on that could not be read, and are not in the batch.
        kept: by name, the fields ``host_fields``, moved and as they were before; empty in main memory.
        raw: images that have yet to be resized, mirrored and padded on the device (:meth:`rendered`);
            ``image`` is ``[B, 3, 0, 0]`` until then. None for images that are ready.
        host_fields: names of the small fields that stay readable in main memory.
    """

    host_fields: ClassVar[tuple[str, ...]] = ("image_sizes", "image_ids")

    image: Tensor
    image_sizes: Tensor
    image_ids: Tensor
    failed: tuple[FailedImage, ...] = ()
    kept: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    raw: RawImages | None = None

    def __len__(self) -> int:
        return len(self.image)

    def labelled(self) -> int | Tensor:
        """Return how many of the images have a label, by which the losses of an evaluation are weighed."""
        return len(self)

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        """Return whether there is something to learn in the batch: ``[]`` bool on its device, by what it is.

        An epoch without any is said. By default nothing is looked for.

        Args:
            known: what has been seen in the epoch already, and need not be looked for.
        """
        return {}

    def for_head(self, name: str) -> Batch:
        """Return the batch with the labels of one head; the same for all heads unless a subclass says more.

        Args:
            name: of the head in a ``MultiTask``; empty for the only head of a task.
        """
        return self

    def with_few_shapes(self) -> Self:
        """Return the batch with what varies from batch to batch padded further; compiled steps get it.

        The images stay as they are: their sizes are the canvases of the data.
        """
        return self

    def in_main_memory(self, name: str) -> Tensor:
        """Return a field in main memory; one of the ``host_fields`` without synchronising the device.

        Any other does synchronise it, and so does a field that another tensor has replaced since :meth:`to`
        moved the batch (as for one of several heads), or of a batch that was made on the device.
        """
        value = vars(self)[name]
        there, here = self.kept.get(name, (None, None))
        return here if here is not None and there is value else value.cpu()

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device; itself if it is there.

        Copies from page-locked memory synchronise nothing. What holds no tensors (run lengths of masks, files
        that failed) stays as it is.
        """
        device = torch.device(device)
        given = {name: value for name, value in vars(self).items() if name != "kept"}
        fields = {name: _moved(value, device) for name, value in given.items()}
        if all(old is new for old, new in zip(tensors_of(given), tensors_of(fields), strict=True)):
            return self
        names = self.host_fields if device.type != "cpu" else ()
        return type(self)(**fields, kept={name: (fields[name], self.in_main_memory(name)) for name in names})

    def rendered(self) -> Self:
        """Return the batch with images that are ready, made on its device; itself if they are."""
        return self if self.raw is None else replace(self, image=self.raw.rendered(), raw=None)

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory; the DataLoader calls this."""
        return type(self)(**{name: _each(value, Tensor.pin_memory) for name, value in vars(self).items()})


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, or in any dataclass, mapping, list or tuple, one after the other."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_of(vars(value))


def _moved(value: Any, device: torch.device) -> Any:
    """Move a field; a tuple without tensors stays the same object, which tells that nothing has moved."""
    if isinstance(value, tuple):
        return (
            tuple(_moved(item, device) for item in value) if any(True for _ in tensors_of(value)) else value
        )
    return move_data_to_device(value, device)


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Replace the tensors of a field: it is one, a tuple of some, or holds none."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, RawImages):
        return replace(value, content=function(value.content))
    return tuple(_each(item, function) for item in value) if isinstance(value, tuple) else value


def padded(images: Sequence[Tensor], canvas: Sequence[int], value: int = 0) -> Tensor:
    """Put images into the upper left corners of a new batch.

    A loader process makes the batch in shared memory at once, which torch would copy it to.

    Args:
        images: ``[..., h, w]`` uint8, equal in the axes before the last two.
        canvas: height and width of the batch, no less than any image's.
        value: of the pixels of the canvas outside an image.

    Returns:
        ``[B, ..., H, W]`` uint8.
    """
    shape = (len(images), *images[0].shape[:-2], *canvas)
    batch = uint8_buffer(shape)
    for place, image in zip(batch, images, strict=True):
        height, width = image.shape[-2:]
        place[..., :height, :width] = image
        place[..., :height, width:] = value
        place[..., height:, :] = value
    return batch


def images_of(images: Sequence[Tensor | RawImage], canvas: Sequence[int]) -> dict[str, Any]:
    """Return the fields ``image`` and ``raw`` of a batch.

    Args:
        images: of its samples, ``[3, h, w]`` uint8 each, or all of them only decoded.
        canvas: height and width of the batch, no less than any image's.
    """
    raw = [image for image in images if isinstance(image, RawImage)]
    if raw:
        return {"image": without_pixels(raw), "raw": RawImages.pack(raw, canvas)}
    return {"image": padded([image for image in images if isinstance(image, Tensor)], canvas)}
