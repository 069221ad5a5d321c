"""Runs: the folder that a training leaves, refusals, and bit-exact resuming."""

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from conftest import TINY, history_of, outcome, weights_of
from torch._inductor.exc import InductorError

from resnetlib import (
    evaluate,
    execute,
    files,
    load_dataset,
    load_experiment,
    load_run,
    pickles,
    train,
)
from resnetlib.config import apply_overrides
from resnetlib.errors import ConfigError, Diverged, RunError, UserError
from resnetlib.runs import artifacts, checkpoint, lifecycle, record
from resnetlib.training import Callback, Trainer

pytestmark = pytest.mark.usefixtures("quick_figures")

WRITE_FIGURES = artifacts.write_figures


# A run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_leaves_the_complete_folder(tiny, monkeypatch):
    monkeypatch.setattr(artifacts, "write_figures", WRITE_FIGURES)
    run = train(tiny(epochs=2))
    expected = {"experiment.yaml", "summary.txt", "history.csv", "metrics.json"}
    expected |= {"confusion_matrix.csv", "per_class.csv", "predictions.npz", "model.safetensors"}
    figures = ("curves", "confusion_matrix", "reliability", "mistakes")
    expected |= {f"figures/{name}.png" for name in figures}
    assert set(run.record["artifacts"]) == expected
    for name, checksum in run.record["artifacts"].items():
        assert files.sha256(run.path / name) == checksum
    assert run.status == "done"
    assert not (run.path / "checkpoints").exists()
    assert list(run.history["epoch"]) == [0, 1, 2]
    columns = "epoch train_loss train_accuracy test_loss test_accuracy lr seconds"
    assert list(run.history.columns) == columns.split()


@pytest.mark.slow
def test_gradients_and_autocast_of_the_caller_do_not_count(tiny, few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycle, "load_dataset", lambda *_: few_digits)
    experiment = tiny(precision="float32")
    plain = train(experiment, output=tmp_path / "plain")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = train(experiment, output=tmp_path / "inside")
    assert outcome(inside) == outcome(plain)


@pytest.mark.slow
def test_metrics_agree_with_the_other_files(tiny, digits):
    run = train(tiny(epochs=2))
    last = run.history.iloc[-1]
    assert run.metrics["test_accuracy"] == pytest.approx(last["test_accuracy"])
    assert run.metrics["test_accuracy"] == run.evaluation.accuracy
    assert run.metrics["best_test_accuracy"] == run.history["test_accuracy"].iloc[1:].max()
    assert "best_test_accuracy" in run.metrics["selected_on_test"]
    table = pd.read_csv(run.path / "confusion_matrix.csv", index_col=0)
    assert (table.to_numpy() == run.evaluation.confusion).all()
    again = evaluate(run.model(), *digits.test, mean=digits.mean, std=digits.std)
    torch.testing.assert_close(again.logits, run.evaluation.logits)
    json.loads((run.path / "metrics.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_train_loads_a_finished_run(tiny):
    first = train(tiny())
    written = (first.path / "run.json").stat().st_mtime_ns
    assert train(tiny()).record == first.record
    assert (first.path / "run.json").stat().st_mtime_ns == written
    assert train(tiny(fresh=True)).record["finished"] >= first.record["finished"]
    assert (first.path / "run.json").stat().st_mtime_ns > written


@pytest.mark.slow
def test_train_is_the_same_in_any_folder(tiny, tmp_path, monkeypatch):
    first = train(tiny(epochs=2, augment=["crop", "flip"]))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(123)
    second = train(tiny(epochs=2, augment=["crop", "flip"]), output=tmp_path / "elsewhere")
    assert second.path == tmp_path / "elsewhere"
    assert weights_of(first) == weights_of(second)
    assert history_of(first).equals(history_of(second))


@pytest.mark.slow
def test_train_repeats_a_written_experiment(tiny, tmp_path):
    run = train(tiny(epochs=2))
    again = train(load_experiment(str(run.path / "experiment.yaml")), output=tmp_path / "again")
    assert weights_of(again) == weights_of(run)


@pytest.mark.slow
def test_train_refuses_a_folder_of_another_experiment(tiny, tmp_path):
    train(tiny(), output=tmp_path / "run")
    with pytest.raises(ConfigError, match="another experiment"):
        train(tiny(seed=1), output=tmp_path / "run")
    assert load_run(tmp_path / "run").experiment.seed == 0


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_finished_run_keeps_checkpoints_on_demand(tiny, keep):
    experiment = tiny(keep_checkpoints=keep)
    for _ in range(2):  # trained, then loaded
        assert any(train(experiment).path.glob("checkpoints/*.pt")) == keep


@pytest.mark.slow
def test_train_restores_the_random_state(tiny):
    before = torch.get_rng_state()
    train(tiny(block="dropout", dropout=0.2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("select", "column"), [("best_holdout", "holdout"), ("best_test", "test")])
def test_select_keeps_the_best_epoch(tiny, digits, select, column):
    # A rate this high makes the accuracy go up and down, so that the best epoch is not the last,
    # for most seeds; for which ones depends on the processor.
    settings = {"epochs": 6, "lr": 1.5, "holdout": 100, "select": select, "precision": "float32"}
    for seed in range(20):
        run = train(tiny(**settings, seed=seed))
        if run.metrics["selected_epoch"] < 6:
            break
    scores = run.history[f"{column}_accuracy"].iloc[1:]
    assert run.metrics["selected_epoch"] == scores.idxmax() != 6
    epoch = run.history.iloc[run.metrics["selected_epoch"]]
    assert run.evaluation.accuracy == pytest.approx(epoch["test_accuracy"])
    assert run.metrics["test_accuracy"] == pytest.approx(run.history["test_accuracy"].iloc[-1])
    assert ("selected_epoch" in run.metrics["selected_on_test"]) == (select == "best_test")


# Refused before any data are read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("resnet18", {"budget": 5_000_000}, "11,173,962"),
        ("lite", {"device": "cuda:7"}, "cuda:7"),
        ("lite", {"holdout": 50_000}, "recipe.holdout = 50000: both parts"),
    ],
)
def test_train_refuses_before_data_are_read(variant, overrides, message, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "resnetlib.runs.lifecycle.load_dataset", lambda *_: pytest.fail("data were read")
    )
    with pytest.raises(ConfigError, match=message):
        train(load_experiment(variant, output_root=tmp_path, **overrides))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["a\0b", "x" * 300, "x" * 5000, "/dev/null", "loop/x", "file/x"])
