"""Small files of images with classes, and data modules of them."""

import zipfile

from PIL import Image

from trunkline.data.classification.module import ImageClassification

OPTIONS = {"workers": 0, "size": 8, "batch_size": 4}
SMALL = {"size": 32, "batch_size": 4, "workers": 0}


def picture(path, colour=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), colour).save(path)
    return path


def module(root=None, **options):
    return ImageClassification(None if root is None else str(root), **OPTIONS | options)


def ready(root=None, stage="fit", **options):
    made = module(root, **options)
    made.setup(stage)
    return made


def class_names(made):
    return [entry.name for entry in made.label_classes("classification")]


def paths(index):
    return [index.path(n) for n in range(len(index))]


def packed(folder, target, top="", compression=zipfile.ZIP_STORED, with_folders=False):
    with zipfile.ZipFile(target, "w", compression) as opened:
        if with_folders:
            opened.writestr(f"{top}train/bee/", b"")
        for path in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True):
            opened.write(path, top + path.relative_to(folder).as_posix())
        opened.writestr("__MACOSX/train/cat/._b.png", b"noise")
    return target


def table(folder, text, name="list.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def fitted(root, **options):
    made = ImageClassification(str(root), **SMALL | options)
    made.setup("fit")
    return made


def rows(loader):
    """Map each image's id to its pixels and label."""
    return {
        int(i): (image, label)
        for batch in loader
        for i, image, label in zip(batch.image_ids, batch.image, batch.label, strict=True)
    }
