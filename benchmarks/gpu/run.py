"""Runs the rows one after the other, each in a process of its own with its own limit of time.

A row that fails is written down with its error, and the others still run; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import write_result

HERE = Path(__file__).resolve().parent
TOTAL = 530  # seconds; whoever lends a GPU for ten minutes needs some for the start
PATIENCE = 6  # times as long with --tiny, which mostly runs on small machines that are busy
# Most seconds of each row, in the order in which they matter.
ROWS = {
    "tests": 100,
    "step": 60,
    "step_compiled": 110,
    "step_graphed": 70,
    "inference": 90,
    "fit": 80,
    "scans": 60,
    "segmentation": 40,
    "profile": 40,
}


def run(name: str, out: Path, seconds: float, tiny: bool) -> str | None:
    """Run one row; return what went wrong, or None."""
    words = [sys.executable, str(HERE / "rows.py"), name, str(out), *(["--tiny"] if tiny else [])]
    log = out / f"{name}.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its loaders
            process.wait()
            return f"stopped after {seconds:.0f} s"
    if code == 0:
        return None
    return f"exit code {code}: " + log.read_text(errors="replace")[-2000:].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("OUT") or HERE.parent / "results" / "gpu"
    parser.add_argument("--out", type=Path, default=Path(default))
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin, failed, patience = time.monotonic(), [], PATIENCE if options.tiny else 1
    for name in options.rows:
        start = time.monotonic()
        left = patience * TOTAL - (start - begin)
        error = (
            run(name, out, min(patience * ROWS[name], left), options.tiny) if left > 5 else "no time was left"
        )
        took = time.monotonic() - start
        if error:
            failed.append(name)
            write_result(out / f"{name}_error.json", {"question": name, "error": error, "seconds": took})
        else:
            (out / f"{name}_error.json").unlink(missing_ok=True)
        print(f"{name}: {'failed: ' + error if error else 'done'} ({took:.0f} s)", flush=True)
    print(f"{len(options.rows) - len(failed)} rows done, {len(failed)} failed; results are in {out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
