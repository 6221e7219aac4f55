"""Which files of folders make up a case: channels by numbers or a folder per case, labels by names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...shared.common import listing, number_of
from ...shared.locate import MASK_ENDINGS
from ..formats.dicom_files import series_below
from ..formats.files import is_scan, scan_stem
from .types import Case, CasesError, Unlabelled

logger = logging.getLogger("trunkline")

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")
_NAMED = 5  # files that are left out
_CHANNEL = re.compile(r"(.+)_(\d{4})")


class Folder(NamedTuple):
    """The cases of a folder.

    Attributes:
        images: the files of each case, in the order of the channels.
        channels: names of the channels if the files name them, else empty.
        numbered: whether numbers at the ends of the names tell the channels.
    """

    images: dict[str, tuple[Path, ...]]
    channels: tuple[str, ...] = ()
    numbered: bool = False


def scans_in(folder: Path, ending: str | None = None) -> list[Path]:
    """Return the scans, 2D images and DICOM folders directly inside a folder, sorted by name.

    Args:
        folder: where to look.
        ending: suffix of the files to take; None for all.
    """
    if not folder.is_dir():
        return []
    found = [entry for entry in sorted(folder.iterdir()) if entry.name[:1] != "." and is_scan(entry)]
    found = [entry for entry in found if not (entry.is_fifo() or entry.is_socket() or entry.is_char_device())]
    return [entry for entry in found if ending is None or entry.name.lower().endswith(ending)]


def folders_in(folder: Path, ending: str | None = None) -> list[Path]:
    """Return the folders directly inside that are no DICOM folders but hold scans, sorted by name."""
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[:1] != "."]
    return [entry for entry in inner if not is_scan(entry) and scans_in(entry, ending)]


def warn_left_out(folder: Path, taken: Collection[Path], what: str = "scans") -> None:
    """Log what lies in a folder and is not taken: macOS's copies of metadata, and everything else.

    Files next to a scan that have its name (``a.json`` of ``a.nii.gz``, ``a.raw`` of ``a.mhd``) are its own.

    Args:
        folder: its entries are looked at, and those of the folders that ``taken`` lie in.
        taken: the files and folders that are read.
        what: ``scans`` or ``labels``.
    """
    stems = {(path.parent, scan_stem(path)) for path in taken}
    folders = sorted({folder, *(path.parent for path in taken)})
    entries = [entry for each in folders for entry in sorted(each.iterdir())]
    rest = [
        entry
        for entry in entries
        if entry not in taken
        and entry not in folders
        and entry.name.lower() not in _SYSTEM_FILES
        and (entry.name[:1] != "." or entry.name[:2] == "._")
        and not any((entry.parent, stem) in stems for stem in (scan_stem(entry), entry.name.split(".")[0]))
    ]
    mac = [entry for entry in rest if entry.name[:2] == "._" or entry.name == "__MACOSX"]
    groups = [("of macOS's metadata", mac), (f"that are no {what}", [e for e in rest if e not in mac])]
    texts = []
    for kind, found in groups:
        if found:
            more = ", ..." if len(found) > _NAMED else ""
            names = ", ".join(str(path.relative_to(folder)) for path in found[:_NAMED])
            texts.append(f"{len(found)} {kind} ({names}{more})")
    if texts:
        logger.warning("%s: files and folders left out: %s", folder, ", ".join(texts))


def _warn_deeper(folder: Path, files: Sequence[Path], inner: Sequence[Path]) -> None:
    """Log DICOM series that lie deeper than in a folder of a case, and so are not found."""
    if not folder.is_dir():
        return
    others = [entry for entry in sorted(folder.iterdir()) if entry.name[:1] != "." and entry not in files]
    deep = [
        str(series.relative_to(folder))
        for entry in others
        if entry.is_dir()
        for series in series_below(entry)
        if entry not in inner or series.parent != entry
    ]
    if deep:
        more = ", ..." if len(deep) > _NAMED else ""
        logger.warning(
            "%s: left out for lying too deep is %s of DICOM files (%s%s); a case is the folder of its "
            "series, or holds that folder: move it up, or list the cases in a CSV (data.table)",
            folder,
            number_of(len(deep), "folder"),
            ", ".join(deep[:_NAMED]),
            more,
        )


def group_folder(
    folder: Path,
    labels: Collection[str] | None = None,
    channels: bool | None = None,
    ending: str | None = None,
) -> Folder:
    """Find the cases of a folder: files, DICOM folders, or a folder per case whose files are the channels.

    Files that all end in ``_0000``, ``_0001`` and so on are the channels of the cases named in front, unless
    their labels have the whole names (as slices that are numbered do).

    Args:
        folder: where to look.
        labels: names of the labels there are; None if there are none to tell.
        channels: whether numbers are those of channels; None to tell it by the names of the labels.
        ending: suffix of the files to take; None for all. What is left out is logged.

    Raises:
        CasesError: if cases differ in their channels, or files only in the suffix.
    """
    files = scans_in(folder, ending)
    inner = folders_in(folder, ending) if folder.is_dir() else []
    _warn_deeper(folder, files, inner)
    if files and inner:
        raise CasesError(
            f"{folder}: holds scans ({files[0].name} ...) and folders of scans ({inner[0].name} ...); keep "
            "either a file per case or a folder per case, or list the cases in a CSV (data.table)"
        )
    if inner:
        return _case_folders(folder, inner, ending)
    if files:
        warn_left_out(folder, files)
    numbered = by_number(files)
    if channels is None:
        channels = labels is None or not {scan_stem(file) for file in files} <= set(labels)
    if numbered and channels:
        return _checked_numbers(folder, numbered)
    return Folder({name: (path,) for name, path in by_stem(files).items()})


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Return scans by their names without suffix.

    Raises:
        CasesError: if two differ only in the suffix.
    """
    found: dict[str, Path] = {}
    for path in files:
        before = found.setdefault(scan_stem(path), path)
        if before != path:
            raise CasesError(f"{path.parent}: {before.name} and {path.name} have the same name; remove one")
    return found


