"""Run by test_parallel.py: two processes that train every task by DDP, and one by sharded weights.

Writes for each rank and case the names of parameters without a gradient, and the weights at the end. (Running
statistics of norms are those of each process until the next step.)
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from memory_tasks import Everything, multi, single, trainer
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils.data import DataLoader

from trunkline.backbones import ResidualEncoder
from trunkline.data.scans.batches import ScanBatch
from trunkline.heads import UNet
from trunkline.tasks.base import compilation
from trunkline.tasks.base.task import Task, training_losses
from trunkline.tasks.volumes import VolumeSegmentation

STEPS = 3
NAMES = ("boxes", "land", "scene", "all", "scans")


def scans():
    torch.manual_seed(0)
    return VolumeSegmentation(
        backbone=ResidualEncoder(
            channels=[4, 4, 8, 8], blocks=[1] * 4, strides=[1, 2, 2, 2], norm="instance"
        ),
        head=lambda levels: UNet(levels, 3, norm="instance", deep_supervision=True),
        optimizer=sgd,
    )


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def task_of(name, **options):
    if name == "scans":
        return scans()
    options["optimizer"] = sgd
    if name in ("scene", "land"):
        options["neck"] = None  # of a pyramid these heads read the coarsest map alone
    return multi(**options) if name == "all" else single(name, **options)


def without_objects(batch):
    """A batch whose labels say nothing: no box, no labelled pixel, no class."""
    nothing = {"labels": -1, "land": 255, "sky": 255, "mask": 255, "scene": -1, "label": -1}
    emptied = {name: torch.full_like(vars(batch)[name], value) for name, value in nothing.items()
               if name in vars(batch)}  # fmt: skip
    return replace(batch, **emptied)


def batches(name, rank):
    """Three batches for each process; the second of process 1 and the third of both hold no objects."""
    if name == "scans":
        generator = torch.Generator().manual_seed(rank)
        made = [
            ScanBatch(
                image=torch.randn(2, 1, 16, 16, 16, generator=generator),
                mask=torch.randint(0, 3, (2, 16, 16, 16), dtype=torch.uint8, generator=generator),
                image_sizes=torch.full((2, 3), 16),
                image_ids=torch.arange(2),
            )
            for _ in range(STEPS)
        ]
    else:
        made = [Everything("" if name == "all" else name).batches[rank]] * STEPS
    empty = [without_objects(batch) for batch in made]
    return [made[0], empty[1] if rank else made[1], empty[2]]


def train(folder, name, rank, static, compiled=False):
    task = task_of(name, **({"compile": True} if compiled else {}))
    missing = []
    task.on_before_optimizer_step = lambda optimizer: missing.append(
        [key for key, value in task.named_parameters() if value.requires_grad and value.grad is None]
    )
    strategy = pl.strategies.DDPStrategy(
        process_group_backend="gloo", find_unused_parameters=False, static_graph=static
    )
    torch.manual_seed(rank)  # other proposals are drawn on each process
    run = trainer(folder, strategy=strategy, devices=2, use_distributed_sampler=False)
    run.fit(task, train_dataloaders=DataLoader(batches(name, rank), batch_size=None))
    assert run.world_size == 2 and run.global_step == STEPS
    return {"missing": missing, "weights": {key: value.detach() for key, value in task.named_parameters()}}


def sharded(name, rank):
    """Two steps of each process on its own batches, with the weights divided among both."""
    task = task_of(name)
    for part in (task.backbone, task.head, task):
        fully_shard(part)
    register_fsdp_forward_method(task, "run_step")
    return stepped(task, [[batch] for batch in batches(name, rank)[:2]])


def whole(name):
    """The same without division: each step is the mean over the batches of both processes."""
    both = zip(batches(name, 0)[:2], batches(name, 1)[:2], strict=True)
    return stepped(task_of(name), [list(pair) for pair in both])


def stepped(task, steps):
    optimizer = task.configure_optimizers()[0][0]
    for parts in steps:
        for batch in parts:
            losses = task.run_step(batch)
            (torch.stack(list(losses.values())).sum() / len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = {key: value.detach() for key, value in task.named_parameters()}
    return {key: v.full_tensor() if hasattr(v, "full_tensor") else v for key, v in state.items()}


def work(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="tests", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
    )  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {
        f"{name} {static}": train(folder, name, rank, static) for name in NAMES for static in (False, True)
    }
    compilation.BACKEND = "aot_eager"
    found["scene compiled"] = train(folder, "scene", rank, static=False, compiled=True)
    Task.run_step = training_losses  # sharding knows methods
    for name in ("scene", "land"):
        found[f"{name} sharded"] = {"weights": sharded(name, rank), "whole": whole(name)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(Path(sys.argv[1]),), nprocs=2)
