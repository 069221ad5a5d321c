"""How the process of a run is asked to end."""

import os
import signal
import sys

import pytest

from resnetlib import load_run, train
from resnetlib.signals import input_ended, stop_now
from resnetlib.sweep import process
from resnetlib.training import Callback

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def terminate():
    signal.raise_signal(signal.SIGTERM)


class Asked(Callback):
    """Asks its own process to end, after the second step of the second epoch."""

    def __init__(self, *requests):
        self.requests = requests

    def after_step(self, training):
        if (training.epochs_done, training.progress.steps) == (1, 2):
            for request in self.requests:
                request()


@needs_signals
@pytest.mark.slow
@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("requests", "saved"),
    [
        ([terminate, process._wait_for_the_end], "epoch-00001-step-000002.pt"),
        ([process._wait_for_the_end, terminate], "epoch-00001-step-000002.pt"),
        ([process._wait_for_the_end, terminate, terminate], "epoch-00001-step-000000.pt"),
    ],
)
def test_signal_and_end_of_the_input_are_one_request(tiny, monkeypatch, requests, saved):
    """systemd and Slurm send it to every process; the sweep then closes the input of its runs."""
    monkeypatch.setattr(os, "read", lambda *_: b"")
    experiment = tiny(epochs=3)
    before = signal.signal(signal.SIGTERM, stop_now)  # Ray leaves a handler of its own
    try:
        with pytest.raises(SystemExit):
            train(experiment, callbacks=[Asked(*requests)])
    finally:
        signal.signal(signal.SIGTERM, before)
        input_ended.clear()
    assert max(load_run(experiment.folder).record["checkpoints"]) == saved