def test_train_refuses_an_unusable_folder(tiny, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        train(tiny(), output=output)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert len(list(tmp_path.iterdir())) == 2


def test_train_needs_an_experiment():
    with pytest.raises(ConfigError, match=r"experiment = 'lite': give one, such as load_exp"):
        train("lite")


# Stopped and resumed -----------------------------------------------------------------------------

STOPS = [(0, 1), (1, 0), (3, 5), (4, 0)]  # epochs done, steps of the next
STATEFUL = {
    "epochs": 4,
    "lr": 0.2,
    "precision": "float32",
    "block": "dropout",
    "dropout": 0.2,
    "widths": [8],
    "lookahead": {"k": 5, "alpha": 0.5},
    "clip": {"by": "value", "limit": 0.1},
    "sam": {"rho": 0.05},
    "ema": {"decay": 0.9},
    "stochastic_depth": 0.1,
    "augment": ["crop", "trivial_augment", "cutmix"],
    "holdout": 1000,  # 347 images are left to train on
    "batch_size": 32,
    "select": "best_holdout",
}


def stop_after(epoch, monkeypatch, step=0):
    """Save after every step, and stop after this one of the epoch that follows `epoch`."""
    save = checkpoint.save_checkpoint

    def save_then_stop(folder, epochs, steps, *rest):
        save(folder, epochs, steps, *rest)
        if (epochs, steps) == (epoch, step):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_then_stop)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SHARE", math.inf)


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    """An experiment with every kind of state; its run whole, and stopped at several moments."""
    folder = tmp_path_factory.mktemp("stateful")
    for seed in range(4, 24):  # until the best epoch is not the last
        shutil.rmtree(folder / "whole", ignore_errors=True)
        experiment = load_experiment("lite", **TINY | STATEFUL, seed=seed)
        if train(experiment, output=folder / "whole").metrics["selected_epoch"] < 4:
            break
    for epoch, step in STOPS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(epoch, patch, step)
            train(experiment, output=folder / f"stopped-{epoch}-{step}")
    return experiment, folder


@pytest.fixture
def stopped(stateful, tmp_path):
    """A copy of the run stopped within the fourth epoch, for one test to resume."""
    experiment, folder = stateful
    shutil.copytree(folder / "stopped-3-5", tmp_path / "stopped")
    return experiment, tmp_path / "stopped", load_run(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "step"), STOPS)
