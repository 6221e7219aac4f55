"""benchmarks/gpu: the script that measures on GPUs works, as far as a CPU can tell."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["tests", "step", "step_compiled", "step_graphed", "inference", "fit", "scans"]
ROWS += ["segmentation", "profile"]


@pytest.fixture
def module(monkeypatch):
    """Imports a script of the folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    return importlib.import_module


def test_what_is_installed_is_not_unpacked(module, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("pytest", "no_such_package"):
        with zipfile.ZipFile(bundle / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_LZMA) as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    module("unpack").main(bundle, tmp_path / "site")
    assert (tmp_path / "site" / "no_such_package" / "__init__.py").is_file()
    assert not (tmp_path / "site" / "pytest").exists()
    assert (tmp_path / "site" / "trunkline").resolve() == ROOT


def test_packages_that_belong_together_are_unpacked_together(module, monkeypatch):
    unpack = module("unpack")
    monkeypatch.setattr(unpack, "installed", lambda name: name != "albucore")
    assert unpack.missing({"albumentations", "albucore", "scipy"}) == {"albumentations", "albucore"}


def test_a_row_that_fails_is_written_down_and_stops_no_other(module, monkeypatch, tmp_path):
    run = module("run")
    monkeypatch.setattr(run, "run", lambda name, *_: "it broke" if name == "fit" else None)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), "--rows", "step", "fit", "scans"])
    assert run.main() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["fit_error.json"]
    assert json.loads((tmp_path / "fit_error.json").read_text())["error"] == "it broke"


def test_idle_time_is_what_no_interval_covers(module):
    assert module("rows").covered([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4


@pytest.mark.slow
def test_all_rows_run_with_tiny_sizes(module, tmp_path):
    assert list(module("run").ROWS) == ROWS == list(module("rows").ROWS)
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    rows = [name for name in ROWS if name != "step_compiled"]  # on a CPU the same as step_graphed
    words = [ROOT / "benchmarks" / "gpu" / "run.sh", "--tiny", "--out", tmp_path, "--rows", *rows]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not list(tmp_path.glob("*_error.json"))
    for name in set(rows) - {"tests", "profile"}:
        assert list(tmp_path.glob(f"*_{name}.json")), name
    assert (tmp_path / "tests.json").is_file() and (tmp_path / "profile.txt").is_file()
