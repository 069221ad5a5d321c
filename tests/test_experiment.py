"""Digest and folder of an experiment, its durations, and settings that contradict each other."""

import pytest
import yaml

from resnetlib import load_experiment
from resnetlib.config import apply_overrides
from resnetlib.errors import ConfigError
from resnetlib.experiment import parse_duration
from resnetlib.paths import PROJECT


def test_digest_ignores_execution():
    base = load_experiment("lite")
    same = apply_overrides(
        base, {"device": "cpu", "fresh": True, "threads": 2, "output_root": "elsewhere"}
    )
    assert same.digest == base.digest
    assert {base: "found"}[load_experiment("lite")] == "found"
    others = [{"seed": 1}, {"dataset": "digits"}, {"lr": 0.2}, {"widths": [16, 32, 65]}]
    digests = {apply_overrides(base, change).digest for change in others}
    assert len(digests | {base.digest}) == 5


def test_run_folder_name():
    experiment = load_experiment("lite", seed=4, output_root="runs")
    assert experiment.folder.as_posix() == f"runs/lite/cifar10-seed4-{experiment.digest[:8]}"


def test_digest_ignores_defaults():
    """A key added in a later version must not change the digests of earlier experiments."""
    plain = load_experiment("lite")
    assert load_experiment("lite", nesterov=False, min_lr=0).digest == plain.digest
    assert load_experiment("lite", ema="none").digest == plain.digest
    assert load_experiment("lite", precision="float32", output_root="x").digest == plain.digest
    changed = [{"nesterov": True}, {"augment": "crop"}, {"seed": 1}, {"ema": {"decay": 0.9}}]
    digests = {load_experiment("lite", **change).digest for change in changed}
    assert len(digests | {plain.digest}) == 5


DIGESTS = {
    "adamw": "ead046c6",
    "dropout": "19bd3631",
    "improved_adam": "569c2fc1",
    "improved_sgd": "7291bc79",
    "lite": "94317df7",
    "resnet18": "aef71964",
    "se": "c3bd3452",
    "wide66": "8d94b65d",
}


@pytest.mark.parametrize("variant", DIGESTS)
def test_digest_of_published_variants(variant):
    """Recorded runs are found by their digest; a changed default would lose them."""
    assert load_experiment(variant).digest[:8] == DIGESTS[variant]


STEP = {"name": "step", "milestones": [150]}


CONTRADICTIONS = [
    ({"schedule": STEP}, "recipe.schedule.milestones = [150]: give epochs from 1 to 39"),
    ({"schedule": STEP, "epochs": 150}, "recipe.schedule.milestones = [150]"),
    ({"schedule": STEP | {"milestones": []}}, "recipe.schedule.milestones = []"),
    ({"schedule": STEP, "epochs": 1}, "recipe.schedule.milestones = [150]: give [], since"),
    (
        {"schedule": STEP | {"milestones": [1], "warmup_epochs": 1.5}, "epochs": 2},
        "recipe.schedule.warmup_epochs = 1.5: give at most 1, so that the rate can drop",
    ),
    ({"warmup_epochs": 40}, "recipe.schedule.warmup_epochs = 40: give less than recipe.epochs"),
    ({"warmup_epochs": 39.5}, "recipe.schedule.warmup_epochs = 39.5, 40 in whole epochs: give"),
    ({"warmup_epochs": 20, "hold_epochs": 20}, "warmup_epochs + hold_epochs = 40"),
    ({"schedule": STEP | {"milestones": [3], "warmup_epochs": 5}}, "after the warm-up of 5"),
    ({"min_lr": 0.1}, "recipe.schedule.min_lr = 0.1: give at most the learning rate, 0.01"),
    (
        {"dataset": "digits", "batch_size": 673, "depths": [1] * 6, "widths": [16] * 6},
        "the last batch has one image",
    ),
    (
        {"squeeze_excitation": {"placement": "block", "blocks": []}},
        "squeeze_excitation.blocks = []",
    ),
    ({"warmup_start": 0.4}, "schedule.warmup_start has no effect without warmup_epochs above 0"),
    ({"strides": []}, "architecture.strides = []"),
    ({"batch_size": 50_001}, "recipe.batch_size = 50001: there are 50,000 training images"),
    ({"batch_size": 49_001, "holdout": 1000}, "there are 49,000 training images"),
    ({"batch_size": 1348, "dataset": "digits"}, "there are 1,347 training images"),
    ({"holdout": 49_991}, "recipe.holdout = 49991: both parts"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS, ids=str)
def test_settings_that_cannot_act_are_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment("lite", **overrides)
    assert message in str(caught.value)


def test_scaled_milestones_are_not_blamed():
    trial = {"dataset": "digits", "epochs": 2, "interval": "step"}
    with pytest.raises(ConfigError, match=r"schedule\.warmup_epochs = 1\.5: give at most 1"):
        load_experiment("resnet110", **trial, warmup_epochs=1.5)
    assert load_experiment("resnet110", **trial, warmup_epochs=1).recipe.schedule.milestones


def test_settings_at_the_limit_are_accepted():
    load_experiment("lite", schedule=STEP, epochs=151)
    load_experiment("lite", schedule=STEP | {"milestones": [2], "warmup_epochs": 2}, epochs=3)
    load_experiment("lite", schedule=STEP | {"milestones": []}, epochs=1)
    load_experiment("lite", device="cuda:10")
    load_experiment("lite", warmup_start=0.4, warmup_epochs=1)
    load_experiment("lite", warmup_start=0.4, warmup_epochs=0)  # as a sweep over the warm-up has it
    load_experiment("resnet110", warmup_start=0.2, dataset="digits", epochs=2)  # scaled to 0
    load_experiment("adamw", warmup_epochs=0)  # as a sweep over the warm-up may have it
    load_experiment("lite", warmup_epochs=39.5, interval="step")
    load_experiment("lite", dataset="digits", batch_size=1347)
    load_experiment("lite", batch_size=49_000, holdout=1000)


def test_recorded_settings_that_cannot_act_still_load(tmp_path):
    """Older versions trained them; a variant file with the same mistake is refused."""
    recorded = yaml.safe_load(load_experiment("lite").to_yaml())
    recorded["recipe"]["schedule"] = STEP
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(recorded))
    assert load_experiment(path, device="cpu").recipe.schedule.milestones == (150,)
    with pytest.raises(ConfigError, match="milestones"):
        load_experiment(path, lr=0.2)
    del recorded["overrides"]
    path.write_text(yaml.safe_dump(recorded))
    with pytest.raises(ConfigError, match="milestones"):
        load_experiment(path)


def test_every_recorded_experiment_loads():
    paths = sorted((PROJECT / "outputs" / "reference").glob("*/*/experiment.yaml"))
    assert paths
    for path in paths:
        assert path.parent.name.endswith(load_experiment(path).digest[:8])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("11h", 39_600), ("1h30m", 5400), ("1d0.5h", 88_200)]
)
def test_parse_duration_reads_units(text, seconds):
    assert parse_duration(text) == seconds
