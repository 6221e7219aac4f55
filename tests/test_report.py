"""The page about performance says what the result files say, and the table maker says it right."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "cpu": "Some CPU",
    "cores": 2,
    "torch_threads": 1,
    "gpu": None,
    "python": "3.11.7",
    "versions": {"torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6"},
    "commit": "0123456789abcdef+changes",
    "date": "2026-11-25T09:00:00+00:00",
}
ROW = {
    "name": "training step",
    "peer": "peer 1.0",
    "settings": {"batch": 2, "size": [480, 640]},
    "note": "one thread",
    "target": 1.3,
    "peak_target": 0.8,
    "ratio": {"lowest": 1.2, "lower_quartile": 1.25, "median": 1.4, "upper_quartile": 1.5, "highest": 1.6},
    "peak_memory_bytes": {"ours": 90 * 2**20, "peer": 100 * 2**20},
    "difference": {"value": 2.34e-6, "tolerance": 1e-3, "of": "scores"},
    "seconds": {"ours": [1.0, 2.0, 3.0], "peer": [2.0, 3.0, 4.0]},
}
LOSING = {**ROW, "name": "inference", "ratio": {**ROW["ratio"], "median": 0.7, "lowest": 0.5}, "note": ""}
PAGE = """before
<!-- begin speed -->
old
<!-- end speed -->
between
<!-- begin growth --><!-- end growth -->
"""


@pytest.fixture(scope="module")
def report():
    path = ROOT / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # its dataclass looks its module up; it imports its neighbour
        patch.setitem(sys.modules, "report", module)
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
        yield module


def write(folder, name, rows, gpu=None, **more):
    content = {"question": "things", "what": "how long things take", "rows": rows, **more}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**content, "environment": {**ENVIRONMENT, "gpu": gpu}}))
    return path


def test_the_page_is_up_to_date(report):
    assert report.main(["--check"]) == 0, "run python benchmarks/report.py"


def test_rows_by_hand(report):
    table = report.speed_table([ROW, LOSING]).splitlines()
    assert len(table) == 4
    assert table[1] == "| --- | --- | ---: | --- | ---: | --- | ---: |"
    shown = "| training step | peer 1.0 | 1.40 (1.20 to 1.60) | ≥ 1.3: met | 0.90 | ≤ 0.8: missed | 2e-06 |"
    assert table[2] == shown
    assert table[3].startswith("| inference | peer 1.0 | 0.70 (0.50 to 1.60) | ≥ 1.3: missed |")


def test_what_was_not_asked_or_not_measured_stays_empty(report):
    row = {**ROW, "target": None, "peak_target": None, "peak_memory_bytes": {"ours": 0, "peer": 0}}
    (line,) = report.speed_table([row]).splitlines()[2:]
    assert line == "| training step | peer 1.0 | 1.40 (1.20 to 1.60) |  |  |  | 2e-06 |"
    (line,) = report.speed_table([{**row, "peak_target": 0.8}]).splitlines()[2:]
    assert "≤ 0.8: not measured" in line
    assert report.ratio_cell({**ROW["ratio"], "lowest": 1.4, "highest": 1.4}) == "1.40"


def test_settings_agreement_notes_and_origin_are_told(report, tmp_path):
    write(tmp_path, "speed_things_cpu", [ROW, LOSING])
    part = report.text(report.read(tmp_path))["speed"]
    assert part.startswith("### Some CPU, 2 cores\n\n![speed](../benchmarks/results/speed_cpu.png)")
    assert "#### Things\n\nHow long things take.\n\n|" in part
    note = "- training step, beside peer 1.0: batch 2, size 480x640; scores differ by 2e-06; one thread.\n"
    assert note in part
    assert "- inference, beside peer 1.0: batch 2, size 480x640; scores differ by 2e-06.\n" in part
    origin = "[speed_things_cpu.json](../benchmarks/results/speed_things_cpu.json): Some CPU, 2 cores, "
    origin += "1 threads; Python 3.11.7, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6; "
    origin += "commit 012345678 and changes, 2026-11-25."
    assert origin in part


def test_every_device_has_a_section_and_cpus_come_first(report, tmp_path):
    write(tmp_path, "speed_things_a", [ROW], gpu="A Big GPU")
    write(tmp_path, "speed_things_cpu", [ROW])
    write(tmp_path, "speed_others_cpu", [ROW])
    part = report.text(report.read(tmp_path))["speed"]
    titles = [line for line in part.splitlines() if line.startswith("### ")]
    assert titles == ["### Some CPU, 2 cores", "### A Big GPU"]
    assert "speed_a-big-gpu.png" in part and "A Big GPU with Some CPU, 2 cores" in part


def test_memory_and_growth_have_tables_of_their_own(report, tmp_path):
    sizes = {"name": "2 workers", "peer": "peer", "note": "ratio of memory"}
    sizes |= {"memory_bytes": {"ours": 3 * 2**20, "peer": 4500 * 2**20}, "ratio": {"median": 1500.0}}
    sizes["ratio"] |= {"lowest": 1500.0, "highest": 1500.0}
    alone = {**sizes, "name": "8 workers", "memory_bytes": {"ours": 5 * 2**20}, "ratio": None}
    write(tmp_path, "memory_things", [sizes, alone])
    (tmp_path / "memory_other.json").write_text(json.dumps({"peak_bytes": 1}))  # another format: passed over
    write(tmp_path, "growth_cpu", [{**ROW, "axes": ["batch"]}])
    parts = report.text(report.read(tmp_path))
    assert "| 2 workers | peer | 3 | 4,500 | 1500.00 |" in parts["speed"]
    assert "| 8 workers | peer | 5 | not run |  |" in parts["speed"]
    assert "- All rows: ratio of memory.\n" in parts["speed"]
    assert "![speed]" not in parts["speed"] and "![growth]" in parts["growth"]
    line = "| training step | batch 2, size 480x640 | peer 1.0 "
    line += "| 2.000 | 3.000 | 1.40 (1.20 to 1.60) | 90 | 100 |"
    assert line in parts["growth"] and line not in parts["speed"]


def test_counts_have_a_table_and_a_note_names_its_rows(report, tmp_path):
    counts = {"name": "waits", "peer": "peer", "unit": "per step", "ours": 1, "theirs": 1234, "target": 2}
    other = {**counts, "name": "share", "ours": 61.5, "theirs": 43.0, "target": None, "note": "of the peak"}
    write(tmp_path, "counts_host_cpu", [{**counts, "note": ""}, other, {**counts, "target": 0, "note": ""}])
    part = report.text(report.read(tmp_path))["speed"]
    assert "| waits | peer | per step | 1 | 1,234 | ≤ 2: met |" in part
    assert "| share | peer | per step | 61.5 | 43 |  |" in part
    assert "| waits | peer | per step | 1 | 1,234 | ≤ 0: missed |" in part
    assert "- Share: of the peak.\n" in part


def test_check_notices_a_new_number_and_writing_repairs_the_page_and_draws(report, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write(tmp_path, "speed_things_cpu", [ROW])
    write(tmp_path, "growth_cpu", [{**ROW, "settings": {"batch": n}, "axes": ["batch"]} for n in (1, 2)])
    words = ["--page", str(page), "--results", str(tmp_path)]
    assert report.main([*words, "--check"]) == 1 and page.read_text() == PAGE
    assert "out of date" in capsys.readouterr().out
    assert report.main(words) == 0 and report.main([*words, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and "\nbetween\n" in text and "old" not in text
    for name in ("speed_cpu.png", "growth_cpu.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    write(tmp_path, "speed_things_cpu", [LOSING])
    assert report.main([*words, "--check"]) == 1
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks <!-- begin speed -->"):
        report.main(words)
