"""The large tensors of annotations lie once in the memory of a machine, whatever the number of processes."""

import glob
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from two_processes import ranks

from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.sharing import shared_on_machine

MEGABYTES = 20


def made(rank, differ=False):
    names = PackedNames.pack([f"picture {n}.png" for n in range(1000)])
    large = torch.arange(MEGABYTES * 2**20 // 8) + (0 if not differ else torch.zeros(1, dtype=torch.int64))
    if differ and rank:
        large = large[1:]
    return {"large": large, "names": names, "small": (torch.tensor([True, False]), 7), "rank": "own" * rank}


def run(rank, folder, differ=False, full=False):
    if full:
        tempfile.mkstemp = lambda **_: (_ for _ in ()).throw(OSError("No space left on device"))
    trainer = SimpleNamespace(world_size=2, local_rank=rank, node_rank=0)
    given = made(rank, differ)
    index = shared_on_machine(given, trainer)
    torch.distributed.barrier()
    assert torch.equal(index["large"], given["large"]) and list(index["names"]) == list(given["names"])
    assert index["small"][0].tolist() == [True, False] and index["rank"] == given["rank"]
    kept = index["large"].data_ptr() == given["large"].data_ptr()
    del given
    int(index["large"].sum())  # touches every page
    torch.distributed.barrier()
    found = mapping(index["large"].data_ptr())
    torch.distributed.barrier()
    index["large"][0] = 5 + rank  # what one writes, the other does not see
    torch.distributed.barrier()
    return {**found, "kept": kept, "first": int(index["large"][0])}


def mapping(address):
    """Kilobytes of the mapping that an address lies in, by what the system counts."""
    rows = Path("/proc/self/smaps").read_text().splitlines()
    inside, found = False, {}
    for row in rows:
        first = row.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
            continue
        if inside and row.endswith(" kB"):
            found[first.rstrip(":")] = int(row.split()[1])
    return found


@pytest.mark.slow
def test_two_processes_hold_the_bytes_of_one(tmp_path):
    before = set(glob.glob(os.path.join(tempfile.gettempdir(), "trunkline-annotations-*")))
    found = ranks(run, tmp_path)
    for rank, each in enumerate(found):
        assert not each["kept"] and each["Rss"] >= MEGABYTES * 1024
        assert each["Private_Dirty"] == each["Private_Clean"] == 0  # nothing is of this process alone
        assert each["first"] == 5 + rank
    total = sum(each["Pss"] for each in found)
    assert MEGABYTES * 1024 <= total < 1.1 * MEGABYTES * 1024
    assert set(glob.glob(os.path.join(tempfile.gettempdir(), "trunkline-annotations-*"))) <= before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["differ", "full"])
def test_what_cannot_be_shared_stays_with_each_process(tmp_path, what):
    found = ranks(run, tmp_path, what == "differ", what == "full")
    assert any(each["kept"] for each in found) and (what == "differ" or all(each["kept"] for each in found))


def test_a_single_process_keeps_its_index():
    index = made(0)
    assert shared_on_machine(index, None) is index
    assert shared_on_machine(index, SimpleNamespace(world_size=1)) is index
