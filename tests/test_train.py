"""Trainer: every key acts, the test set stays out, and a killed run ends in the same bits."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY

from resnetlib import (
    evaluate,
    files,
    load_dataset,
    load_experiment,
    load_run,
    model_summary,
    runs,
    train,
)
from resnetlib.config import apply_overrides, override_paths
from resnetlib.errors import ConfigError, Diverged, RunError
from resnetlib.rng import generator
from resnetlib.runs import checkpoint
from resnetlib.training import Trainer, preview_batch


def weights_of(run):
    return run.record["artifacts"]["model.safetensors"]


def history_of(run):
    return run.history.drop(columns="seconds")


# Every key ---------------------------------------------------------------------------------------

# For each key of a recipe another value, on top of settings in which the key can act.
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ADAM = {"name": "adam", "lr": 0.01, "weight_decay": 1e-4}
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
    "schedule.name": ({"schedule": {"name": "cosine"}}, {"name": "constant"}),
    "schedule.interval": ({}, "step"),
    "schedule.warmup_epochs": ({}, 1),
    "schedule.warmup_start": ({"schedule": COSINE}, 0.5),
    "schedule.hold_epochs": ({}, 1),
    "schedule.period_epochs": ({}, 3),
    "schedule.min_lr": ({}, 0.05),
    "schedule.milestones": ({"epochs": 3, "schedule": {"name": "step", "milestones": [1]}}, [2]),
    "schedule.gamma": ({"schedule": {"name": "step", "milestones": [1]}}, 0.5),
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
    "holdout": ({}, 100),
}
TESTED_OTHERWISE = {"select", "optimizer", "schedule"}  # below, and by their own keys


def trained_weights(experiment, dataset):
    training = Trainer(experiment, dataset)
    for _ in range(experiment.recipe.epochs):
        training.history or training.record_epoch(training.evaluate_untrained())
        training.record_epoch(training.train_epoch(lambda: None))
    return torch.cat(
        [weights.detach().flatten() for weights in training.evaluated_model.parameters()]
    )


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_recipe_has_an_effect(tiny, few_digits, key):
    setting, value = KEYS[key]
    base = tiny(**{"epochs": 2} | setting)
    branch = key.removesuffix(".name") if isinstance(value, dict) else key
    changed = apply_overrides(base, {f"recipe.{branch}": value})
    assert changed != base
    assert not torch.equal(trained_weights(base, few_digits), trained_weights(changed, few_digits))


def test_the_list_of_keys_is_complete(tiny):
    kinds = [
        {},
        {"optimizer": ADAM, "lookahead": {"k": 5}, "clip": {"by": "value", "limit": 1}},
        {"sam": {"rho": 0.05}, "ema": {"decay": 0.9}},
        {"epochs": 2, "schedule": {"name": "step", "milestones": [1]}},
        {"schedule": {"name": "one_cycle"}},
    ]
    paths = set().union(*(override_paths(tiny(**kind)) for kind in kinds))
    recipe = {path.removeprefix("recipe.") for path in paths if path.startswith("recipe.")}
    assert recipe == set(KEYS) | TESTED_OTHERWISE


def test_per_image_std_is_another_normalisation_than_the_data_sets(tiny, few_digits):
    first = trained_weights(tiny(), few_digits)
    second = trained_weights(tiny(normalize="per_image_std"), few_digits)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("placement", ["stem", "block"])
def test_dropout_draws_differ_by_step_and_repeat_by_seed(tiny, few_digits, placement):
    settings = {"block": "dropout", "dropout": 0.4, "placement": placement, "widths": [16]}
    first, again = (trained_weights(tiny(**settings), few_digits) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, trained_weights(tiny(**settings, seed=1), few_digits))


# What is trained on ------------------------------------------------------------------------------


def test_the_test_set_has_no_influence_on_the_weights(tiny, digits, monkeypatch):
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


def test_training_uses_the_training_images_and_none_that_are_held_out(tiny, digits):
    training = Trainer(tiny(holdout=300), digits)
    rows = {image.numpy().tobytes() for image in training.train_split[0]}
    held_out = {image.numpy().tobytes() for image in training.eval_splits["holdout"][0]}
    test = {image.numpy().tobytes() for image in digits.test[0]}
    assert len(training.train_split[1]) == 1047
    assert not rows & held_out
    assert not rows & test
    assert torch.equal(training.eval_splits["test"][0], digits.test[0])


def test_an_epoch_takes_every_training_image_once_the_partial_batch_included(tiny, digits):
    training = Trainer(tiny(batch_size=128), digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    step = training.step

    def spying(images, labels, *rest):
        seen.append(images.clone())
        return step(images, labels, *rest)

    training.step = spying
    training.train_epoch(lambda: None)
    assert [len(batch) for batch in seen] == [128] * 10 + [67]
    assert sorted(map(bytes, torch.cat(seen).numpy())) == sorted(
        map(bytes, digits.train[0].numpy())
    )


ALTERNATING = {"name": "flip", "alternate": True}


def test_an_alternating_flip_shows_each_image_from_both_sides_in_two_epochs(tiny, digits):
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
    as_they_are, turned = (
        list(map(bytes, x.numpy())) for x in (digits.train[0], digits.train[0].flip(3))
    )
    assert sorted(first + second) == sorted(as_they_are + turned)
    assert third == first != second
    assert 0.4 < sum(image in set(as_they_are) for image in first) / count < 0.6


def test_the_preview_shows_what_the_first_step_trains_on(tiny, digits, monkeypatch):
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


def test_evaluating_or_summarising_between_epochs_changes_no_weight(tiny, digits):
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


def test_a_run_leaves_the_complete_folder(tiny):
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


def test_row_0_is_the_untrained_network_on_2000_images_of_each_split(tiny, cifar10):
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


def test_the_metrics_agree_with_the_history_the_predictions_and_the_weights(tiny, digits):
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


def test_a_finished_run_is_given_back_and_not_trained_again(tiny):
    first = train(tiny())
    written = (first.path / "run.json").stat().st_mtime_ns
    assert train(tiny()).record == first.record
    assert (first.path / "run.json").stat().st_mtime_ns == written
    assert train(tiny(fresh=True)).record["finished"] >= first.record["finished"]
    assert (first.path / "run.json").stat().st_mtime_ns > written


def test_the_same_experiment_gives_the_same_bits_in_any_folder(tiny, tmp_path, monkeypatch):
    first = train(tiny(epochs=2, augment=["crop", "flip"]))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(123)
    second = train(tiny(epochs=2, augment=["crop", "flip"]), output=tmp_path / "elsewhere")
    assert second.path == tmp_path / "elsewhere"
    assert weights_of(first) == weights_of(second)
    assert history_of(first).equals(history_of(second))


def test_running_the_written_experiment_again_gives_the_same_run(tiny, tmp_path):
    run = train(tiny(epochs=2))
    again = train(load_experiment(str(run.path / "experiment.yaml")), output=tmp_path / "again")
    assert weights_of(again) == weights_of(run)


def test_a_folder_of_another_experiment_is_not_written_over(tiny, tmp_path):
    train(tiny(), output=tmp_path / "run")
    with pytest.raises(ConfigError, match="another experiment"):
        train(tiny(seed=1), output=tmp_path / "run")
    assert load_run(tmp_path / "run").experiment.seed == 0


def test_training_leaves_the_random_state_as_it_was(tiny):
    before = torch.get_rng_state()
    train(tiny(block="dropout", dropout=0.2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("select", "column"), [("best_holdout", "holdout"), ("best_test", "test")])
def test_select_keeps_the_weights_of_the_best_epoch(tiny, digits, select, column):
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
    ("variant", "overrides", "told"),
    [
        ("resnet18", {"budget": 5_000_000}, "11,173,962"),
        ("lite", {"device": "cuda:7"}, "cuda:7"),
        ("lite", {"holdout": 50_000}, "recipe.holdout = 50000: both parts"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_data_are_read(
    variant, overrides, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "resnetlib.runs.lifecycle.load_dataset", lambda *_: pytest.fail("data were read")
    )
    with pytest.raises(ConfigError, match=told):
        train(load_experiment(variant, output_root=tmp_path, **overrides))
    assert not list(tmp_path.iterdir())


# Stopped and resumed -----------------------------------------------------------------------------

STOPS = [(0, 1), (1, 0), (3, 5), (4, 0)]  # epochs done, steps of the next
STATEFUL = {
    "epochs": 4,
    "seed": 5,
    "lr": 0.2,  # with this seed and rate the best epoch is not the last
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
    "holdout": 100,
    "select": "best_holdout",
}


def stop_after(epoch, monkeypatch, step=0):
    """Save after every step, and stop after this one of the epoch that follows `epoch`."""
    save = checkpoint.save_checkpoint

    def save_then_stop(folder, epochs, steps, state):
        save(folder, epochs, steps, state)
        if (epochs, steps) == (epoch, step):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_then_stop)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SHARE", math.inf)


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    """An experiment with every kind of state; its run whole, and stopped at several moments."""
    experiment = load_experiment("lite", **TINY | STATEFUL)
    folder = tmp_path_factory.mktemp("stateful")
    train(experiment, output=folder / "whole")
    for epoch, step in STOPS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(epoch, patch, step)
            train(experiment, output=folder / f"stopped-{epoch}-{step}")
    return experiment, folder


@pytest.fixture
def stopped(stateful, tmp_path):
    """A copy of the run stopped within the fourth epoch, for one test to go on with."""
    experiment, folder = stateful
    shutil.copytree(folder / "stopped-3-5", tmp_path / "stopped")
    return experiment, tmp_path / "stopped", load_run(folder / "whole")


def outcome(run):
    """All that must be equal: weights, history without its times, selection."""
    return weights_of(run), history_of(run).to_csv(), run.metrics["selected_epoch"]


@pytest.mark.parametrize(("epoch", "step"), STOPS)
def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(
    stateful, tmp_path, epoch, step
):
    experiment, folder = stateful
    stopped = folder / f"stopped-{epoch}-{step}"
    assert load_run(stopped).status == "interrupted"
    shutil.copytree(stopped, tmp_path / "run")
    resumed = train(experiment, output=tmp_path / "run")
    assert resumed.status == "done"
    assert outcome(resumed) == outcome(load_run(folder / "whole"))


def test_adams_moments_are_resumed_too(tiny, tmp_path, monkeypatch):
    experiment = tiny(epochs=3, optimizer=ADAM)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(2, patch)
        train(experiment)
    assert outcome(train(experiment)) == outcome(train(experiment, output=tmp_path / "whole"))


@pytest.mark.parametrize(
    "item", ["model", "optimizer", "average", "history", "best", "progress", "sums"]
)
def test_without_any_one_item_of_the_checkpoint_the_bits_differ(stopped, monkeypatch, item):
    """Proves that the tests above bite: each item is needed."""
    experiment, folder, whole = stopped
    fresh = Trainer(experiment, load_dataset("digits"))
    fresh.record_epoch(fresh.evaluate_untrained())
    load = runs.load_checkpoint
    without = {item: fresh.state()[item]}
    monkeypatch.setattr(
        "resnetlib.runs.lifecycle.load_checkpoint", lambda folder: load(folder) | without
    )
    assert outcome(train(experiment, output=folder)) != outcome(whole)


KILLED = """
import sys
from resnetlib import load_experiment, train
train(load_experiment("lite", dataset="digits", depths=[1], widths=[4], epochs=12, device="cpu",
                      augment="crop,flip", output_root=sys.argv[1]))
