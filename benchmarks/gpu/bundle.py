"""Makes the folder of wheels that `run.sh` needs on a machine without a network.

    python benchmarks/gpu/bundle.py [--folder benchmarks/gpu/bundle]

For Python 3.12 on x86-64 Linux, whatever runs this script. Wheels are packed anew with LZMA, without tests
and some data, or OpenCV and SciPy alone would exceed the limit. Data are made on the machine itself, by the
scripts that need them. Needs pip, and nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "bundle"
LIMIT = 60 * 2**20  # bytes of the whole folder
# What torch and torchvision do not bring. Those that belong together are taken together, see unpack.py.
PACKAGES = (
    *("pytest==8.3.5", "pluggy==1.7.0", "iniconfig==2.3.1", "packaging==26.4"),
    *("pytorch-lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0", "tqdm==4.70.1"),
    *("jsonargparse==4.53.0", "docstring-parser==0.18.0", "typeshed-client==2.15.0"),
    *("importlib-resources==7.1.0", "pyyaml==6.0.4", "safetensors==0.8.0", "filelock==4.3.1"),
    *("pycocotools==2.0.11", "monai==1.6.1"),
    *("albumentations==2.0.8", "albucore==0.0.24", "stringzilla==3.12.6", "simsimd==6.5.16"),
    *("pydantic==2.14.4", "pydantic-core==2.50.5", "typing-inspection==0.4.5", "annotated-types==0.8.0"),
    *("opencv-python-headless==4.11.0.86", "scipy==1.18.1"),
)
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
LEFT_OUT = ("cv2/data/haar", "scipy/datasets/", "scipy/stats/_sobol_direction")


def download(folder: Path) -> list[Path]:
    """Fetch the wheels of ``PACKAGES`` for Python 3.12, without what they depend on."""
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    subprocess.run([*pip, *target, *platforms, *PACKAGES], check=True)
    return sorted(folder.glob("*.whl"))


def repack(wheel: Path, folder: Path) -> Path:
    """Write a wheel with LZMA, without tests and ``LEFT_OUT``; return where."""
    written = folder / wheel.name
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(written, "w", zipfile.ZIP_LZMA) as packed,
    ):
        for entry in source.infolist():
            if "tests" not in entry.filename.split("/") and not entry.filename.startswith(LEFT_OUT):
                packed.writestr(entry.filename, source.read(entry))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as downloads:
        for wheel in download(Path(downloads)):
            written = repack(wheel, folder)
            print(f"{written.stat().st_size / 2**20:6.1f} MiB  {written.name}", flush=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{size / 2**20:6.1f} MiB in {folder}")
    if size > LIMIT:
        raise SystemExit(f"{folder} is larger than {LIMIT / 2**20:.0f} MiB; leave out more in {__file__}")


if __name__ == "__main__":
    main()
