"""When one of two processes fails, is killed or hangs, both end soon, and say why."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time

import pytest
import torch
import torch.distributed as dist
from memory_tasks import Everything, single, trainer
from pytorch_lightning import Callback
from two_processes import environment

from trunkline.data.shared.io import ImageError
from trunkline.tasks.run import peers
from trunkline.tasks.run.peers import Peers

pytestmark = pytest.mark.forks


class Fault(Callback):
    """Does something to one of the processes in its second step."""

    def __init__(self, rank, what):
        self.rank, self.what = rank, what

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_rank != self.rank:
            if batch_idx and "busy" in self.what:
                time.sleep(1000)  # as in an exchange that no error ends
            return
        if batch_idx:
            if "killed" in self.what:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ImageError("b.png: is no image")

    def on_exception(self, trainer, task, exception):
        if "hangs" in self.what and trainer.global_rank == self.rank:
            time.sleep(1000)


class Unprepared(Everything):
    def prepare_data(self):
        raise ImageError("b.png: is no image")


def run(rank, folder, failing, what):
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stderr = os.fdopen(2, "w")
    torch.set_num_threads(1)
    peers.GRACE, peers.HANDLERS = 2.0, 3.0
    os.environ.update(environment(rank, 2))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = Unprepared("land") if what == "unprepared" else Everything("land")
    single_run = trainer(
        folder, devices=2, strategy="ddp", use_distributed_sampler=False, callbacks=[Fault(failing, what)]
    )
    single_run.fit(single("land", neck=None), data)


CASES = [
    (rank, what)
    for what in ("an error", "an error that hangs", "an error while the other is busy", "killed, busy")
    for rank in (0, 1)
] + [(0, "unprepared")]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Exit codes, what was said, and the seconds that it took, by case. All cases run at the same time."""
    context, started = multiprocessing.get_context("fork"), {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("peers")
        made = [context.Process(target=run, args=(rank, folder, *case)) for rank in range(2)]
        for process in made:
            process.start()
        started[case] = folder, made
    end, found = time.monotonic() + 60, {}
    for case, (folder, made) in started.items():
        for process in made:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in made]
        for process in made:
            process.kill()
        found[case] = codes, [(folder / f"{rank}.log").read_text() for rank in range(2)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "what"), CASES)
def test_both_processes_end_with_a_message(ended, failing, what):
    codes, said = ended[failing, what]
    other = 1 - failing
    why = "it has ended without a word" if "killed" in what else "ImageError: b.png: is no image"
    assert codes[failing] == (-signal.SIGKILL if "killed" in what else 1), said[failing]
    assert codes[other] == 1, said[other]
    assert f"trunkline: process {failing} has failed, so process {other} stops too: {why}" in said[other]
    if "busy" in what:
        assert f"process {other} is ended: it waited for process {failing}" in said[other]
    if "hangs" in what:
        assert f"process {failing} is ended: its error was not handled within 3 s" in said[failing]


def connected(count):
    """The connections of several processes in this one, and what each was told."""
    told = [[] for _ in range(count)]
    made = [Peers(rank, lambda *words, rank=rank: told[rank].append(words)) for rank in range(count)]
    port, word = made[0].listen()
    for each in made[1:]:
        each.connect("127.0.0.1", port, word)
    wait_for(lambda: len(made[0]._sockets) == count - 1)
    return made, told, port


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("failing", [0, 2])
def test_all_others_are_told_once(failing):
    made, told, _ = connected(4)
    made[failing].failed("no memory")
    made[failing].failed("again")
    others = [rank for rank in range(4) if rank != failing]
    wait_for(lambda: all(told[rank] for rank in others))
    made[1].failed("a consequence")
    made[3].leave()
    assert [told[rank] for rank in others] == [[(failing, "no memory")]] * 3 and not told[failing]


def test_a_closed_connection_is_a_failure_and_a_farewell_is_none():
    made, told, _ = connected(3)
    made[2].leave()
    made[2]._sockets[0].close()
    made[1]._sockets[0].shutdown(socket.SHUT_RDWR)
    wait_for(lambda: told[0])
    assert told[0][0][0] == 1 and "ended without a word" in told[0][0][1] and not told[2]


def test_strangers_are_not_listened_to():
    made, told, port = connected(2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'wrong 1\n{"rank": 1, "message": "stop"}\n')
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    made[0].failed("true")
    wait_for(lambda: told[1])
    assert told == [[], [(0, "true")]]
