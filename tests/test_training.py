"""Trainer and runs: every key acts, the test set stays out, and resuming is bit-exact."""

import contextlib
import copy
import dataclasses
import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from resnetlib import (
    evaluate,
    execute,
    files,
    load_dataset,
    load_experiment,
    load_run,
    model_summary,
    pickles,
    train,
)
from resnetlib import training as training_module
from resnetlib.config import apply_overrides, override_paths
from resnetlib.device import DeviceSettings
from resnetlib.errors import ConfigError, Diverged, OutOfTime, RunError, UserError
from resnetlib.evaluation import normalize
from resnetlib.rng import derive_seed, generator
from resnetlib.runs import artifacts, checkpoint, lifecycle, record, upkeep
from resnetlib.schema import DEFAULT_LR, Clip
from resnetlib.training import Callback, Trainer, gradient_clipping, preview_batch

pytestmark = pytest.mark.usefixtures("quick_figures")

WRITE_FIGURES = artifacts.write_figures


def weights_of(run):
    return run.record["artifacts"]["model.safetensors"]


def history_of(run):
    return run.history.drop(columns="seconds")


# Every key ---------------------------------------------------------------------------------------

# For each key of a recipe another value, on top of settings in which the key can act.
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ADAM = {"name": "adam", "lr": 0.01, "weight_decay": 1e-4}
RESTARTS = {"name": "cosine", "period_epochs": 1, "after_period": "restart", "interval": "step"}
# No epoch is an improvement by nine tenths: the rate drops after the second and each later one.
PLATEAU = {"name": "plateau", "factor": 0.5, "patience": 0, "threshold": 0.9}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
COSINE = {"name": "cosine", "warmup_epochs": 1, "hold_epochs": 0.5, "period_epochs": 2}
KEYS = {
    "epochs": ({"epochs": 2}, 3),
    "batch_size": ({}, 32),
    "optimizer.name": ({"optimizer": ADAM}, "adamw"),
    "optimizer.lr": ({}, 0.05),
    "optimizer.momentum": ({}, 0.5),
    "optimizer.nesterov": ({}, True),
    "optimizer.weight_decay": ({}, 0.01),
    "optimizer.decay_on": (
        {"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.1}},
        "weights",
    ),
    "optimizer.bias_lr_factor": ({}, 8),
    "optimizer.betas": ({"optimizer": ADAM}, [0.8, 0.9]),
    "optimizer.eps": ({"optimizer": ADAM}, 1e-3),
    "optimizer.decoupled_weight_decay": (
        {"optimizer": {"name": "radam", "lr": 0.01, "weight_decay": 0.1}},
        True,
    ),
    "optimizer.momentum_decay": ({"optimizer": {"name": "nadam", "lr": 0.01}}, 0.5),
    "optimizer.rho": ({"optimizer": {"name": "adadelta", "lr": 1.0}}, 0.5),
    "optimizer.lr_decay": ({"optimizer": {"name": "adagrad", "lr": 0.01}}, 0.1),
    "optimizer.initial_accumulator_value": ({"optimizer": {"name": "adagrad", "lr": 0.01}}, 0.1),
    "optimizer.alpha": ({"optimizer": {"name": "rmsprop", "lr": 0.01}}, 0.5),
    "optimizer.centered": ({"optimizer": {"name": "rmsprop", "lr": 0.01}}, True),
    "schedule.name": ({"schedule": {"name": "cosine"}}, {"name": "constant"}),
    "schedule.interval": ({}, "step"),
    "schedule.warmup_epochs": ({}, 1),
    "schedule.warmup_start": ({"schedule": COSINE}, 0.5),
    "schedule.hold_epochs": ({}, 1),
    "schedule.period_epochs": ({}, 3),
    "schedule.min_lr": ({}, 0.05),
    "schedule.milestones": ({"epochs": 3, "schedule": {"name": "step", "milestones": [1]}}, [2]),
    "schedule.gamma": ({"schedule": {"name": "step", "milestones": [1]}}, 0.5),
    "schedule.after_period": (
        {"schedule": {"name": "cosine", "period_epochs": 1, "min_lr": 0.01}},
        "restart",
    ),
    "schedule.period_factor": ({"epochs": 3, "schedule": RESTARTS}, 2),
    "schedule.every_epochs": ({"schedule": {"name": "exponential", "gamma": 0.5}}, 2),
    "schedule.factor": ({"epochs": 3, "schedule": PLATEAU}, 0.1),
    "schedule.patience": ({"epochs": 3, "schedule": PLATEAU}, 1),
    "schedule.threshold": ({"epochs": 3, "schedule": PLATEAU}, 0.0),
    "schedule.cooldown": ({"epochs": 4, "schedule": PLATEAU}, 1),
    "schedule.anneal": ({"schedule": {"name": "one_cycle"}}, "linear"),
    "schedule.pct_start": ({"schedule": {"name": "one_cycle"}}, 0.5),
    "schedule.div_factor": ({"schedule": {"name": "one_cycle"}}, 5),
    "schedule.final_div_factor": ({"schedule": {"name": "one_cycle"}}, 2),
    "lookahead": ({}, {"k": 5, "alpha": 0.5}),
    "lookahead.k": ({"lookahead": {"k": 5, "alpha": 0.5}}, 3),
    "lookahead.alpha": ({"lookahead": {"k": 5, "alpha": 0.5}}, 0.8),
    "clip": ({}, {"by": "norm", "limit": 0.1}),
    "clip.by": ({"clip": {"by": "value", "limit": 0.01}}, "norm"),
    "clip.limit": ({"clip": {"by": "value", "limit": 0.01}}, 0.001),
    "label_smoothing": ({}, 0.1),
    "sam": ({}, {"rho": 0.05}),
    "sam.rho": ({"sam": {"rho": 0.05}}, 0.5),
    "ema": ({}, {"decay": 0.9}),
    "ema.decay": ({"ema": {"decay": 0.2}}, 0.1),  # few steps: a higher one is not reached
    "augment": ({}, ["crop"]),
    "normalize": ({}, "none"),
    "normalize.mean": ({"normalize": HALVES}, [0.4, 0.5, 0.5]),
    "normalize.std": ({"normalize": HALVES}, [0.4, 0.5, 0.5]),
    "holdout": ({}, 100),
}
# Below, by their own keys, and in test_schedule.py.
TESTED_OTHERWISE = {"select", "optimizer", "schedule", "schedule.metric", "schedule.threshold_mode"}


def trained_weights(experiment, dataset):
    training = Trainer(experiment, dataset)
    for _ in range(experiment.recipe.epochs):
        training.history or training.record_epoch(training.evaluate_untrained())
        training.record_epoch(training.train_epoch(lambda: None))
    return torch.cat(
        [weights.detach().flatten() for weights in training.evaluated_model.parameters()]
    )


@pytest.fixture(scope="module")
def base_weights(few_digits):
    """The weights of an experiment that many tests change, trained once."""
    trained = {}

    def weights(experiment):
        if experiment.digest not in trained:
            trained[experiment.digest] = trained_weights(experiment, few_digits)
        return trained[experiment.digest]

    return weights


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_recipe_key_changes_the_weights(tiny, few_digits, base_weights, key):
    setting, value = KEYS[key]
    base = tiny(**{"epochs": 2} | setting)
    branch = key.removesuffix(".name") if isinstance(value, dict) else key
    changed = apply_overrides(base, {f"recipe.{branch}": value})
    assert changed != base
    assert not torch.equal(base_weights(base), trained_weights(changed, few_digits))


def test_recipe_keys_are_all_listed(tiny):
    kinds = [
        {},
        {"optimizer": ADAM, "lookahead": {"k": 5}, "clip": {"by": "value", "limit": 1}},
        {"sam": {"rho": 0.05}, "ema": {"decay": 0.9}},
        {"epochs": 2, "schedule": {"name": "step", "milestones": [1]}},
        {"schedule": {"name": "one_cycle"}},
        {"schedule": {"name": "exponential", "gamma": 0.5}},
        {"schedule": PLATEAU},
        {"normalize": HALVES},
        *({"optimizer": {"name": name}} for name in DEFAULT_LR),
    ]
    paths = set().union(*(override_paths(tiny(**kind)) for kind in kinds))
    recipe = {path.removeprefix("recipe.") for path in paths if path.startswith("recipe.")}
    assert recipe == set(KEYS) | TESTED_OTHERWISE


@pytest.mark.parametrize("normalize", ["per_image_std", "imagenet"])
def test_normalize_changes_the_weights(tiny, few_digits, normalize):
    first = trained_weights(tiny(), few_digits)
    second = trained_weights(tiny(normalize=normalize), few_digits)
    assert not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", DEFAULT_LR)
def test_trainer_resumes_each_optimizer_and_plateau(tiny, few_digits, optimizer):
    """Stopped within the epoch that has the first drop; the state goes through a checkpoint."""
    schedule = PLATEAU | {"metric": "holdout_loss"}
    settings = {"optimizer": {"name": optimizer}, "lr": None, "schedule": schedule}
    experiment = tiny(epochs=3, holdout=100, augment="crop", **settings)
    whole, stopped = (Trainer(experiment, few_digits) for _ in range(2))

    def train_on(training, stop=None):
        def after_step():
            if (training.epochs_done, training.progress.steps) == stop:
                raise KeyboardInterrupt

        training.history or training.record_epoch(training.evaluate_untrained())
        while training.epochs_done < 3:
            training.record_epoch(training.train_epoch(after_step))

    train_on(whole)
    with pytest.raises(KeyboardInterrupt):
        train_on(stopped, (2, 1))
    state = pickles.unpickle_tensors(checkpoint.to_bytes(stopped.state()))
    stopped = Trainer(experiment, few_digits)
    stopped.load_state(state)
    train_on(stopped)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(stopped.model.state_dict()[name], value), name
    lr = DEFAULT_LR[optimizer]
    for training in (whole, stopped):
        assert training.table()["lr"].tolist() == [0, lr, lr, lr / 2]


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["stem", "block"])
def test_dropout_is_a_function_of_the_seed(tiny, few_digits, placement):
    settings = {"block": "dropout", "dropout": 0.4, "placement": placement, "widths": [16]}
    first, again = (trained_weights(tiny(**settings), few_digits) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, trained_weights(tiny(**settings, seed=1), few_digits))