def by_number(files: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Return files by case and number of the channel if all their names end in one, else nothing."""
    found: dict[str, dict[int, Path]] = {}
    for path in files:
        match = _CHANNEL.fullmatch(scan_stem(path))
        if match is None or int(match[2]) in found.get(match[1], {}):
            return {}
        found.setdefault(match[1], {})[int(match[2])] = path
    return found


def _checked_numbers(folder: Path, numbered: dict[str, dict[int, Path]]) -> Folder:
    """Check that all cases have the same channels, from 0 on."""
    most = max(max(files) for files in numbered.values()) + 1
    problems = [
        f"{name}: there is no {name}_{number:04d}"
        for name, files in sorted(numbered.items())
        for number in range(most)
        if number not in files
    ]
    if problems:
        raise CasesError(
            f"{folder}: the numbers at the ends of the names are channels (0000 to {most - 1:04d}), and "
            f"every case needs all:\n{listing(problems)}\nadd the files or remove these cases; if the "
            "numbers are those of cases, name the labels like the scans"
        )
    images = {name: tuple(files[n] for n in sorted(files)) for name, files in sorted(numbered.items())}
    return Folder(images, numbered=True)


def _case_folders(folder: Path, inner: Sequence[Path], ending: str | None) -> Folder:
    """Take each folder as a case whose scans have the same names in all; a single one may have any name."""
    images = {case.name: tuple(scans_in(case, ending)) for case in inner}
    warn_left_out(folder, {path for files in images.values() for path in files})
    if all(len(files) == 1 for files in images.values()):
        return Folder(images)
    stems = {name: tuple(by_stem(files)) for name, files in images.items()}
    usual = Counter(stems.values()).most_common(1)[0][0]
    problems = [f"{name}: has {', '.join(found)}" for name, found in sorted(stems.items()) if found != usual]
    if problems:
        raise CasesError(
            f"{folder}: the files in the folder of a case are its channels, and most have {', '.join(usual)};"
            f" others do not:\n{listing(problems)}\nrename, add or remove files, or list the cases in a CSV "
            "(data.table)"
        )
    return Folder(images, usual)


def with_labels(
    folder: Folder, labels: dict[str, Path], images: Path, place: Path, split: str, missing: Unlabelled
) -> list[Case]:
    """Give each case the label of its name; those to test with may all be without.

    Args:
        folder: the cases.
        labels: the files of labels by their names without suffix.
        images: where the cases come from, for the error.
        place: where the labels come from, for the error.
        split: whose cases they are.
        missing: whether cases to train or validate with need labels (``error``).

    Raises:
        CasesError: listing the cases without a label.
    """
    found = _matched(folder, labels)
    alone = [name for name in folder.images if name not in found]
    if alone and (found if split == "test" else missing == "error"):
        strays = sorted(set(map(str, labels.values())) - set(map(str, found.values())))
        also = f"\nlabels without images: {', '.join(strays[:5])}" if strays else ""
        raise CasesError(
            f"{images}: {number_of(len(alone), 'case')} of {len(folder.images)} without labels in {place}:\n"
            f"{listing([f'{name}: no {name}.*' for name in alone])}{also}\n"
            "a label has the name of its case; rename it, move the case elsewhere, list the cases in a CSV "
            "(data.table), or set data.missing to skip"
        )
    return [
        Case(name, tuple(map(str, files)), str(found[name]) if name in found else None, name)
        for name, files in folder.images.items()
    ]


def _matched(folder: Folder, labels: dict[str, Path]) -> dict[str, Path]:
    """Return the label of each case: of its name, else of its name with an ending that all labels have."""
    exact = {name: labels[name] for name in folder.images if name in labels}
    if exact:
        return exact
    for ending in MASK_ENDINGS:
        if labels and all(name.endswith(ending) for name in labels):
            short = {name.removesuffix(ending): path for name, path in labels.items()}
            return {name: short[name] for name in folder.images if name in short}
    return {}


def unique_names(paths: Sequence[Path], stems: Sequence[str]) -> list[str]:
    """Name cases by their stems; those that occur twice get the folder's name in front, or else a number.

    Args:
        paths: a file or folder of each case.
        stems: the wanted names.
    """
    count = Counter(stems)
    longer = [
        stem if count[stem] == 1 else f"{path.absolute().parent.name}_{stem}"
        for path, stem in zip(paths, stems, strict=True)
    ]
    taken, names = set(longer), []
    seen: set[str] = set()
    for name in longer:
        number, free = 1, name
        while free in seen or (free != name and free in taken):
            number += 1
            free = f"{name}_{number}"
        seen.add(free)
        names.append(free)
    return names