def test_resume_is_bit_exact(stateful, tmp_path, epoch, step):
    experiment, folder = stateful
    stopped = folder / f"stopped-{epoch}-{step}"
    assert load_run(stopped).status == "interrupted"
    shutil.copytree(stopped, tmp_path / "run")
    resumed = train(experiment, output=tmp_path / "run")
    assert resumed.status == "done"
    assert outcome(resumed) == outcome(load_run(folder / "whole"))


@pytest.mark.slow
def test_resume_restores_adams_moments(tiny, tmp_path, monkeypatch):
    experiment = tiny(epochs=3, optimizer={"name": "adam", "lr": 0.01})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(2, patch)
        train(experiment)
    assert outcome(train(experiment)) == outcome(train(experiment, output=tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "item", ["model", "optimizer", "average", "history", "best", "progress", "sums"]
)
def test_resume_needs_every_item_of_the_state(stopped, monkeypatch, item):
    """Proves that the tests above bite: each item is needed."""
    experiment, folder, whole = stopped
    fresh = Trainer(experiment, load_dataset("digits"))
    fresh.record_epoch(fresh.evaluate_untrained())
    load = checkpoint.load_checkpoint
    without = {item: fresh.state()[item]}
    monkeypatch.setattr(
        "resnetlib.runs.lifecycle.load_checkpoint", lambda *given: load(*given) | without
    )
    assert outcome(train(experiment, output=folder)) != outcome(whole)


KILLED = """
import sys
from resnetlib import load_experiment, train
train(load_experiment("lite", dataset="digits", depths=[1], widths=[4], epochs=6, device="cpu",
                      augment="crop,flip", output_root=sys.argv[1]))
"""


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_exact(tmp_path, capsys):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    (folder,) = (tmp_path / "killed" / "lite").iterdir()
    assert load_run(folder).record["status"] == "running"
    assert load_run(folder).status == "interrupted"  # as no process has the lock
    killed = train(load_run(folder).experiment, output=folder)  # in another process: this one
    assert "resuming after epoch " in capsys.readouterr().out
    whole = train(killed.experiment, output=tmp_path / "whole")
    assert weights_of(killed) == weights_of(whole)
    assert history_of(killed).equals(history_of(whole))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_train_is_the_same_in_any_environment(tmp_path):
    """Hash seed, time zone, locale, working directory."""
    runs_of = []
    for number, environment in enumerate(
        (
            {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"},
        )
    ):
        place = tmp_path / str(number)
        place.mkdir()
        command = [sys.executable, "-c", KILLED, str(place)]
        subprocess.run(
            command, cwd=place, env=os.environ | environment, capture_output=True, check=True
        )
        runs_of.append(load_run(next((place / "lite").iterdir())))
    first, second = runs_of
    assert weights_of(first) == weights_of(second)
    assert history_of(first).equals(history_of(second))
    assert torch.equal(first.evaluation.logits, second.evaluation.logits)


@pytest.mark.slow
def test_resume_passes_over_a_damaged_checkpoint(stopped):
    experiment, folder, whole = stopped
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(
        UserWarning,
        match=r"epoch-00003-step-000005.pt damaged .*; resuming from epoch-00003-step-000004.pt",
    ):
        resumed = train(experiment, output=folder)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.slow
def test_resume_refuses_without_a_good_checkpoint(stopped):
    experiment, folder, whole = stopped
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"all checkpoints .* damaged"):
        train(experiment, output=folder)
    fresh = apply_overrides(experiment, {"fresh": True})
    assert outcome(train(fresh, output=folder)) == outcome(whole)


@pytest.mark.slow
def test_resume_tells_an_unreadable_checkpoint_from_a_damaged_one(stopped, monkeypatch):
    """`fresh`, which a run with damaged ones needs, would delete sound ones."""
    experiment, folder, whole = stopped
    *_, older, newest = sorted((folder / "checkpoints").iterdir())
    unreadable, read = {older, newest}, files.read_bytes

    def read_bytes(path, *largest):
        if path in unreadable:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path, *largest)

    monkeypatch.setattr(files, "read_bytes", read_bytes)
    with pytest.raises(RunError, match=r"\.pt: Stale file handle.* saved up to"):
        train(experiment, output=folder)
    unreadable.remove(older)
    with pytest.warns(UserWarning, match=rf"{newest.name} \(Stale .* resuming from {older.name}"):
        assert outcome(train(experiment, output=folder)) == outcome(whole)


def test_want_of_memory_is_no_damage_to_a_checkpoint(stopped, monkeypatch):
    experiment, folder, _ = stopped
    monkeypatch.setattr(pickles, "unpickle_tensors", Mock(side_effect=MemoryError))
    with pytest.raises(RunError, match="out of memory"):
        train(experiment, output=folder)


def test_resume_refuses_checkpoints_without_a_record(stopped):
    experiment, folder, _ = stopped
    (folder / "run.json").unlink()
    before = sorted(folder.rglob("*"))
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"not a run folder \(no run.json\)"):
            train(apply_overrides(experiment, {"fresh": fresh}), output=folder)
    assert sorted(folder.rglob("*")) == before


def replace_content(path, change):
    """Change what a checkpoint holds, behind a checksum that fits."""
    state = pickles.unpickle_tensors(files.read_checksummed(path))
    change(state)
    path.write_bytes(files.with_checksum(checkpoint.to_bytes(state)))


def forge_accuracies(state):
    for row in state["history"]:
        row["test_accuracy"] = 0.99


FORGERIES = {
    "accuracies": forge_accuracies,
    "momentum": lambda state: state["optimizer"]["optimizer"]["param_groups"][0].update(momentum=0),
    "weights": lambda state: state["model"]["linear.bias"].zero_(),
    "no keys": dict.clear,
}


@pytest.mark.slow
@pytest.mark.parametrize("forgery", FORGERIES)
def test_resume_refuses_a_forged_checkpoint(stopped, forgery):
    experiment, folder, whole = stopped
    newest = max((folder / "checkpoints").iterdir())
    replace_content(newest, FORGERIES[forgery])
    with pytest.warns(UserWarning, match=f"{newest.name} damaged or not of this run"):
        resumed = train(experiment, output=folder)
    assert outcome(resumed) == outcome(whole)


def test_resume_refuses_only_forged_checkpoints(stopped):
    experiment, folder, _ = stopped
    for path in (folder / "checkpoints").iterdir():
        replace_content(path, forge_accuracies)
    with pytest.raises(RunError, match=r"all checkpoints .* not of this run .*fresh"):
        train(experiment, output=folder)


@pytest.mark.slow
def test_resume_refuses_checkpoints_of_another_run(stopped, tmp_path, monkeypatch):
    experiment, folder, _ = stopped
    other = apply_overrides(experiment, {"lr": 0.01})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch, 5)
        train(other, output=tmp_path / "other")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")
    with pytest.raises(RunError, match=r"all checkpoints .* not of this run"):
        train(experiment, output=folder)


@pytest.mark.slow
def test_resume_ignores_a_checkpoint_that_is_not_recorded(stopped):
    experiment, folder, whole = stopped
    newest = max((folder / "checkpoints").iterdir())
    shutil.copy(newest, newest.with_name("epoch-00099-step-000000.pt"))
    with pytest.warns(UserWarning, match="epoch-00099-step-000000.pt damaged or not of this run"):
        assert outcome(train(experiment, output=folder)) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "dangling link", "named pipe"])
def test_resume_passes_over_what_is_not_a_file(stopped, kind):
    experiment, folder, whole = stopped
    newest = max((folder / "checkpoints").iterdir())
    newest.unlink()
    if kind == "folder":
        newest.mkdir()
    elif kind == "dangling link":
        newest.symlink_to(folder / "nothing")
    else:
        os.mkfifo(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} damaged"):
        resumed = train(experiment, output=folder)
    assert outcome(resumed) == outcome(whole)


def as_recorded_before_0_2(folder):
    """Remove from the record what older versions did not write."""
    record = json.loads((folder / "run.json").read_text())
    del record["checkpoints"], record["step_source"]
    files.write_json(folder / "run.json", record)


@pytest.mark.slow
def test_resume_of_an_older_run_is_listed_as_inexact(stopped):
    experiment, folder, whole = stopped
    as_recorded_before_0_2(folder)
    resumed = train(experiment, output=folder)
    assert outcome(resumed) == outcome(whole)
    (resume,) = resumed.record["inexact_resumes"]
    assert resume["differences"] == ["the source of the training step was not recorded"]


@pytest.mark.parametrize(
    "change",
    [
        dict.clear,
        lambda state: state["model"].popitem(),
        lambda state: state.update(history=3),
        lambda state: state.update(history=state["history"] * 10),
        lambda state: state["progress"].update(steps=10**15),
        lambda state: state["progress"].update(steps=-1),
    ],
)
def test_resume_of_an_older_run_refuses_another_state(stopped, change):
    experiment, folder, _ = stopped
    as_recorded_before_0_2(folder)
    for path in (folder / "checkpoints").iterdir():
        replace_content(path, change)
    with pytest.raises(RunError, match=r"^the checkpoint is not of this run \(.*\); `fresh"):
        train(experiment, output=folder)


@pytest.mark.slow
def test_resume_lists_a_changed_training_step(stopped, monkeypatch):
    experiment, folder, whole = stopped
    assert whole.record["step_source"] == record.step_source()
    monkeypatch.setattr("resnetlib.runs.record.step_source", lambda: "other")
    (resume,) = train(experiment, output=folder).record["inexact_resumes"]
    assert resume["differences"] == ["the source of the training step has changed"]


def test_step_source_depends_on_every_module_of_a_step(tmp_path, monkeypatch):
    package = Path(record.__file__).parents[1]
    shutil.copytree(package, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(record, "__file__", str(tmp_path / "copy" / "runs" / "record.py"))
    seen = {record.step_source()}
    names = "training optim schedule schema blocks resnet rng data evaluation device"
    names += " augment/__init__ augment/draws augment/image_ops augment/policies"
    for name in names.split():
        path = tmp_path / "copy" / f"{name}.py"
        path.write_text(path.read_text() + "# changed\n")
        seen.add(record.step_source())
    assert len(seen) == len(names.split()) + 1
    (tmp_path / "copy" / "cli.py").write_text("")
    assert record.step_source() in seen


def test_train_refuses_a_run_in_use(tiny):
    experiment = tiny()
    with (
        files.lock(experiment.folder / ".lock"),
        pytest.raises(files.RunLocked, match="in use by another process"),
    ):
        train(experiment)


@pytest.mark.slow
def test_resume_refuses_another_number_of_threads(stopped):
    experiment, folder, _ = stopped
    threads = torch.get_num_threads()
    other = apply_overrides(experiment, {"threads": threads + 1})
    with pytest.raises(RunError, match=f"threads was {threads} and is now {threads + 1}"):
        train(other, output=folder)
    run = train(apply_overrides(other, {"allow_inexact_resume": True}), output=folder)
    (resume,) = run.record["inexact_resumes"]
    assert resume["after"] == "step 5 of epoch 4"
    assert "threads" in resume["differences"][0]
    assert run.record["fingerprint"]["threads"] == threads + 1


@pytest.mark.slow
def test_resume_takes_the_recorded_number_of_threads(stopped, monkeypatch):
    experiment, folder, whole = stopped
    threads = torch.get_num_threads()
    used = []
    step = Trainer.train_step
    monkeypatch.setattr(
        Trainer,
        "train_step",
        lambda *given: used.append(torch.get_num_threads()) or step(*given),
    )
    torch.set_num_threads(threads + 1)  # as on a machine with another number of free cores
    try:
        run = train(experiment, output=folder)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert set(used) == {threads}
    assert run.record["fingerprint"]["threads"] == threads
    assert run.record["inexact_resumes"] == []
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize(
    "overrides",
    [
        {"lr": 1e20},
        {"lr": 1e30, "precision": "float32"},
        {"lr": 1e30, "clip": {"by": "norm", "limit": 1}},
        {"lr": 1e30, "lookahead": {"k": 5}},
        {"optimizer": {"name": "adam"}, "lr": 1e30},
        {"lr": 1e30, "sam": {"rho": 0.05}},
    ],
    ids=str,
)
def test_divergence_stops_the_run_within_a_few_steps(tiny, overrides):
    experiment = tiny(epochs=3, **overrides)
    place = r"(loss|gradient) became (nan|inf) in epoch 1, step \d of 11, at a learning rate of"
    with pytest.raises(Diverged, match=place):
        train(experiment)
    run = load_run(experiment.folder)
    assert run.status == "diverged"
    assert "in epoch 1, step" in run.record["error"]


def poison(training, what):
    """Put a value that is not finite where it would be found."""
    if what == "weight":
        training.parameters[0].data.view(-1)[0] = math.inf
    elif what == "buffer":
        next(training.model.buffers())[0] = math.nan
    elif what == "moment":
        optimizer = training.optimizer.optimizer
        optimizer.state[training.parameters[0]]["momentum_buffer"].view(-1)[0] = math.inf
    elif what == "slow weight":
        training.optimizer.slow[0].view(-1)[0] = math.nan
    elif what == "average":
        next(training.average.module.parameters()).data.view(-1)[0] = math.nan


POISONED = ["loss", "gradient", "average"]
POISONED += [
    pytest.param(what, marks=pytest.mark.exhaustive)
    for what in ("weight", "buffer", "moment", "slow weight")
]


@pytest.mark.slow
@pytest.mark.parametrize("what", POISONED)
def test_divergence_is_never_saved(tiny, tmp_path, monkeypatch, what):
    """What is not finite stops the run at once; the cause removed, it resumes from a good state."""
    experiment = tiny(epochs=2, lookahead={"k": 2}, ema={"decay": 0.9})
    train_step = Trainer.train_step

    def poisoned_step(training, images, labels, flip_mask, epoch, step):
        now = (epoch, step) == (2, 2)
        if now and what == "gradient":
            training.clip_gradients = lambda parameters: torch.tensor(math.inf)
        totals = train_step(training, images, labels, flip_mask, epoch, step)
        if now:
            poison(training, what)
        return totals * math.nan if now and what == "loss" else totals

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", poisoned_step)
        patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
        patch.setattr(checkpoint, "CHECKPOINT_SHARE", math.inf)
        with pytest.raises(Diverged, match=r"in epoch 2, step 3 of 11, at a learning rate of"):
            train(experiment)
    assert load_run(experiment.folder).status == "diverged"
    newest = max(path.name for path in (experiment.folder / "checkpoints").iterdir())
    assert newest == "epoch-00001-step-000002.pt"
    assert outcome(train(experiment)) == outcome(train(experiment, output=tmp_path / "whole"))


@pytest.mark.slow
def test_divergence_in_the_last_step_is_not_saved(tiny):
    experiment = tiny(epochs=2, batch_size=1347, lr=1e30)  # one step an epoch
    with pytest.raises(Diverged, match="in epoch 1"):
        train(experiment)
    assert load_run(experiment.folder).status == "diverged"
    assert not list((experiment.folder / "checkpoints").glob("*"))


# What a run replaces, and what it leaves ---------------------------------------------------------


@pytest.mark.slow
def test_fresh_keeps_the_run_until_data_are_read(tiny, monkeypatch):
    run = train(tiny())

    def missing(*_):
        raise RunError("no data")

    monkeypatch.setattr("resnetlib.runs.lifecycle.load_dataset", missing)
    with pytest.raises(RunError, match="no data"):
        train(tiny(fresh=True))
    assert load_run(run.path).record == run.record
    assert run.model()


@pytest.mark.slow
def test_train_of_narrow_stages(tiny):
    """In channels-last layout their backward pass writes past its buffers (torch 2.15, AVX2)."""
    for widths in ([2, 2, 2], [4, 4, 4], [3, 5, 9]):
        run = train(tiny(depths=[1, 1, 1], widths=widths))
        assert run.record["fingerprint"]["memory_format"] == "contiguous_format"
    assert train(tiny(widths=[16])).record["fingerprint"]["memory_format"] == "channels_last"


@pytest.mark.slow
def test_fresh_removes_report_and_notebook_first(tiny, monkeypatch):
    """A failed fresh run never leaves a report, or a record, that says `done`."""
    run = train(tiny())
    for name in ("report.html", "notebook.ipynb"):
        (run.path / name).write_text("done")
    order = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **given: order.append(path.name) or unlink(path, **given)
    )
    write = lifecycle.write_record
    monkeypatch.setattr(
        lifecycle, "write_record", lambda *given: order.append("run.json") or write(*given)
    )
    monkeypatch.setattr(Trainer, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny(fresh=True))
    assert order[:3] == ["report.html", "notebook.ipynb", "run.json"]
    assert {"metrics.json", "model.safetensors", "curves.png"} <= set(order)
    assert load_run(run.path).status == "failed"
    left = {path.name for path in run.path.iterdir()}
    assert left == {".lock", "run.json", "experiment.yaml", "summary.txt", "figures"}