# What is trained on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_ignores_the_test_set(tiny, digits, monkeypatch):
    images, labels = digits.test
    noise = torch.randint(256, images.shape, generator=generator(0, "noise")).to(torch.uint8)
    other = dataclasses.replace(digits, test=(noise, labels.flip(0)))
    weights = []
    for dataset in (digits, other):
        monkeypatch.setattr(
            "resnetlib.runs.lifecycle.load_dataset", lambda name, root, d=dataset: d
        )
        weights.append(weights_of(train(tiny(epochs=2, fresh=True))))
    assert weights[0] == weights[1]


def test_trainer_excludes_held_out_images(tiny, digits):
    training = Trainer(tiny(holdout=300), digits)
    rows = {image.numpy().tobytes() for image in training.train_split[0]}
    held_out = {image.numpy().tobytes() for image in training.eval_splits["holdout"][0]}
    test = {image.numpy().tobytes() for image in digits.test[0]}
    assert len(training.train_split[1]) == 1047
    assert not rows & held_out
    assert not rows & test
    assert torch.equal(training.eval_splits["test"][0], digits.test[0])


@pytest.mark.slow
def test_train_epoch_takes_every_image_once(tiny, digits):
    training = Trainer(tiny(batch_size=128), digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    train_step = training.train_step

    def spying(images, labels, *rest):
        seen.append(images.clone())
        return train_step(images, labels, *rest)

    training.train_step = spying
    training.train_epoch(lambda: None)
    assert [len(batch) for batch in seen] == [128] * 10 + [67]
    assert sorted(map(bytes, torch.cat(seen).numpy())) == sorted(
        map(bytes, digits.train[0].numpy())
    )


ALTERNATING = {"name": "flip", "alternate": True}


@pytest.mark.slow
def test_alternating_flip_mirrors_every_other_epoch(tiny, digits):
    training = Trainer(tiny(augment=[ALTERNATING]), digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    augment = training.augment

    def spying(*given):
        images, targets = augment(*given)
        seen.extend(map(bytes, images.numpy()))
        return images, targets

    training.augment = spying
    for _ in range(3):
        training.record_epoch(training.train_epoch(lambda: None))
    count = len(digits.train[1])
    first, second, third = (sorted(seen[i * count : (i + 1) * count]) for i in range(3))
    original, mirrored = (
        list(map(bytes, x.numpy())) for x in (digits.train[0], digits.train[0].flip(3))
    )
    assert sorted(first + second) == sorted(original + mirrored)
    assert third == first != second
    assert 0.4 < sum(image in set(original) for image in first) / count < 0.6


def test_preview_batch_is_the_first_batch(tiny, digits, monkeypatch):
    experiment = tiny(augment=["crop", ALTERNATING], holdout=100)
    training = Trainer(experiment, digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    monkeypatch.setattr(
        "resnetlib.training.normalize", lambda images, *_: seen.append(images.clone()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        training.train_epoch(lambda: None)
    images, names = preview_batch(experiment, digits, 16)
    assert torch.equal(images, seen[0][:16])
    assert len(names) == 16


@pytest.mark.slow
def test_evaluation_between_epochs_changes_no_weight(tiny, digits):
    plain = trained_weights(tiny(epochs=2), digits)
    training = Trainer(tiny(epochs=2), digits)
    training.record_epoch(training.evaluate_untrained())
    for _ in range(2):
        training.record_epoch(training.train_epoch(lambda: None))
        training.evaluate(*digits.test)
        model_summary(training.model)
        torch.rand(5)
    disturbed = torch.cat([parameter.detach().flatten() for parameter in training.parameters])
    assert torch.equal(plain, disturbed)


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
def test_row_0_evaluates_the_untrained_network(tiny, cifar10):
    experiment = tiny(dataset="cifar10", holdout=100, precision="float32")
    training = Trainer(experiment, cifar10)
    row = training.evaluate_untrained()
    assert not training.evaluation_seconds  # which counts what falls into the epochs
    splits = {"train": training.train_split} | training.eval_splits
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {
        "train": 49_900,
        "holdout": 100,
        "test": 10_000,
    }
    for name, (images, labels) in splits.items():
        found = training.evaluate(images[:2000], labels[:2000])
        assert row[f"{name}_loss"] == pytest.approx(found.loss, rel=1e-6)
        assert row[f"{name}_accuracy"] == found.accuracy


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
def test_train_restores_the_random_state(tiny):
    before = torch.get_rng_state()
    train(tiny(block="dropout", dropout=0.2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("select", "column"), [("best_holdout", "holdout"), ("best_test", "test")])
def test_select_keeps_the_best_epoch(tiny, digits, select, column):
    # A rate this high makes the accuracy go up and down, so that the best epoch is not the last.
    settings = {"epochs": 6, "lr": 1.5, "holdout": 100, "seed": 2, "precision": "float32"}
    run = train(tiny(**settings, select=select))
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


def outcome(run):
    """All that must be equal: weights, history without its times, selection."""
    return weights_of(run), history_of(run).to_csv(), run.metrics["selected_epoch"]


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
    experiment = tiny(epochs=3, optimizer=ADAM)
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
    names = "augment/policies training optim schedule blocks resnet rng data evaluation device"
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
    assert resume["after"] == "epoch 4, step 5"
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


def test_divergence_is_looked_for_every_few_steps_on_a_gpu(tiny, digits, monkeypatch):
    """There each look waits for the device."""
    monkeypatch.setitem(training_module.FINITE_CHECK_STEPS, "cpu", 4)
    training = Trainer(tiny(lr=1e20), digits)
    training.record_epoch(training.evaluate_untrained())
    with pytest.raises(Diverged, match=r"step [48] of 11"):
        training.train_epoch(lambda: None)


def test_clipping_by_norm_is_of_all_gradients_together():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert gradient_clipping(Clip(by="norm", limit=1))(parameters).item() == 5
    clipped = torch.cat([parameter.grad for parameter in parameters])
    assert clipped.tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-5)


def test_clipping_by_value_makes_an_infinite_gradient_finite():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([math.inf, 0.0])
    clip = gradient_clipping(Clip(by="value", limit=0.5))
    assert clip([parameter]).item() == 0.5
    assert gradient_clipping(None)([parameter]).item() == 0.5
    parameter.grad = torch.tensor([math.inf, 0.0])
    assert gradient_clipping(None)([parameter]).item() == math.inf
    assert gradient_clipping(Clip(by="norm", limit=1))([parameter]).item() == math.inf


@pytest.mark.slow
def test_divergence_in_the_last_step_is_not_saved(tiny):
    experiment = tiny(epochs=2, batch_size=1347, lr=1e30)  # one step an epoch
    with pytest.raises(Diverged, match="in epoch 1"):
        train(experiment)
    assert load_run(experiment.folder).status == "diverged"
    assert not list((experiment.folder / "checkpoints").glob("*"))


# Float16 -----------------------------------------------------------------------------------------

EVERYTHING = {
    "batch_size": 64,
    "lookahead": {"k": 2},
    "sam": {"rho": 0.05},
    "ema": {"decay": 0.9},
    "clip": {"by": "norm", "limit": 0.1},
}


@pytest.fixture
def exact_float16(monkeypatch):
    """Float16 that computes in float32, so that only the scaling of the loss is left of it."""
    monkeypatch.setattr(DeviceSettings, "autocast", lambda settings: contextlib.nullcontext())


def float16_training(tiny, dataset, overflows=(), **overrides):
    """A Trainer in which the gradients of these steps, counted over all epochs, overflow."""
    training = Trainer(tiny(precision="float16", epochs=9, **overrides), dataset)
    scale = training.scaler.scale

    def scale_loss(loss):
        step = max(training.epochs_done, 0) * training.steps_per_epoch + training.progress.steps
        return scale(loss) * (math.inf if step in overflows else 1)

    training.scaler.scale = scale_loss
    return training


def continued(training, epochs=1):
    training.history or training.record_epoch(training.evaluate_untrained())
    for _ in range(epochs):
        training.record_epoch(training.train_epoch(lambda: None))
    return training


def weights_and_history(training):
    weights = [value.detach() for value in training.evaluated_model.state_dict().values()]
    return [value.tolist() for value in weights], training.table().drop(columns="seconds").to_csv()


def test_step_trains_on_smoothed_mixed_targets(tiny, few_digits):
    """Its totals, too, are those of the batch: half a one here."""
    training = Trainer(tiny(augment="mixup", label_smoothing=0.1, precision="float32"), few_digits)
    images, labels = (part[:64] for part in training.train_split)
    mixed, targets = training.augment(images, labels, generator(0, "augment", 1, 0))
    model = copy.deepcopy(training.model).train()
    logits = model(normalize(mixed, training.mean, training.std))
    expected = F.cross_entropy(logits, 0.9 * targets + 0.01, reduction="sum")
    loss, correct = training.train_step(images, labels, labels > 4, 1, 0).tolist()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert correct == (logits.argmax(1) == targets.argmax(1)).sum()
    hard = F.cross_entropy(logits, 0.9 * F.one_hot(labels, 10) + 0.01, reduction="sum")
    assert abs(hard.item() / expected.item() - 1) > 1e-3  # so that the first assertion can fail


def test_draws_do_not_depend_on_the_default_type(tiny, tmp_path):
    experiment = tiny(augment="flip,rotation,mixup", epochs=1)
    plain = train(experiment, output=tmp_path / "plain")
    torch.set_default_dtype(torch.float64)
    try:
        other = train(experiment, output=tmp_path / "other")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights_of(other) == weights_of(plain)


def test_every_step_has_its_own_draws(tiny, few_digits, monkeypatch):
    asked, dropout = [], []

    def noted(seed, stream, epoch=0, step=0):
        asked.append((stream, epoch, step))
        return generator(seed, stream, epoch, step)

    monkeypatch.setattr(training_module, "generator", noted)
    training = Trainer(tiny(epochs=2, augment="crop"), few_digits)
    training.seed_dropout = dropout.append
    continued(training, 2)
    places = [(epoch, step) for epoch in (1, 2) for step in range(3)]
    assert [tuple(place) for stream, *place in asked if stream == "augment"] == places
    assert [place for stream, *place in asked if stream == "order"] == [[1, 0], [2, 0]]
    assert dropout == [derive_seed(0, "dropout", *place) for place in places]


@pytest.mark.slow
def test_scaling_of_the_loss_does_not_change_the_result(tiny, few_digits, exact_float16):
    """Clipping and SAM see the gradients themselves: a scale is a power of two, hence exact."""
    plain = Trainer(tiny(precision="float32", epochs=9, **EVERYTHING), few_digits)
    scaled = float16_training(tiny, few_digits, **EVERYTHING)
    assert weights_and_history(continued(scaled)) == weights_and_history(continued(plain))


@pytest.mark.slow
def test_skipped_steps_change_the_scale_and_resume_exactly(tiny, few_digits, exact_float16):
    """The last step of the first epoch and the first of the second are skipped, too."""
    settings = EVERYTHING | {"optimizer": ADAM}
    overflows = {0, 4, 5}
    whole = continued(float16_training(tiny, few_digits, overflows, **settings), 2)
    first = continued(float16_training(tiny, few_digits, overflows, **settings), 1)
    state = pickles.unpickle_tensors(checkpoint.to_bytes(first.state()))
    assert state["scaler"]["scale"] == 2**14  # five steps an epoch, two of them skipped
    assert state["scaler"]["skipped"] == 1
    second = float16_training(tiny, few_digits, overflows, **settings)
    second.load_state(state)
    assert weights_and_history(continued(second)) == weights_and_history(whole)
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 2**13


@pytest.mark.slow
def test_divergence_is_twenty_skipped_steps_in_a_row(tiny, few_digits, exact_float16):
    close = float16_training(tiny, few_digits, set(range(1, 20)), batch_size=64)
    continued(close, 5)  # 19 are not
    diverging = float16_training(tiny, few_digits, set(range(3, 99)), batch_size=64)
    message = (
        r"20 steps in a row had float16 gradients that are not finite in epoch 5, step 3 of 5, "
        r".*`precision: float32`"
    )
    with pytest.raises(Diverged, match=message):
        continued(diverging, 9)


def test_divergence_between_two_looks_is_noticed(tiny, few_digits, exact_float16, monkeypatch):
    """On a GPU twenty skipped steps may be over when the next look is taken."""
    monkeypatch.setitem(training_module.FINITE_CHECK_STEPS, "cpu", 48)
    training = float16_training(tiny, few_digits, set(range(20)), batch_size=10)
    with pytest.raises(Diverged, match="step 32 of 32"):
        continued(training)


def test_float16_computes_the_network_in_float16(tiny, few_digits):
    """On four images: a CPU has no fast float16."""
    few = dataclasses.replace(few_digits, train=tuple(part[:4] for part in few_digits.train))
    training = float16_training(tiny, few, batch_size=4)
    kinds = []
    training.model.stem[0].register_forward_hook(lambda *given: kinds.append(given[2].dtype))
    images, labels = training.train_split
    before = training.parameters[0].detach().clone()
    totals = training.train_step(images, labels, labels > 4, 1, 0)
    assert kinds == [torch.float16]
    assert totals.isfinite().all()
    assert not torch.equal(training.parameters[0], before)
    assert training.device_settings.describe()["precision"] == "float16"


def test_resume_in_another_precision_starts_the_scale_anew(tiny, few_digits, exact_float16):
    """`allow_inexact_resume` on a T4 of a run that began where bfloat16 or float32 was chosen."""
    began = continued(Trainer(tiny(precision="float32", epochs=9), few_digits))
    for scaler in ({"scaler": {}}, {}):  # an older checkpoint has none
        state = {name: value for name, value in began.state().items() if name != "scaler"}
        training = float16_training(tiny, few_digits)
        training.load_state(state | scaler)
        assert math.isfinite(continued(training).history[-1]["train_loss"])


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
    with pytest.raises(KeyboardInterrupt, match=r"epoch 2, step 2 .* without `fresh` to resume"):
        train(experiment, callbacks=[Sending(signal.SIGINT)])
    again = tiny(epochs=3)
    with pytest.raises(RunError, match="is not finished: its status is 'interrupted'"):
        load_run(again.folder).model()
    done, plan = execute._resume_point(again)
    assert (done, plan) == (1, "interrupted; would resume after epoch 2, step 2")
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


@pytest.mark.slow
def test_a_finished_run_is_loaded_from_a_folder_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train(tiny(), output="~/run")
    assert run.path == tmp_path / "run" and load_run("~/run").status == "done"
    # As root, who runs the tests of some machines, everything can be written.
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path) != run.path)
    monkeypatch.setattr(files, "lock", Mock(side_effect=PermissionError))
    assert train(tiny(), output=run.path).status == "done"
    with pytest.raises(RunError, match="The finished run is still there"):
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

    with pytest.raises(OutOfTime, match=r"saved after epoch 2, step 4 .* run it again to resume"):
        train(limited, callbacks=[Late()])
    monkeypatch.undo()
    run = load_run(experiment.folder)
    assert run.record["status"] == "interrupted"
    assert outcome(train(limited)) == outcome(train(experiment, output=tmp_path / "whole"))
