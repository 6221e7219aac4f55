"""Finds the folder of the images that a JSON names."""

from __future__ import annotations

from itertools import islice

from ..shared.common import PackedNames
from ..shared.inside import outside, require_inside
from ..shared.locate import IMAGE_PLACES, DataNotFoundError
from ..shared.storage import Location, located

MOST_MISSING = 1000  # images of a JSON that may be missing before the first that shows the folder


def folder_of_images(source: Location, names: PackedNames, given: str | None, root: str | None) -> Location:
    """Find the image folder of a JSON to predict on by where its first image is; some may be missing.

    Args:
        source: the JSON.
        names: of its images.
        given: the folder that the user names, or None.
        root: of the data, or None.

    Raises:
        DataNotFoundError: naming the folders looked at.
    """
    if given is not None:
        require_inside(names, given, source)
        return located(given)
    near = source.parent, source.parent.parent
    bases = near if root is None else (*near, located(root))
    split = source.stem.removeprefix("instances_").removesuffix("2017")
    folders = [base / place.format(split=split) for base in bases for place in (*IMAGE_PLACES, ".")]
    for name in islice(names, MOST_MISSING):
        for folder in folders:
            if not outside(name, folder) and (folder / name).exists():
                require_inside(names, folder, source)
                return folder
    looked = "\n".join(f"  {folder}" for folder in dict.fromkeys(folders))
    raise DataNotFoundError(
        f"{source}: no image folder found, looked for {names[0]} in\n{looked}\ngive data.predict_images"
    )