"""


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    def start(root):
        command = [sys.executable, "-c", KILLED, str(root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for stop in ("epoch  3/", "epoch  8/"):
        process = start(tmp_path / "killed")
        for line in process.stdout:
            if line.startswith(stop):
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        (folder,) = (tmp_path / "killed" / "lite").iterdir()
        assert load_run(folder).status == "running"
    for root in ("killed", "whole"):
        process = start(tmp_path / root)
        output = process.communicate()[0]
        assert process.returncode == 0
        assert ("going on after epoch " in output) == (root == "killed")
    (killed,), (whole,) = ((tmp_path / r / "lite").iterdir() for r in ("killed", "whole"))
    assert weights_of(load_run(killed)) == weights_of(load_run(whole))
    assert history_of(load_run(killed)).equals(history_of(load_run(whole)))


def test_the_surroundings_of_a_process_do_not_change_the_bits(tmp_path):
    """Hash seed, time zone, locale, working directory."""
    runs_of = []
    for number, surroundings in enumerate(
        (
            {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"},
        )
    ):
        place = tmp_path / str(number)
        place.mkdir()
        command = [sys.executable, "-c", KILLED, str(place)]
        subprocess.run(
            command, cwd=place, env=os.environ | surroundings, capture_output=True, check=True
        )
        runs_of.append(load_run(next((place / "lite").iterdir())))
    first, second = runs_of
    assert weights_of(first) == weights_of(second)
    assert history_of(first).equals(history_of(second))
    assert torch.equal(first.evaluation.logits, second.evaluation.logits)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(stopped):
    experiment, folder, whole = stopped
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(
        UserWarning,
        match=r"epoch-00003-step-000005.pt damaged; going on from epoch-00003-step-000004.pt",
    ):
        resumed = train(experiment, output=folder)
    assert outcome(resumed) == outcome(whole)


def test_a_run_without_any_good_checkpoint_stops_and_says_so(stopped):
    experiment, folder, whole = stopped
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"all checkpoints .* damaged"):
        train(experiment, output=folder)
    fresh = apply_overrides(experiment, {"fresh": True})
    assert outcome(train(fresh, output=folder)) == outcome(whole)


def test_checkpoints_without_a_record_are_not_gone_on_from(stopped, capsys):
    experiment, folder, whole = stopped
    (folder / "run.json").unlink()
    run = train(experiment, output=folder)
    assert "going on" not in capsys.readouterr().out
    assert outcome(run) == outcome(whole)


def test_a_run_that_another_process_works_on_is_left_alone(tiny):
    experiment = tiny()
    with (
        files.lock(experiment.folder / ".lock"),
        pytest.raises(files.RunLocked, match="in use by another process"),
    ):
        train(experiment)


def test_another_machine_is_noticed_and_can_be_allowed(stopped, monkeypatch):
    experiment, folder, _ = stopped
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(RunError, match=f"threads was {threads} and is now {threads + 1}"):
        train(experiment, output=folder)
    run = train(apply_overrides(experiment, {"allow_inexact_resume": True}), output=folder)
    (resume,) = run.record["inexact_resumes"]
    assert resume["after"] == "epoch 3 of 4 and 5 steps of the next"
    assert "threads" in resume["differences"][0]


def test_a_diverging_run_stops_with_its_reason_and_says_so_in_its_record(tiny):
    experiment = tiny(epochs=3, lr=1e20)
    with pytest.raises(Diverged, match=r"loss became (nan|inf) in epoch \d at a learning rate"):
        train(experiment)
    assert load_run(experiment.folder).status == "diverged"


def test_divergence_in_the_last_step_is_noticed_before_its_weights_are_kept(tiny):
    experiment = tiny(epochs=2, batch_size=1347, lr=1e30)  # one step an epoch
    with pytest.raises(Diverged, match="in epoch 1"):
        train(experiment)
    assert load_run(experiment.folder).status == "diverged"
    assert not list((experiment.folder / "checkpoints").glob("*"))


def test_starting_over_keeps_the_finished_run_until_there_is_something_to_start(tiny, monkeypatch):
    run = train(tiny())

    def missing(*_):
        raise RunError("no data")

    monkeypatch.setattr("resnetlib.runs.lifecycle.load_dataset", missing)
    with pytest.raises(RunError, match="no data"):
        train(tiny(fresh=True))
    assert load_run(run.path).record == run.record
    assert run.model()


def test_stages_narrower_than_a_vector_register_train(tiny):
    """In channels-last layout their backward pass writes past its buffers (torch 2.15, AVX2)."""
    for widths in ([2, 2, 2], [4, 4, 4], [3, 5, 9]):
        run = train(tiny(depths=[1, 1, 1], widths=widths))
        assert run.record["fingerprint"]["memory_format"] == "contiguous_format"
    assert train(tiny(widths=[16])).record["fingerprint"]["memory_format"] == "channels_last"


def test_starting_over_forgets_the_record_before_anything_else(tiny, monkeypatch):
    """Killed in between, a record that says `done` would stand without its files."""
    run = train(tiny())
    (run.path / ".metrics.json.left").touch()  # as a killed write leaves it
    removed = []
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: removed.append(self.name))
    runs.clear(run.path)
    assert removed[0] == "run.json"
    assert {"metrics.json", "model.safetensors", "curves.png", ".metrics.json.left"} <= set(removed)


def test_a_record_that_is_not_json_is_told(tiny):
    run = train(tiny())
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train(tiny())


def test_a_failed_run_says_so_in_its_record(tiny, monkeypatch):
    def broken(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("resnetlib.runs.artifacts.write_predictions", broken)
    with pytest.raises(OSError, match="No space"):
        train(tiny())
    record = load_run(tiny().folder).record
    assert (record["status"], record["error"]) == ("failed", "OSError: No space left on device")