@pytest.mark.slow
def test_fresh_leaves_files_of_the_user(tiny):
    run = train(tiny())
    mine = [run.path / "notes.txt", run.path / "figures" / "mine.png"]
    for path in mine:
        path.write_text("mine")
    again = train(tiny(fresh=True))
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert not {"notes.txt", "figures/mine.png"} & set(again.record["artifacts"])


@pytest.mark.parametrize(
    "name", ["notes.txt", "history.csv", "model.safetensors", "figures/curves.png"]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_train_refuses_a_folder_of_other_files(tiny, tmp_path, name, fresh):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=f"holds other files: {name.partition('/')[0]}"):
        train(tiny(fresh=fresh), output=tmp_path / "mine")
    assert [path] == [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert path.read_text() == "mine"


def test_train_refuses_a_link_out_of_the_output_folder(tiny, tmp_path):
    experiment = tiny()
    (tmp_path / "elsewhere").mkdir()
    experiment.folder.parent.mkdir(parents=True)
    experiment.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of the output folder"):
        train(experiment)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_folder_that_cannot_be_looked_at_is_a_mistake(tmp_path, monkeypatch):
    """Also for --dry-run and imports, which ask nothing else of it. Newer Pythons raise later."""
    too_long = Mock(side_effect=OSError(errno.ENAMETOOLONG, "File name too long"))
    monkeypatch.setattr(Path, "is_symlink", too_long)
    with pytest.raises(ConfigError, match="File name too long"):
        lifecycle.check_folder(tmp_path / "run", None)


@pytest.mark.parametrize("kind", ["named pipe", "folder", "dangling link"])
def test_train_keeps_results_without_a_record(tiny, tmp_path, kind):
    """Where run.json is not a file, nobody knows whose results they are."""
    record = tmp_path / "run.json"
    (tmp_path / "metrics.json").write_text("{}")
    if kind == "named pipe":
        os.mkfifo(record)
    elif kind == "folder":
        record.mkdir()
    else:
        record.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"is not a run folder \(no run.json\) and holds other"):
        train(tiny(), output=tmp_path)
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("name", ["checkpoints", "figures"])
@pytest.mark.parametrize("is_named", [False, True])
def test_train_refuses_a_link_in_the_run_folder(tiny, tmp_path, name, is_named):
    experiment = tiny(fresh=True)
    foreign = tmp_path / "elsewhere" / "epoch-00001-step-000000.pt"
    foreign.parent.mkdir()
    foreign.touch()
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "run.json").touch()
    (experiment.folder / name).symlink_to(foreign.parent)
    with pytest.raises(ConfigError, match=f"{name} is a link"):
        train(experiment, output=experiment.folder if is_named else None)
    assert list(foreign.parent.iterdir()) == [foreign]


