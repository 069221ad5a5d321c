"""Signals and time limits stop a run with its state saved."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import outcome

from resnetlib import execute, load_run, train
from resnetlib.errors import OutOfTime, RunError
from resnetlib.runs import upkeep
from resnetlib.training import Callback

pytestmark = pytest.mark.usefixtures("quick_figures")


# Signals -----------------------------------------------------------------------------------------

SIGNALLED = """
import signal, sys
from resnetlib import load_experiment, train
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
train(load_experiment("lite", dataset="digits", depths=[1], widths=[4], epochs=int(sys.argv[2]),
                      device="cpu", output_root=sys.argv[1]))
"""
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def signalled(root, epochs, numbers, *words):
    """Exit status, last line of standard error and folder of a run that gets these signals."""
    command = [sys.executable, "-c", SIGNALLED, str(root), str(epochs), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch ") and int(line.split()[1].partition("/")[0]) == 3:
            for number in numbers:
                process.send_signal(number)
            break
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    (folder,) = (root / "lite").iterdir()
    return process.returncode, errors, folder


OTHER_SIGNALS = [
    pytest.param(name, marks=pytest.mark.exhaustive)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
]


@pytest.mark.slow
@needs_signals
@pytest.mark.parametrize("name", ["SIGTERM", *OTHER_SIGNALS])
def test_a_signal_stops_the_run_with_its_state_saved(tmp_path, name):
    number = getattr(signal, name)
    status, _, folder = signalled(tmp_path, 10_000, [number])
    # Python itself ends by SIGINT where KeyboardInterrupt is not caught.
    assert status == (-number if name == "SIGINT" else 128 + number)
    run = load_run(folder)
    assert run.record["status"] == "interrupted"
    newest = max(path.name for path in (folder / "checkpoints").iterdir())
    assert run.history["epoch"].iloc[-1] == int(newest[6:11]) >= 3
    assert newest in run.record["checkpoints"]


@pytest.mark.slow
@pytest.mark.exhaustive
@needs_signals
def test_an_ignored_signal_stays_ignored(tmp_path):
    status, _, folder = signalled(tmp_path, 5, [signal.SIGHUP], "nohup")
    assert status == 0
    assert load_run(folder).status == "done"


@pytest.fixture
def default_sigterm():
    """Ray, in another test of this process, leaves a handler of its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


class Sending(Callback):
    """Sends signals to its own process after a step."""

    def __init__(self, *numbers, step=2, epoch=2):
        self.numbers, self.place = numbers, (epoch - 1, step)

    def after_step(self, training):
        if (training.epochs_done, training.progress.steps) == self.place:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.slow
@needs_signals
def test_a_second_signal_stops_the_run_at_once(tiny, default_sigterm):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train(tiny(epochs=3), callbacks=[Sending(signal.SIGTERM, signal.SIGTERM)])
    assert caught.value.code == 128 + signal.SIGTERM
    run = load_run(tiny(epochs=3).folder)
    assert run.record["status"] == "interrupted"
    assert list(run.record["checkpoints"]) == ["epoch-00001-step-000000.pt"]
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(2, (1, 2)), (11, (1, 11))])
def test_resume_after_a_signal_is_bit_exact(tiny, tmp_path, step, saved):
    """In the middle of an epoch, and before the evaluation at its end."""
    experiment = tiny(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, callbacks=[Sending(signal.SIGINT, step=step)])
    newest = max(path.name for path in (experiment.folder / "checkpoints").iterdir())
    assert newest == "epoch-{:05d}-step-{:06d}.pt".format(*saved)
    assert outcome(train(experiment)) == outcome(train(experiment, output=tmp_path / "whole"))


@pytest.mark.slow
def test_a_signal_during_the_evaluation_saves_the_epoch(tiny, tmp_path):
    class InEvaluation(Callback):
        def after_evaluation_batch(self, training):
            if training.progress.steps == 11 and training.epochs_done == 1:
                signal.raise_signal(signal.SIGINT)

    experiment = tiny(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, callbacks=[InEvaluation()])
    assert (experiment.folder / "checkpoints" / "epoch-00001-step-000011.pt").is_file()
    assert outcome(train(experiment)) == outcome(train(experiment, output=tmp_path / "whole"))


@pytest.mark.slow
def test_an_interrupted_run_says_what_would_resume_it(tiny):
    """The same call with `fresh` would delete what is saved."""
    experiment = tiny(epochs=3, fresh=True)
    with pytest.raises(KeyboardInterrupt, match=r"step 2 of epoch 2 .* without `fresh` to resume"):
        train(experiment, callbacks=[Sending(signal.SIGINT)])
    again = tiny(epochs=3)
    with pytest.raises(RunError, match="is not finished: its status is 'interrupted'"):
        load_run(again.folder).model()
    done, plan = execute._resume_point(again)
    assert (done, plan) == (1, "interrupted; would resume after step 2 of epoch 2")
    upkeep.drop_checkpoints(again.folder)
    assert execute._resume_point(again) == (0, "interrupted; would start over")


@pytest.mark.slow
@needs_signals
def test_a_handler_of_the_user_is_left_alone(tiny, monkeypatch):
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        run = train(tiny(epochs=2), callbacks=[Sending(signal.SIGUSR1)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]
    assert run.status == "done"


@pytest.mark.slow
def test_train_in_a_thread_handles_no_signals(tiny):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny()).result().status == "done"


# A time limit ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stop_after_saves_at_the_next_step_and_resumes(tiny, tmp_path, monkeypatch):
    """The digest, and so the folder, is that of the run without a limit."""
    experiment = tiny(epochs=3)
    limited = tiny(epochs=3, stop_after="1h30m")
    assert limited.folder == experiment.folder

    class Late(Callback):
        def after_step(self, training):
            if training.epochs_done == 1 and training.progress.steps == 4:
                later = time.monotonic() + 5400
                monkeypatch.setattr("resnetlib.runs.interrupts.time.monotonic", lambda: later)

    with pytest.raises(OutOfTime, match=r"saved after step 4 of epoch 2 .* run it again to resume"):
        train(limited, callbacks=[Late()])
    monkeypatch.undo()
    run = load_run(experiment.folder)
    assert run.record["status"] == "interrupted"
    assert outcome(train(limited)) == outcome(train(experiment, output=tmp_path / "whole"))
