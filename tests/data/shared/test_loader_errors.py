"""Loader processes that are killed, or lack shared memory or open files: the message says what to do."""

import errno
import os
import resource
import signal
from types import SimpleNamespace

import pytest
import torch

from trunkline.cli import _message
from trunkline.data.shared.batches import Batch
from trunkline.data.shared.loader_errors import LoaderProcessError, loader_problem, raise_descriptor_limit
from trunkline.data.shared.loading import ImageBatchSampler, batch_loader


class Images(torch.utils.data.Dataset):
    """Six images; ``act`` is what happens in a loader process when the last but one is read."""

    def __init__(self, act=None):
        self.act = act

    def __len__(self):
        return 6

    def __getitem__(self, request):
        if request.index == 4 and self.act is not None:
            self.act()
        return request.index


def collate(samples):
    ids = torch.tensor(samples)
    image = torch.zeros(len(ids), 3, 256, 256)
    return Batch(image=image, image_sizes=torch.ones(len(ids), 2), image_ids=ids)


def loader(act=None, collate=collate):
    return batch_loader(Images(act), ImageBatchSampler(6, 1), collate, 1, None)


def test_a_killed_loader_process_is_said_with_what_to_lower():
    with pytest.raises(LoaderProcessError) as raised:
        list(loader(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    for words in ("was killed", "main memory is full", "lower --data.workers (now 1)", "--data.batch_size"):
        assert words in str(raised.value)


def test_full_shared_memory_is_said_with_the_remedy():
    def limited(samples):
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)
        )  # of a process of its own
        return collate(samples)

    with pytest.raises(LoaderProcessError, match=r"/dev/shm.* is full; lower --data.workers.*--shm-size 8g"):
        list(loader(collate=limited))


def test_the_limit_of_open_files_is_said_with_the_remedy():
    def few():
        lowest = os.open(os.devnull, os.O_RDONLY)  # the limit is of numbers, of which lower ones may be free
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    with pytest.raises(
        LoaderProcessError, match="limit of open files .* is reached; raise it with `ulimit -n"
    ):
        list(loader(few))


def test_the_signal_of_a_process_that_has_gone_may_come_at_any_moment(monkeypatch):
    """torch raises its error wherever the main process is, also while the cause is looked for."""
    gone = RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 86. Details are lost")
    calls = []

    def interrupted(sentinels, timeout):
        calls.append(sentinels)
        if len(calls) == 1:
            raise gone

    monkeypatch.setattr("trunkline.data.shared.loader_errors.wait", interrupted)
    process = SimpleNamespace(sentinel=3, exitcode=86, pid=7, join=lambda _: None)
    assert "ulimit -n" in loader_problem(EOFError(), 1, [process]) and calls == [[3]]
    monkeypatch.setattr("trunkline.data.shared.loader_errors.wait", lambda sentinels, timeout: sentinels)
    assert "ulimit -n" in loader_problem(EOFError(), 1, [process]), "without that signal"
    process.exitcode = 0
    assert loader_problem(EOFError(), 1, [process]) is None


SAID = {
    "bus": ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible", "/dev/shm"),
    "exited": ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "process 7, 8 was killed, as"),
    "segment": ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "check_images decode"),
    "write": ("unable to write to file </torch_12_34_5>: No space left on device (28)", "--shm-size"),
    "open": ("unable to open shared memory object </torch_1_3> in mode: Too many open files (24)", "ulimit"),
    "ancdata": ("received 0 items of ancdata", "ulimit -n"),
    "files": ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_what_torch_says_is_understood(what):
    text, remedy = SAID[what]
    assert remedy in loader_problem(RuntimeError(text), 3)
    assert "(now 3)" in loader_problem(RuntimeError(text), 3) or what == "segment"


def test_other_errors_stay_as_they_are():
    assert loader_problem(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 3) is None
    assert loader_problem(OSError(errno.ENOENT, "No such file or directory"), 3) is None
    assert loader_problem(ValueError("x.png: damaged"), 3) is None
    wrapped = ValueError("x.png: damaged image (OSError: [Errno 24] Too many open files)")
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert "ulimit -n" in loader_problem(wrapped, 0)


def test_the_command_says_what_the_error_says():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    error.add_note("trunkline: the loader process 7 was killed")
    assert _message(error) == "the loader process 7 was killed"


def test_the_limit_of_open_files_is_raised_as_far_as_allowed():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raise_descriptor_limit()
        allowed = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (max(256, allowed), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