@pytest.mark.slow
def test_train_removes_temporary_files_of_a_killed_run(tiny):
    experiment = tiny()
    record = train(experiment).record | {"status": "running", "checkpoints": {}}
    for name in ("run.json", "metrics.json", "figures/curves.png", "report.html"):
        path = experiment.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.ab_12xyz").touch()
    (experiment.folder / "checkpoints").mkdir(exist_ok=True)
    (experiment.folder / "checkpoints" / ".epoch-00001-step-000000.pt.ab_12xyz").touch()
    (experiment.folder / "run.json").write_text(json.dumps(record))
    run = train(experiment)
    assert [path.name for path in run.path.rglob(".*")] == [".lock"]


@pytest.mark.slow
def test_a_damaged_record_is_named(tiny):
    run = train(tiny())
    record = run.record
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train(tiny())
    (run.path / "run.json").write_text('{"status": "running", "variant": "lite"}')
    with pytest.raises(RunError, match=r"run.json is damaged: it lacks dataset, seed, experiment"):
        train(tiny())
    (run.path / "run.json").write_text(json.dumps(record | {"fingerprint": None}))
    with pytest.raises(RunError, match=r"run.json is damaged: it lacks fingerprint;"):
        train(tiny())
    assert train(tiny(fresh=True)).status == "done"


