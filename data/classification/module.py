"""Images with classes as a Lightning data module: class folders, a zip of them, or a CSV."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.common import require_positive
from ..shared.io import ImageError, Interpolation
from ..shared.labels.classes import LabelClass
from ..shared.loading import ImageBatchSampler, PlainErrorLoader
from ..shared.locate import CheckImages, DataNotFoundError
from ..shared.module import SplitData
from ..shared.on_device import AugmentOn
from ..shared.pixel_range import PixelRange, PixelRanges
from ..shared.storage import Location, located
from ..shared.summary import SplitSummary
from .batches import collate_classification
from .dataset import ClassificationDataset
from .index import ClassIndex, check_class_images, check_training_classes, picture_of
from .layouts import ClassSources, SplitSource
from .names import LabelError
from .summary import summarise, tell, tell_copies
from .transforms import PictureTransform, Policy, ScanTransform

logger = logging.getLogger("trunkline")


class ImageClassification(SplitData[ClassIndex]):
    """2D images or scans with classes, for training, validation, testing and prediction.

    Each split is one of

    - a folder of class folders, ``train/<class>/**/*.jpg``, as in ImageNet;
    - a zip of such folders, read without unpacking; further folders around them do not matter;
    - a CSV with a header: ``path``, optionally ``split`` (train, val, test), and ``label`` (one name),
      ``labels`` (any number of names, ``;`` between them) or else one column of 0 and 1 per class. With the
      last two an image may show several classes. Paths are relative to the CSV's folder, or to ``root``.

    A split that is not given is looked for in ``root``. In a folder it is ``train.csv``, ``train`` or
    ``train.zip`` (for validation also ``valid`` and ``validation``). In a zip it is a folder inside. In a CSV
    it is the rows of that split. Where there is no validation data but a test split, validation
    uses the test split and says so, and the other way round. Training goes without validation where there
    is neither.

    Classes are those of the training data: sorted folder names or labels (as numbers if all are), or columns
    in their order. Another split may lack some but not have others.

    2D images stay uint8 ``[B, 3, size, size]``; the task normalises them. Files named ``.nii``, ``.nii.gz``
    or ``.npy`` are scans. They are standardised per channel over the volume, and resized without regard to
    voxel spacing. They are float32 ``[B, C, D, H, W]``; the axes of NIfTI point right, anterior and superior.

    Under DDP the module divides the data among the ranks itself: in evaluation every image is seen exactly
    once.

    Args:
        root: folder, zip or CSV that holds the splits, and that relative paths below are relative to.
        train: training data: a folder of class folders, a zip or a CSV; inside the zip if root is one.
        val: validation data.
        test: test data.
        predict: what to predict on: an image, a folder of images (not the folders inside it), a list of
            both, a zip, or a CSV with the column path. Relative to the working directory.
        batch_size: training images per batch and device.
        eval_batch_size: the same for everything but training; as batch_size if null.
        workers: loader processes per device and loader; fewer if there are fewer processor cores. 0 loads
            in the main process.
        size: side of the 2D images in a batch, in pixels; of scans the side of a cube, or depth, height and
            width, in voxels.
        train_size: side of 2D images in training batches, in pixels; as size if null. Smaller ones than in
            evaluation are quicker and not worse (Touvron et al. 2019, "Fixing the train-test resolution
            discrepancy").
        resize: length of the shorter side of a 2D image before its centre is cut out, for evaluation (and
            training, see augment), in pixels; as size if null. 256 is usual for 224.
        interpolation: for resizing 2D images, and for the policy.
        augment: albumentations transforms for 2D training images, each a name with its arguments, applied to
            the original pixels. What is not of the wanted size afterwards is resized and cut as in
            evaluation. None if null.
        augment_on: who resizes and mirrors the pixels: the loader, or the device, for which the loader only
            decodes. With device, ``augment`` has flips only, and there is no policy and no
            random_erasing; pixels differ by at most one grey level.
        policy: an automatic augmentation policy for 2D training images, after the transforms.
        random_erasing: probability of painting a rectangle in the mean colour over a 2D training image, last.
        repeated_augmentation: how often an image comes up in a row, each time with other augmentation; an
            epoch then shows fewer different images, by this factor.
        flip_axes: axes along which training scans are randomly reversed: 0 for depth, 1 height, 2 width.
        intensity: random changes of scale and offset of training scans, in standard deviations, 0 to 1.
        check_images: before starting, check that the images can be read: header reads the beginning of each
            file, decode all of it, off nothing. In prediction of no effect: files that cannot be read are
            listed in failed.csv.
        pixel_range: the values that become black and white in images that do not have 8 bits, such as
            [0, 4095]; images of 8 bits stay as they are. auto looks at training images: 0 and the largest
            value of as many bits as theirs need; of signed and 32-bit values, the lowest and highest.
        seed: fixes order and augmentation; if null, the seed given to seed_everything, else 0.
        **shared: what every ``SplitData`` takes.
    """

    label_kinds = ("classification",)
    stand_ins = {"val": "test", "test": "val"}

    def __init__(
        self,
        root: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        workers: int = 4,
        size: int | tuple[int, int, int] = 224,
        train_size: int | None = None,
        resize: int | None = None,
        interpolation: Interpolation = "bilinear",
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        augment_on: AugmentOn = "loader",
        policy: Policy | None = None,
        random_erasing: float = 0.0,
        repeated_augmentation: int = 1,
        flip_axes: list[int] = [],  # noqa: B006, never changed
        intensity: float = 0.0,
        check_images: CheckImages = "header",
        pixel_range: PixelRange = "auto",
        seed: int | None = None,
        **shared: Any,
    ):
        super().__init__(**shared)
        # The arguments stay in self.hparams, which goes into checkpoints.
        self.save_hyperparameters(logger=False)
        self.keep_arguments()
        self._check_arguments()
        self.batch_size = batch_size
        given = self.hparams
        self._sources = ClassSources(given.root, {s: given[s] for s in ("train", "val", "test")})
        self._train_source: SplitSource | None = None
        self._told: set[str] = set()  # splits of which it has been said what is odd
        self.pixels = PixelRanges(pixel_range)

    def _check_arguments(self) -> None:
        given = self.hparams
        sides = (given.size,) if isinstance(given.size, int) else tuple(given.size)
        names = ("batch_size", "eval_batch_size", "train_size", "repeated_augmentation")
        require_positive(size=min(sides), **{name: given[name] for name in names})
        if len(sides) not in (1, 3):
            raise ValueError(f"size is {given.size}; give one number, or depth, height and width of scans")
        if given.resize is not None and (len(sides) > 1 or given.resize < given.size):
            raise ValueError(
                f"resize is {given.resize}; it must be at least size ({given.size}), which is cut out of it"
            )
        for name in ("random_erasing", "intensity"):
            if not 0 <= given[name] <= 1:
                raise ValueError(f"{name} is {given[name]}; it must be 0 to 1")
        axes = given.flip_axes
        if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"flip_axes is {axes}; axes are 0, 1 and 2, each once")

    def prepare_data(self) -> None:
        """Check the images for the coming command, on one process of the machine.

        Raises:
            ImageError: listing missing or unreadable images, or scans with other numbers of channels.
        """
        indices = {s: index for s, index in self.indices(self.stage).items() if s != "predict"}
        # One bad file to predict on costs no other.
        check_class_images(list(indices.values()), self.hparams.check_images, self.to_skip())
        if self.hparams.check_images != "off":
            tell_copies(indices)

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            DataNotFoundError: if a file or folder is not there, naming the places looked at.
            LabelError: if rows of a CSV are wrong, an image has no class, or classes of two splits differ.
            ImageError: if 2D images and scans are mixed.
            AugmentationError: if ``augment`` is wrong.
            ValueError: if an argument does not fit the kind of images.
        """
        indices = self.indices(stage)
        self._check_kinds(indices)
        self.pixels.settle(self, picture_of)
        if "train" in indices:
            check_training_classes(indices["train"])
        if not self._told.issuperset(indices):
            tell(indices)
            self._told.update(indices)

    def summaries(self) -> Mapping[str, SplitSummary]:
        """Return the numbers of images and classes by split; empty before ``setup``."""
        return {split: summarise(self.splits[split]) for split in ("train", "val") if split in self.splits}

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the images.

        Raises:
            RuntimeError: before ``setup``.
            ImageError: if the first file is a scan and cannot be read.
        """
        return self._any_index().layout()

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the classes, with their numbers as ids; empty if nothing was read but images to predict on.

        Raises:
            RuntimeError: before ``setup``.
        """
        if kind != "classification":
            return super().label_classes(kind, head)
        return [LabelClass(number, name) for number, name in enumerate(self._any_index().class_names)]

    def label_counts(self, kind: str, head: str = "") -> Sequence[int]:
        """Return how many training images show each class.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if kind != "classification":
            return super().label_counts(kind, head)
        return self.index_of("train").counts().tolist()

    def multi_label(self, head: str = "") -> bool:
        """Return whether an image may show several classes, or none.

        Raises:
            RuntimeError: before ``setup``.
        """
        return self._any_index().multi_label

    def prediction_paths(self) -> dict[int, Location]:
        """Return the file of each image to predict on, by its position in the index."""
        index = self.index_of("predict")
        return {position: located(index.path(position)) for position in range(len(index))}

    def has_split(self, split: str) -> bool:
        """Return whether there are images with classes; if the user named some, they have to be there."""
        try:
            self._sources.find(split)
        except DataNotFoundError:
            if self.hparams[split] is not None:
                raise
            return False
        return True

    def read_split(self, split: str) -> ClassIndex:
        """Read the images and classes of a split; labels are numbered by the classes of the training data."""
        source = self._sources.find(split)
        own = self._sources.class_names(source)
        known = self._known_classes()
        if known is None:
            logger.warning("there are no training data: the classes are those of the %s data", split)
        class_names, several = known or own
        if own[1] != several:
            shown = "any number of classes" if own[1] else "one class"
            raise LabelError(
                f"{source}: an image shows {shown}, unlike in the training data; use the same columns in both"
            )
        if split != "train" and source == self._train_source and source.is_table:
            raise LabelError(
                f"{source}: holds both the training and the {split} data; add a column split, or give a file "
                "for each"
            )
        return self._sources.index(source, class_names)

    def read_prediction(self, given: list[str]) -> ClassIndex:
        """Index the images to predict on; their labels are -1."""
        classes = self._known_classes() or self._classes_of("val") or self._classes_of("test")
        return self._sources.index_for_prediction(given, *(classes or ((), False)))

    def make_loader(self, split: str, index: ClassIndex) -> PlainErrorLoader:
        """Return the loader of a split; evaluation mixes the classes, always in the same order."""
        training, given = split == "train", self.hparams
        sampler = ImageBatchSampler(
            len(index),
            **self.sampler_options(split),
            repeats=given.repeated_augmentation if training else 1,
            spread=split != "predict",
        )
        channels = index.layout()[0] if split == "predict" else None
        dataset = ClassificationDataset(index, self._transform(index, training), channels, self.pixels.value)
        return self.readable_loader(split, dataset, sampler, collate_classification, index.named)

    def _any_index(self) -> ClassIndex:
        if not self.splits:
            raise RuntimeError("no data have been read: call setup(stage) first")
        return next(iter(self.splits.values()))

    def _transform(self, index: ClassIndex, training: bool) -> PictureTransform | ScanTransform:
        given = self.hparams
        if index.scans:
            size = (given.size,) * 3 if isinstance(given.size, int) else given.size
            return ScanTransform(size, given.flip_axes, given.intensity) if training else ScanTransform(size)
        short = given.size if given.resize is None else given.resize
        on_device = given.augment_on == "device"
        if not training:
            return PictureTransform(given.size, short, given.interpolation, on_device=on_device)
        side = given.train_size or given.size
        return PictureTransform(
            side,
            max(short, side),
            given.interpolation,
            given.augment or (),
            given.policy,
            given.random_erasing,
            on_device,
        )

    def _check_kinds(self, indices: dict[str, ClassIndex]) -> None:
        """Refuse a mix of scans and 2D images, and arguments that are for the other kind of image."""
        kinds = {index.scans for index in indices.values()}
        if len(kinds) > 1:
            named = ", ".join(f"{split}: {index.path(0)}" for split, index in indices.items())
            raise ImageError(f"one split holds scans and another 2D images ({named}); use one kind")
        scans, given = kinds.pop(), self.hparams
        if not scans and not isinstance(given.size, int):
            raise ValueError(f"size is {given.size}, but the images have two axes: give one number")
        for_pictures = ("train_size", "resize", "augment", "policy", "random_erasing")
        wrong = [name for name in (for_pictures if scans else ("flip_axes", "intensity")) if given[name]]
        if scans and given.interpolation != "bilinear":
            wrong.append("interpolation")
        if scans and given.augment_on != "loader":
            wrong.append("augment_on")
        if wrong:
            instead = "flip_axes and intensity augment scans" if scans else "augment is for 2D images"
            kind = "scans" if scans else "2D images"
            raise ValueError(f"{' and '.join(wrong)} cannot be used: the data are {kind}; {instead}")
        if "train" in indices:
            self._transform(indices["train"], training=True)  # finds what is wrong in augment

    def _known_classes(self) -> tuple[tuple[str, ...], bool] | None:
        """Return the classes of the training data, or None if there are none."""
        if self._train_source is None:
            try:
                self._train_source = self._sources.find("train")
            except DataNotFoundError:
                return None
        return self._sources.class_names(self._train_source)

    def _classes_of(self, split: str) -> tuple[tuple[str, ...], bool] | None:
        try:
            return self._sources.class_names(self._sources.find(split))
        except DataNotFoundError:
            return None
