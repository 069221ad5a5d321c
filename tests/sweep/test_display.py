"""The number of runs that are done, the best one and the time left."""

import time

import pytest

from resnetlib import files
from resnetlib.sweep.display import Display


def train(task, *accuracies):
    rows = [f"{epoch},{accuracy}" for epoch, accuracy in enumerate(accuracies, 1)]
    files.write_text(task.folder / "history.csv", "\n".join(["epoch,test_accuracy", *rows]))


@pytest.fixture
def tasks(quick):
    return [quick(seed=seed) for seed in range(4)]


@pytest.fixture
def display(tasks):
    """Of four runs of two epochs, one of which was done before."""
    display = Display(3 * tasks[0].work, runs=4, done=1)
    display.live = True
    display.began = time.monotonic() - 36_000
    return display


def time_left(display, *running):
    display.next_look = 0
    described = []
    display.total.set_description_str = described.append
    display.update(running)
    return described[0].rpartition("; ")[2]


def test_time_left_follows_the_epochs(display, tasks):
    train(tasks[0])
    assert time_left(display, tasks[0]) == "1 of 4 runs are done"
    train(tasks[0], 0.5)
    assert time_left(display, tasks[0]) == "about 50 h 00 min left"
    train(tasks[0], 0.5, 0.6)
    display.ended(tasks[0], 0.6)
    assert time_left(display) == "about 20 h 00 min left"


def test_time_left_leaves_out_what_a_failed_run_did_not_do(display, tasks):
    train(tasks[0])
    assert time_left(display, tasks[0]) == "1 of 4 runs are done"
    train(tasks[0], 0.5)
    display.ended(tasks[0], None)
    assert time_left(display) == "about 40 h 00 min left"
    assert display.state() == "1 of 4 runs are done"


def test_time_left_leaves_out_what_was_trained_before(display, tasks):
    train(tasks[0], 0.5)
    assert time_left(display, tasks[0]) == "1 of 4 runs are done"
    train(tasks[0], 0.5, 0.6)
    display.ended(tasks[0], 0.6)
    assert time_left(display) == "about 40 h 00 min left"


def test_accuracies_that_cannot_be_compared_have_no_best():
    display = Display(0, runs=2, done=2, comparable=False)
    display.compare(0.8, "test_accuracy", "lite, dataset digits")
    assert display.best is None


def test_best_run_may_be_one_of_an_earlier_call(display, tasks):
    display.compare(0.8, "test_accuracy", "lite, seed 0")
    train(tasks[1], 0.5, 0.6)
    display.ended(tasks[1], 0.6)
    assert display.best == (0.8, "best test accuracy 80.00%: lite, seed 0")
