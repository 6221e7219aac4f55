"""Memory that COCO annotations take in all loader processes together, after each has walked over all of them.

    python benchmarks/memory_annotations.py
    python benchmarks/memory_annotations.py --annotations 100000 --workers 0 2

Beside us stands the plain way, a dataset that holds a pycocotools ``COCO`` object, as torchvision's
``CocoDetection`` does. Forked workers share such objects at first, but reading one counts a reference, which
writes to its page, which copies the page; spawned workers get a copy each from the beginning.

Every number is the proportional set size (Linux: shared pages are divided among those who share them) of the
main process and its workers together, in a run of its own, less that of the same run with a hundred
annotations, which leaves out interpreters and libraries. No images are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset

from common import write_result
from pairs import RESULTS, spread
from trunkline.data.detection.dataset import CocoDetectionDataset
from trunkline.data.detection.index import read_coco
from trunkline.data.shared.loading import limit_threads

TINY = 100
PER_IMAGE = 7.2  # annotations, as in COCO
PEER_LIMIT = 4_000_000  # annotations x workers: beyond that the peer fills the memory of a small machine


class Ours(Dataset):
    """Walks over our dataset's annotations."""

    def __init__(self, path: str) -> None:
        self.dataset = CocoDetectionDataset(read_coco(path, "images"))

    def __getitem__(self, number: int) -> float:
        index, total = self.dataset.index, 0.0
        for position in range(len(index)):
            rows = index.rows(position)
            total += float(index.boxes[rows].sum()) + len(index.path(position).name)
            total += int(index.labels[rows].sum()) + int(index.crowd[rows].sum())
        return total


class Plain(Dataset):
    """Walks over the annotations of pycocotools."""

    def __init__(self, path: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(path)
        self.ids = sorted(self.coco.imgs)

    def __getitem__(self, number: int) -> float:
        total = 0.0
        for image_id in self.ids:
            total += len(self.coco.loadImgs(image_id)[0]["file_name"])
            for record in self.coco.loadAnns(self.coco.getAnnIds(image_id)):
                x, y, width, height = record["bbox"]
                total += 2 * x + 2 * y + width + height + record["category_id"] - 1 + record["iscrowd"]
        return total


def write_annotations(path: Path, count: int) -> Path:
    """Write a COCO instances file with that many boxes in an image each 7."""
    rng = np.random.default_rng(0)
    images = max(1, round(count / PER_IMAGE))
    corners, sides = rng.uniform(0, 300, (count, 2)).round(2), rng.uniform(2, 120, (count, 2)).round(2)
    columns = (
        rng.integers(1, images + 1, count).tolist(),
        rng.integers(1, 81, count).tolist(),
        np.concatenate([corners, sides], axis=1).tolist(),
    )
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in range(1, images + 1)
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": 1.0, "iscrowd": 0}
            for n, (image, label, box) in enumerate(zip(*columns, strict=True), start=1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, 81)],
    }
    path.write_text(json.dumps(content))
    return path


def measure(kind: str, path: str, method: str, workers: int) -> dict[str, float]:
    """Let every worker walk over all annotations; return their totals and the bytes of all processes."""
    dataset = {"ours": Ours, "peer": Plain}[kind](path)
    options = {"persistent_workers": True, "multiprocessing_context": method} if workers else {}
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(max(1, workers)),  # handed out in turn, so each worker gets one
        num_workers=workers,
        worker_init_fn=limit_threads,
        **options,
    )
    totals = [float(total) for total in loader]
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    if len(processes) != workers + 1 or len(set(totals)) != 1:
        raise RuntimeError(
            f"{len(processes) - 1} of {workers} workers are alive, with the totals {set(totals)}"
        )
    return {"total": totals[0], "bytes": sum(map(proportional_size, processes))}


def proportional_size(process: str) -> int:
    """Bytes of a process, shared pages by its share of them."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/smaps_rollup has no Pss")


def in_own_process(*arguments: Any) -> dict[str, float]:
    """Call ``measure`` in a fresh interpreter, so that nothing of an earlier run is in memory."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, count: int, method: str, workers: list[int]) -> list[dict[str, Any]]:
    """Return one row for each number of workers."""
    files = {size: write_annotations(folder / f"{size}.json", size) for size in (TINY, count)}
    rows = []
    for number in workers:
        taken, totals = {}, {}
        for kind in ("ours", "peer"):
            if kind == "peer" and count * number > PEER_LIMIT:
                continue
            large, tiny = (in_own_process(kind, files[size], method, number) for size in (count, TINY))
            taken[kind], totals[kind] = int(large["bytes"] - tiny["bytes"]), large["total"]
        if "peer" in totals and abs(totals["ours"] / totals["peer"] - 1) > 1e-5:  # ours are float32
            raise SystemExit(f"the two read different annotations: {totals}")
        name = f"{count:,} annotations, {number} workers, {method}"
        print(name, {kind: f"{size / 2**20:.0f} MiB" for kind, size in taken.items()}, flush=True)
        rows.append(
            {
                "name": name,
                "peer": "pycocotools' COCO in a dataset",
                "settings": {"annotations": count, "workers": number, "method": method},
                "note": "ratio is of memory, peer / ours",
                "target": None,
                "ratio": spread([taken["peer"] / taken["ours"]]) if "peer" in taken else None,
                "memory_bytes": taken,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--methods", nargs="+", choices=("fork", "spawn"), default=["fork", "spawn"])
    parser.add_argument("--output", type=Path, default=RESULTS / "memory_annotations.json")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        kind, path, method, workers = options.measure
        print(json.dumps(measure(kind, path, method, int(workers))))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for count in options.annotations
            for method in options.methods
            for row in compare(Path(folder), count, method, options.workers)
        ]
    what = "bytes of annotations in the main process and its loader workers together, after all have read all"
    write_result(options.output, {"question": "annotations", "what": what, "rows": rows})


if __name__ == "__main__":
    main()