# Failing machines --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions.npz", "run.json", "epoch-00001-step-000000.pt"])
def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path, monkeypatch, name):
    experiment = tiny(epochs=2)
    replace, passed = os.replace, []

    def full(source, target):
        passed.append(Path(target).name)
        if name == passed[-1] and passed.count(name) > (name == "run.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(os, "replace", full)
        train(experiment)
    message = str(caught.value)
    assert name in message
    assert "No space left on device" in message
    assert "the same call" in message
    assert "\n" not in message
    run = load_run(experiment.folder)
    assert run.status == ("interrupted" if name == "run.json" else "failed")
    if name == "predictions.npz":
        assert "The run is saved up to epoch 2" in message
        assert run.record["error"] == f"RunError: {message}"
    resumed = train(experiment)
    assert outcome(resumed) == outcome(train(experiment, output=tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(RunError, match="finished run is still the"):
        patch.setattr(os, "replace", full)
        passed[:] = ["run.json"]  # which is the first file that a new start writes
        name = "run.json"
        train(apply_overrides(experiment, {"fresh": True}))
    assert outcome(load_run(experiment.folder)) == outcome(resumed)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 67108864")]
)
def test_lack_of_memory_names_a_smaller_batch(tiny, monkeypatch, error):
    def no_memory(*_):
        raise error

    monkeypatch.setattr(Trainer, "train_step", no_memory)
    message = "out of memory with batch_size = 128; a smaller one, such as 64, may fit. Nothing"
    with pytest.raises(RunError, match=message):
        train(tiny())
    assert load_run(tiny().folder).status == "failed"


def test_other_errors_are_left_as_they_are(tiny, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size") as caught:
        train(tiny())
    assert not isinstance(caught.value, RunError)


@pytest.mark.slow
def test_a_closed_output_does_not_end_a_run(tiny, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert train(tiny()).status == "done"


@pytest.mark.slow
def test_a_finished_run_is_loaded_from_a_folder_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train(tiny(), output="~/run")
    assert run.path == tmp_path / "run" and load_run("~/run").status == "done"
    # As root, who runs the tests of some machines, everything can be written.
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path) != run.path)
    monkeypatch.setattr(files, "lock", Mock(side_effect=PermissionError))
    assert train(tiny(), output=run.path).status == "done"
    with pytest.raises(ConfigError, match="cannot be written; name another output_root"):
        train(tiny(fresh=True), output=run.path)


@pytest.mark.slow
def test_a_run_that_cannot_be_written_gets_no_notebook(tiny, monkeypatch):
    train(tiny())
    monkeypatch.setattr(files, "is_read_only", lambda folder: True)
    monkeypatch.setattr(execute, "execute_notebook", pytest.fail)
    assert execute.run_experiment(tiny(), {}).status == "done"


@pytest.mark.slow
def test_a_fresh_run_replaces_a_damaged_record(tiny, monkeypatch):
    run = train(tiny())
    (run.path / "run.json").write_text("")
    monkeypatch.setattr(execute, "execute_notebook", lambda *_: None)
    with pytest.raises(RunError, match=r"run.json is damaged"):
        execute.run_experiment(tiny(), {})
    assert execute.run_experiment(tiny(fresh=True), {}).status == "done"


def test_failed_compilation_is_one_line(tiny, monkeypatch):
    def fail(*_):
        raise InductorError(OSError("main.so: failed to map segment"), None)

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(RunError, match=r"cannot compile here \(main\.so: .*`compile: false`"):
        train(tiny())


@pytest.mark.parametrize(
    "callbacks",
    [Callback(), [Callback], [print], None],
    ids=["no list", "class", "function", "None"],
)
def test_what_is_no_list_of_callbacks_is_refused_before_any_work(tiny, callbacks):
    with pytest.raises(ConfigError, match=r"callbacks = .*: give a list of `Callback` objects"):
        train(tiny(), callbacks=callbacks)
    assert not tiny().folder.exists()


def test_second_run_of_a_process_is_refused_while_one_trains(tiny, tmp_path):
    refused = []

    class Second(Callback):
        def after_training(self, training):
            def start():
                with pytest.raises(RunError, match="another run trains in this process"):
                    train(tiny(), output=tmp_path / "second")
                refused.append(True)

            thread = threading.Thread(target=start)
            thread.start()
            thread.join()

    assert train(tiny(), callbacks=[Second()]).status == "done"
    assert refused and train(tiny(), output=tmp_path / "second").status == "done"


def test_a_run_is_read_after_the_working_directory_has_changed(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [train(tiny(), output="run"), load_run("run")]
    monkeypatch.chdir("/")
    assert [run.metrics["epochs"] for run in runs] == [1, 1]
