"""Unpacks those wheels of the bundle that this Python lacks, and links the package beside them.

    python benchmarks/gpu/unpack.py BUNDLE FOLDER

FOLDER then belongs on PYTHONPATH. What is installed stays in use, but for groups of packages that need each
other's exact versions: of these all are unpacked if one is missing or older than the project wants.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = (
    {"pytest", "pluggy", "iniconfig"},
    {"pytorch_lightning", "lightning_utilities", "torchmetrics"},
    {"jsonargparse", "docstring_parser", "typeshed_client", "importlib_resources"},
    {"albumentations", "albucore", "stringzilla", "simsimd"},
    {"pydantic", "pydantic_core", "typing_inspection", "annotated_types"},
)
# Packages that other distributions bring too, by the module that counts.
MODULES = {"opencv_python_headless": "cv2"}
OLDEST = {"pytest": (8, 3), "pytorch_lightning": (2, 6), "jsonargparse": (4, 50), "torchmetrics": (1, 7)}
EXACT = {"albumentations": "2.0.8", "albucore": "0.0.24"}


def installed(name: str) -> bool:
    """Whether this Python has a package in a version that the project can use."""
    if name in MODULES:
        return importlib.util.find_spec(MODULES[name]) is not None
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if name in EXACT:
        return version == EXACT[name]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return numbers >= OLDEST.get(name, ())


def missing(names: set[str]) -> set[str]:
    """Return which of the bundle's packages are to be unpacked."""
    wanted = {name for name in names if not installed(name)}
    for group in TOGETHER:
        if group & wanted:
            wanted |= group & names
    return wanted


def main(bundle: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / "trunkline"
    if not package.exists():
        package.symlink_to(ROOT, target_is_directory=True)
    wheels = {path.name.split("-")[0].lower(): path for path in sorted(bundle.glob("*.whl"))}
    chosen = sorted(missing(set(wheels)))
    for name in chosen:
        with zipfile.ZipFile(wheels[name]) as wheel:
            wheel.extractall(folder)
    print(f"from the bundle: {', '.join(chosen) or 'nothing'}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
