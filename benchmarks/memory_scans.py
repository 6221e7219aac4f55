"""Peak memory of predicting a large volume with many classes, by the command itself.

    python benchmarks/memory_scans.py --shape 512 512 400 --classes 20

A checkpoint of a tiny 3-D U-Net and a random CT-like volume are written into a temporary folder; then
``trunkline predict`` runs in a process of its own, whose peak resident memory is reported by the system. The
network matters little: what fills the memory of other tools are the probabilities of all classes over the
whole volume (here 8.4 GB).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import yaml

from common import write_result

RESULTS = Path(__file__).parent / "results"


def config(classes: int, window: int, overlap: float, spacing: list[float]) -> dict:
    """A complete config with the smallest sensible network."""
    return {
        "model": {
            "class_path": "VolumeSegmentation",
            "init_args": {
                "backbone": {
                    "class_path": "ResidualEncoder",
                    "init_args": {
                        "ndim": 3,
                        "in_channels": 1,
                        "channels": [4, 8],
                        "blocks": [1, 1],
                        "strides": [2, 2],
                    },
                },
                "head": {
                    "class_path": "UNet",
                    "init_args": {"num_classes": classes, "channels": [4, 4], "norm": "instance"},
                },
                "inference": {"window": [window] * 3, "overlap": overlap},
            },
        },
        "data": {
            "class_path": "ScanSegmentation",
            "init_args": {
                "patch": [window] * 3,
                "preparation": {"spacing": spacing, "intensity": [{"clip": [-1000, 1000], "scale": "unit"}]},
                "workers": 0,
            },
        },
    }


def write_volume(path: Path, shape: list[int], spacing: float) -> None:
    """Write a random int16 volume, plane by plane smooth enough to compress."""
    random = np.random.default_rng(0)
    coarse = random.integers(-900, 900, [-(-size // 16) for size in shape]).astype(np.int16)
    volume = coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2)[: shape[0], : shape[1], : shape[2]]
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([spacing] * 3 + [1.0])), path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--spacing", type=float, default=1.0, help="of the file, in mm")
    parser.add_argument(
        "--prepared-spacing", type=float, default=1.0, help="that the network works on, in mm"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_volume(place / "volume.nii.gz", options.shape, options.spacing)
        settings = config(options.classes, options.window, options.overlap, [options.prepared_spacing] * 3)
        (place / "config.yaml").write_text(yaml.safe_dump(settings))
        words = [
            sys.executable,
            "-m",
            "trunkline",
            "predict",
            "--config",
            str(place / "config.yaml"),
            "--data.predict",
            str(place / "volume.nii.gz"),
            "--output.folder",
            str(place / "out"),
            "--trainer.logger",
            "false",
            "--trainer.accelerator",
            "auto",
            "--trainer.devices",
            "1",
        ]
        began = time.monotonic()
        subprocess.run(words, check=True)
        seconds = time.monotonic() - began
        written = nibabel.load(place / "out" / "labels" / "volume.nii.gz")
        if list(written.shape) != options.shape:
            raise RuntimeError(f"the label volume has the shape {written.shape}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    whole = 4 * options.classes * float(np.prod(options.shape))
    print(
        f"peak memory of the process: {peak / 2**30:.2f} GiB; "
        f"all probabilities would be {whole / 2**30:.2f} GiB"
    )
    write_result(
        RESULTS / "memory_scans.json",
        {
            "settings": vars(options),
            "peak_bytes": peak,
            "bytes_of_all_probabilities": whole,
            "seconds": round(seconds),
        },
    )


if __name__ == "__main__":
    main()
