"""Runs a function in several forked processes that form a group, as torchrun starts them."""

import multiprocessing
import os
import time
import traceback

import torch
import torch.distributed as dist


def ranks(work, folder, *arguments, world=2, timeout=200):
    """Call ``work(rank, folder, *arguments)`` in each process; return what they returned, by rank.

    The processes are forks of this one, which has imported everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=_rank, args=(work, rank, world, folder, arguments)) for rank in range(world)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + timeout
    try:
        for process in started:
            process.join(max(0, end - time.monotonic()))
        errors = [path.read_text() for path in sorted(folder.glob("error*.txt"))]
        assert not errors, "\n".join(errors)
        assert [process.exitcode for process in started] == [0] * world
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def environment(rank, world):
    """The variables by which Lightning sees that torchrun has started a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip


def _rank(work, rank, world, folder, arguments):
    try:
        torch.set_num_threads(1)
        os.environ.update(environment(rank, world))
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        torch.save(work(rank, folder, *arguments), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise
