"""A run that was stopped anywhere and goes on ends bit for bit where one that was not ends."""

import random
import signal

import pytest
from exact_runs import Case, KillAt, KillSaving, assert_same_end, finish
from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler

pytestmark = pytest.mark.forks


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Runs that nothing stops, by their case."""
    made = {}

    def run(case):
        key = str(case)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("quiet")
            finish(case, made[key], [])
        return made[key]

    return run


@pytest.fixture
def roots(request):
    """The dataset of a task, made when it is asked for."""
    names = {
        "detection": "shapes", "classification": "class_folders", "segmentation": "masked_shapes",
        "multitask": "shapes_with_masks", "scans": "small_scans",
    }  # fmt: skip
    return lambda task: request.getfixturevalue(names[task])


@pytest.fixture(scope="session")
def small_scans(tmp_path_factory):
    from scan_cases import write

    folder = tmp_path_factory.mktemp("scans")
    write(folder)
    return folder


def ends_alike(case, folder, quiet, *kills, statuses=None):
    """Stop a run by those callbacks, one for each of its processes, and compare."""
    ended = finish(case, folder, kills)
    assert ended == (statuses or [-signal.SIGKILL] * len(kills)) + [0]
    assert_same_end(quiet(case), folder)


def test_killed_between_two_steps(class_folders, tmp_path, quiet):
    """With mixup, dropout, an average of the weights, and the random states of another process."""
    ends_alike(
        Case("classification", class_folders, save_every=1, epochs=2),
        tmp_path,
        quiet,
        KillAt("on_train_batch_start", 4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation", "multitask", "scans"])
def test_every_task(roots, tmp_path, quiet, task):
    """Killed in the first validation within an epoch, and in a later step."""
    case = Case(task, roots(task), epochs=2, trainer={"val_check_interval": 2})
    ends_alike(case, tmp_path, quiet, KillAt("on_validation_start", 2), KillAt("on_train_batch_start", 3))


HOOKS = [
    ("on_train_epoch_start", 3), ("on_before_backward", 4), ("on_before_optimizer_step", 4),
    ("on_train_batch_end", 5), ("on_validation_batch_end", 6), ("on_validation_end", 6),
    ("on_train_epoch_end", 6), ("on_train_end", 9),
]  # fmt: skip


@pytest.mark.slow
def test_killed_in_any_hook(class_folders, tmp_path, quiet):
    """One run that is killed in one hook after the other, with a schedule that follows a metric."""
    case = Case("classification", class_folders, save_every=1, schedule="plateau")
    ends_alike(case, tmp_path, quiet, *(KillAt(*each) for each in HOOKS))


@pytest.mark.slow
def test_killed_while_saving(class_folders, tmp_path, quiet):
    case = Case("classification", class_folders, save_every=1)
    ends_alike(case, tmp_path, quiet, *map(KillSaving, (1, 2, 4, 5, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kills"),
    [
        ({"workers": 2}, [("on_train_batch_start", 2), ("on_train_batch_start", 5)]),
        (
            {"trainer": {"accumulate_grad_batches": 2, "val_check_interval": 2}},
            [("on_train_batch_start", 1), ("on_validation_start", 3)],
        ),
        (
            {
                "epochs": -1,
                "trainer": {"max_steps": 8, "check_val_every_n_epoch": None, "val_check_interval": 2},
            },
            [("on_train_batch_start", 4), ("on_train_batch_start", 7)],
        ),
        (
            {"callbacks": lambda: [GradientAccumulationScheduler({0: 1, 1: 2})]},
            [("on_train_batch_start", 4), ("on_train_batch_start", 5)],
        ),
    ],
    ids=["workers", "accumulated", "steps", "scheduled accumulation"],
)
def test_ways_to_train(class_folders, tmp_path, quiet, case, kills):
    case = Case("classification", class_folders, save_every=1, **case)
    ends_alike(case, tmp_path, quiet, *(KillAt(*each) for each in kills))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_saves_and_ends_with_its_status(class_folders, tmp_path, quiet, number):
    """In a step, at the end of an epoch, and in a validation, which is finished first."""
    moments = [("on_train_batch_start", 1), ("on_train_batch_end", 3), ("on_validation_batch_end", 6)]
    kills = [KillAt(*moment, number) for moment in moments]
    statuses = [128 + number] * len(kills)
    ends_alike(Case("classification", class_folders), tmp_path, quiet, *kills, statuses=statuses)


@pytest.mark.slow
def test_asked_to_stop_between_accumulated_batches_it_goes_on_to_their_step(class_folders, tmp_path, quiet):
    case = Case("classification", class_folders, trainer={"accumulate_grad_batches": 2})
    kills = [KillAt("on_train_batch_start", step, signal.SIGTERM) for step in (0, 1, 2)]
    ends_alike(case, tmp_path, quiet, *kills, statuses=[143, 143, 143])


class Means(Callback):
    """Logs the mean of a whole epoch, and a random number that only the model's generator gives."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("epoch/loss", outputs["loss"], on_step=False, on_epoch=True, batch_size=len(batch))
        module.log("epoch/draw", float(random.random()), on_step=True, on_epoch=True, reduce_fx="max")


@pytest.mark.slow
def test_means_over_an_epoch_count_all_of_it(class_folders, tmp_path, quiet):
    case = Case("classification", class_folders, save_every=1, callbacks=lambda: [Means()])
    ends_alike(case, tmp_path, quiet, KillAt("on_train_batch_start", 4), KillAt("on_train_batch_start", 8))
