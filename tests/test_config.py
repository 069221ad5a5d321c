"""Variant files, overrides, and the messages about mistakes."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from resnetlib import list_variants, load_experiment, schema
from resnetlib.config import apply_overrides, parse_parameter, parse_value
from resnetlib.errors import ConfigError
from resnetlib.experiment import parse_duration
from resnetlib.paths import PROJECT, params_folder
from resnetlib.schedule import learning_rate
from resnetlib.sweep.task import format_value
from resnetlib.yaml_core import read_yaml, write_yaml


def test_list_variants_has_the_published_ones():
    published = {"lite", "improved_sgd", "improved_adam", "dropout", "se", "adamw", "wide66"}
    assert published | {"resnet18"} <= set(list_variants())


@pytest.mark.parametrize("variant", list_variants())
def test_experiment_yaml_round_trip(variant, tmp_path):
    experiment = load_experiment(variant, seed=3, label_smoothing=0.05)
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.to_yaml())
    again = load_experiment(str(path))
    assert again == experiment
    assert again.digest == experiment.digest


def test_override_flat_and_dotted_names_agree():
    flat = load_experiment("lite", lr=0.05, momentum=0.8, depths=[2, 1, 1])
    dotted = load_experiment(
        "lite",
        **{
            "recipe.optimizer.lr": 0.05,
            "optimizer.momentum": 0.8,
            "architecture.depths": [2, 1, 1],
        },
    )
    assert flat == dotted
    assert flat.recipe.optimizer.lr == 0.05
    assert flat.architecture.depths == (2, 1, 1)
    assert flat.overrides == {
        "architecture.depths": [2, 1, 1],
        "recipe.optimizer.lr": 0.05,
        "recipe.optimizer.momentum": 0.8,
    }


def test_override_of_part_and_its_keys_together():
    adam = {"name": "adam", "lr": 0.01}
    experiment = load_experiment("lite", eps=1e-6, optimizer=adam, clip={"by": "norm", "limit": 1})
    assert experiment.recipe.optimizer.eps == 1e-6
    assert experiment.recipe.clip.limit == 1
    assert "optimizer.momentum" not in experiment.assumed


def test_override_none_in_quotes_turns_a_part_off():
    assert load_experiment("se").recipe.lookahead
    assert load_experiment("se", lookahead="none", clip="none").recipe.lookahead is None
    assert load_experiment("lite", augment="none") == load_experiment("lite", augment="")
    assert load_experiment("adamw", period_epochs="none").recipe.schedule.period_epochs is None


def test_variant_file_with_execution_is_refused(tmp_path, monkeypatch):
    text = (params_folder() / "lite.yaml").read_text()
    (tmp_path / "lite.yaml").write_text(text + "execution: {fresh: true}\n")
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'execution'"):
        load_experiment("lite")


def test_override_of_one_key_by_two_names_is_refused():
    with pytest.raises(ConfigError, match=r"recipe\.optimizer\.lr is specified twice"):
        load_experiment("lite", lr=0.1, **{"optimizer.lr": 0.2})


def test_override_none_or_equal_value_changes_nothing():
    experiment = load_experiment("lite", lr=None, epochs="40", ema="none", nesterov=False)
    assert experiment == load_experiment("lite")
    assert experiment.overrides == {}


def test_override_text_as_papermill_passes_it():
    experiment = load_experiment(
        "lite", lr="1e-3", epochs="1e1", augment="crop,flip", fresh="false", seed="7"
    )
    assert experiment.recipe.optimizer.lr == 0.001
    assert experiment.recipe.epochs == 10
    assert [augment.name for augment in experiment.recipe.augment] == ["crop", "flip"]
    assert experiment.execution.fresh is False
    assert experiment.seed == 7
    assert experiment.overrides["recipe.optimizer.lr"] == 0.001


MISTAKES = [
    ("liet", {}, ["'liet'", "'lite'", "wide66"]),
    ("lite", {"epoch": 3}, ["'epoch'", "'epochs'"]),
    ("lite", {"name": "adam"}, ["recipe.optimizer.name", "recipe.schedule.name"]),
    ("lite", {"lr": -1}, ["recipe.optimizer.lr = -1", "greater than or equal to"]),
    ("lite", {"lr": float("nan")}, ["recipe.optimizer.lr = nan", "finite"]),
    ("lite", {"epochs": 0}, ["recipe.epochs = 0", "greater than or equal to 1"]),
    ("lite", {"epochs": True}, ["recipe.epochs = True", "number"]),
    ("lite", {"epochs": "many"}, ["recipe.epochs = 'many'", "whole number"]),
    ("lite", {"dataset": "cifar"}, ["dataset = 'cifar'", "'cifar10'", "'digits'"]),
    ("lite", {"augment": "crop,flop"}, ["'flop'", "'flip'"]),
    (
        "lite",
        {"augment": [{"name": "crop", "paddin": 4}]},
        ["augment.0: unknown key 'paddin'", "'padding'"],
    ),
    ("lite", {"augment": [{"name": "cutout", "size": 0}]}, ["recipe.augment.0.size = 0"]),
    ("lite", {"augment": [{"name": "rotation", "degrees": 0}]}, ["augment.0.degrees = 0"]),
    ("lite", {"augment": [{"name": "random_erasing", "scale": [0.3, 0.1]}]}, ["lower bound first"]),
    (
        "lite",
        {"augment": [{"name": "color_jitter", "brightness": 0, "contrast": 0, "saturation": 0}]},
        ["all four strengths are 0"],
    ),
    ("lite", {"ema": {"decay": 1}}, ["recipe.ema.decay = 1", "less than 1"]),
    ("lite", {"precision": "float64"}, ["execution.precision = 'float64'", "'bfloat16'"]),
    ("lite", {"device": "gpu"}, ["execution.device = 'gpu'"]),
    ("lite", {"device": "cuda:01"}, ["execution.device = 'cuda:01'", "such as cuda:1"]),
    ("lite", {"optimizer": {"name": "adma", "lr": 1}}, ["'adma'", "'adam'"]),
    ("lite", {"schedule": {"name": "step"}}, ["recipe.schedule.milestones", "missing"]),
    ("lite", {"schedule": "step"}, ["recipe.schedule.milestones", "missing"]),
    ("lite", {"optimizer": {"lr": 0.1}}, ["recipe.optimizer", "its name"]),
    ("lite", {"optimizer": "cosine"}, ["recipe.optimizer.name = 'cosine'", "'adam'"]),
    ("lite", {"optimizer": "adma"}, ["'adma'", "did you mean 'adam'"]),
    ("lite", {"optimizer": "adam", "optimizer.name": "sgd"}, ["specified twice"]),
    ("lite", {"milestones": [1]}, ["milestones is a key of schedule step"]),
    ("lite", {"ema.decay": 0.9}, ["decay is a key of ema"]),
    ("lite", {"lookahead.alpha": 0.5}, ["alpha is a key of lookahead, which is not set"]),
    ("lite", {"recipe.sam.rho": 0.1}, ["rho is a key of sam, which is not set"]),
    ("lite", {"rho": 0.1}, ["rho is a key of optimizer adadelta or sam, which is not set"]),
    ("lite", {"mixup.alpha": 0.5}, ["give augment as a whole", "'[{name: mixup, alpha: …}]'"]),
    ("lite", {"crop.padding": 2}, ["give augment as a whole", "'[{name: crop, padding: …}]'"]),
    ("lite", {"sam.lr": 0.1}, ["unknown parameter 'sam.lr'; did you mean"]),
    ("se", {"lookahead": "none", "k": 3}, ["lookahead = 'none' has no k"]),
    ("lite", {"optimizer": {"name": "adam", "lr": 1, "momentum": 0.9}}, ["momentum", "betas"]),
    (
        "lite",
        {"augment": ["crop", {"name": "one_of", "choices": ["cutmix", "cutuot"]}]},
        ["choices", "'cutuot'", "did you mean 'cutout'"],
    ),
    (
        "lite",
        {"augment": [{"name": "one_of", "choices": ["cutmix", {"name": "cutout", "sise": 8}]}]},
        ["choices.1: unknown key 'sise'", "did you mean 'size'"],
    ),
    (
        "lite",
        {"augment": [{"name": "one_of", "choices": ["cutmix"]}]},
        ["recipe.augment.0", "at least two"],
    ),
    ("lite", {"expansion": 2}, ["expansion", "'basic'"]),
    ("lite", {"reduction": 8}, ["reduction", "placement"]),
    ("lite", {"depths": [1, 1]}, ["depths has 2 stages and widths 3"]),
    ("lite", {"select": "best_holdout"}, ["best_holdout", "holdout"]),
    ("lite", {"schedule": {"name": "plateau", "metric": "holdout_loss"}}, ["needs holdout"]),
    ("lite", {"schedule": {"name": "plateau", "metric": "test_loss"}}, ["'train_loss'"]),
    ("lite", {"schedule": {"name": "cosine", "after_period": "rise"}}, ["needs period_epochs"]),
    ("lite", {"period_factor": 2}, ["period_factor needs after_period 'restart'"]),
    ("lite", {"normalize": "imagnet"}, ["recipe.normalize = 'imagnet'", "mean 'imagenet'?"]),
    ("lite", {"normalize": {"mean": [0, 0, 0]}}, ["'recipe.normalize.std' is missing"]),
    (
        "lite",
        {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 0]}},
        ["recipe.normalize.std.2 = 0", "greater than or equal to"],
    ),
    ("lite", {"augment": [{"name": "affine", "degrees": 0}]}, ["omit affine"]),
    ("lite", {"augment": [{"name": "affine", "scale": [2, 1]}]}, ["lower bound first"]),
    ("lite", {"augment": [{"name": "gaussian_blur", "sigma": [2, 1]}]}, ["lower bound first"]),
    ("lite", {"augment": [{"name": "gaussian_blur", "kernel_size": 4}]}, ["an odd number"]),
    ("lite", {"lr": True}, ["recipe.optimizer.lr = True", "number"]),
    ("lite", {"typo": None}, ["'typo'", "One of"]),
    ("lite", {"optimizer": "adam", "momentum": 0.5}, ["'momentum'", "a key of optimizer sgd"]),
    ("lite", {"optimizer": 5, "lr": 0.1}, ["optimizer = 5 has no lr"]),
    ("lite", {"nesterov": "no"}, ["recipe.optimizer.nesterov = 'no'", "true or false"]),
    ("lite", {"compile": "yes"}, ["execution.compile = 'yes'", "true or false"]),
    ("lite", {"stop_after": "11"}, ["stop_after = '11'", "give a time with its unit"]),
    ("lite", {"stop_after": 90}, ["stop_after = 90", "such as 90m, 11h or 1h30m"]),
    ("lite", {"threads": 0}, ["execution.threads = 0", "greater than or equal to 1"]),
    ("lite", {"threads": 1025}, ["execution.threads = 1025", "1024"]),
    ("lite", {"threads": True}, ["execution.threads = True", "number"]),
    ("lite", {"variant": "se"}, ["the variant is the first argument"]),
    ("lite", {"lookahead": "yes"}, ["recipe.lookahead = 'yes'", "mapping"]),
    ("lite", {"budget": "lots"}, ["budget = 'lots'"]),
    ("lite", {"output_root": " "}, ["execution.output_root = ' '", "give a folder"]),
    ("lite", {"keep_checkpoints": 2}, ["execution.keep_checkpoints = 2", "give true or false"]),
    ("lite", {"recipe..lr": 1}, ["unknown parameter 'recipe..lr'; did you mean"]),
    ("lite", {"momentum": 0, "nesterov": True}, ["nesterov", "momentum"]),
]


@pytest.mark.parametrize(("variant", "overrides", "parts"), MISTAKES, ids=str)
def test_load_experiment_refuses_in_one_line(variant, overrides, parts, capsys):
    with pytest.raises(ConfigError) as caught:
        load_experiment(variant, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert capsys.readouterr().err == ""
    assert isinstance(caught.value, ValueError)
    assert caught.value._render_traceback_() == [f"ConfigError: {message}"]


def variant_file(tmp_path, **changes):
    content = yaml.safe_load((params_folder() / "lite.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_variant_may_be_a_path():
    assert load_experiment(Path("lite")) == load_experiment("lite")
    assert load_experiment(Path("class/yifei")) == load_experiment("class/yifei")
    with pytest.raises(ConfigError, match="unknown variant 'liet'; did you mean 'lite'"):
        load_experiment(Path("liet"))


@pytest.mark.parametrize("name", ["output_root", "execution.data_root"])
@pytest.mark.parametrize("text", ["2024", "1,2", "1e3", "true", "[a]"])
def test_folder_stays_text(name, text):
    """A folder's name may look like a number or a list; papermill passes a number."""
    key = name.rpartition(".")[2]
    value = parse_parameter(name, text)
    assert getattr(load_experiment("lite", **{name: value}).execution, key) == Path(text)
    assert parse_parameter(name, format_value(value)) == text  # as a child process gets it
    assert getattr(load_experiment("lite", **{name: 2024}).execution, key) == Path("2024")
    assert parse_parameter(name, "None") is None


def test_variant_file_outside_params(tmp_path):
    path = variant_file(tmp_path, variant="mine", published={})
    assert load_experiment(path, epochs=2).variant == "mine"


def test_variant_file_with_unknown_key(tmp_path):
    path = variant_file(tmp_path, recipee={})
    with pytest.raises(ConfigError, match=r"unknown key 'recipee'; did you mean 'recipe'\?"):
        load_experiment(path)


def test_assumed_key_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"'optimizer\.learning_rate'"):
        load_experiment(variant_file(tmp_path, assumed=["optimizer.learning_rate"]))


def test_digest_ignores_execution():
    base = load_experiment("lite")
    same = apply_overrides(
        base, {"device": "cpu", "fresh": True, "threads": 2, "output_root": "elsewhere"}
    )
    assert same.digest == base.digest
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


# Another kind of optimizer or schedule ---------------------------------------------------------


ADAM_NOTE = "optimizer adam: lr = 0.001, weight_decay = 0 by default; momentum, nesterov dropped\n"


@pytest.mark.parametrize("name", ["optimizer", "optimizer.name", "recipe.optimizer.name"])
def test_optimizer_by_name_takes_its_default_rates(name, capsys):
    experiment = load_experiment("laptop94", **{name: "adam"})
    optimizer = experiment.recipe.optimizer
    assert capsys.readouterr() == ("", ADAM_NOTE)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 0.001, 0)
    assert (optimizer.decay_on, optimizer.bias_lr_factor) == ("weights", 16)  # both have these
    assert list(experiment.overrides) == ["recipe.optimizer"]


def test_optimizer_by_name_keeps_what_is_given(capsys):
    given = {"weight_decay": 0.1, "optimizer": "adamw", "lr": 0.01}
    expected = load_experiment("lite", optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.1})
    assert load_experiment("lite", **given).recipe == expected.recipe
    assert load_experiment("lite", **dict(reversed(given.items()))).recipe == expected.recipe
    assert capsys.readouterr().err == "optimizer adamw: momentum, nesterov dropped\n" * 2


def test_optimizer_as_mapping_replaces_all(capsys):
    short = load_experiment("lite", optimizer="{name: sgd, lr: 0.2}").recipe.optimizer
    assert (short.lr, short.momentum, short.weight_decay) == (0.2, 0, 0)
    assert capsys.readouterr().err == ""
    assert load_experiment("lite", optimizer={"name": "adam"}).recipe.optimizer.lr == 0.001
    assert capsys.readouterr().err == "optimizer adam: lr = 0.001 by default\n"


def test_optimizer_of_the_same_kind_changes_nothing(capsys):
    assert load_experiment("lite", optimizer="sgd") == load_experiment("lite")
    assert load_experiment("lite", schedule="cosine") == load_experiment("lite")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["schedule", "schedule.name", "recipe.schedule.name"])
def test_schedule_by_name_keeps_common_keys(name, capsys):
    schedule = load_experiment("adamw", **{name: "constant"}).recipe.schedule
    assert capsys.readouterr().err == (
        "schedule constant: "
        "hold_epochs, period_epochs, min_lr, after_period, period_factor dropped\n"
    )
    assert (schedule.name, schedule.warmup_epochs, schedule.warmup_start) == ("constant", 3, 0.4)


def test_kind_by_name_keeps_no_key_of_another_meaning(capsys):
    """By default eps is 1e-8 in adam and 1e-6 in adadelta; exponential has no default gamma."""
    assert load_experiment("improved_adam", optimizer="adadelta").recipe.optimizer.eps == 1e-6
    assert "lr = 1, weight_decay = 0, eps = 1e-06 by default" in capsys.readouterr().err
    assert load_experiment("improved_adam", optimizer="radam").recipe.optimizer.eps == 1e-8
    step = load_experiment("lite", schedule={"name": "step", "milestones": [20]})
    with pytest.raises(ConfigError, match=r"'recipe\.schedule\.gamma' is missing"):
        apply_overrides(step, {"schedule": "exponential"})


def test_schedule_by_name_with_its_own_keys():
    given = {"milestones": "20,30", "schedule": "step"}
    schedule = load_experiment("lite", **given).recipe.schedule
    assert schedule.milestones == (20, 30)
    assert load_experiment("lite", **dict(reversed(given.items()))).recipe.schedule == schedule


def test_recorded_override_by_name_reloads_in_silence(tmp_path, capsys):
    experiment = load_experiment("lite", optimizer="adam", schedule="constant")
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.to_yaml())
    capsys.readouterr()
    assert load_experiment(path) == load_experiment(tmp_path) == experiment
    assert load_experiment(path, **experiment.overrides).digest == experiment.digest
    assert capsys.readouterr() == ("", "")


def test_override_of_a_part_that_was_replaced_is_no_longer_recorded(tmp_path):
    """A recorded run continued with another optimizer: `verify` compares every recorded key."""
    momentum = load_experiment("lite", **{"optimizer.momentum": 0.8, "epochs": 3})
    (tmp_path / "experiment.yaml").write_text(momentum.to_yaml())
    adam = load_experiment(tmp_path, optimizer="adam")
    assert list(adam.overrides) == ["recipe.epochs", "recipe.optimizer"]
    assert load_experiment("lite", **adam.overrides).digest == adam.digest


def test_every_optimizer_has_a_default_rate():
    assert schema.DEFAULT_LR.keys() == schema.tagged_models(schema.Optimizer).keys()


# Tried on the digits ----------------------------------------------------------------------------

LONG = {
    "epochs": 180,
    "holdout": 5000,
    "schedule": {"name": "step", "milestones": [90, 135], "warmup_epochs": 9},
}


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("variant", list_variants())
def test_every_variant_can_be_tried_on_the_digits(variant, epochs):
    experiment = load_experiment(variant, dataset="digits", epochs=epochs)
    assert experiment.contradiction() is None
    before = load_experiment(variant).recipe
    rates = [learning_rate(experiment.recipe, step, 11) for step in range(11 * epochs)]
    assert max(rates) > 0.9 * before.optimizer.lr
    assert experiment.recipe.optimizer == before.optimizer
    assert getattr(experiment.recipe.schedule, "min_lr", 0) == getattr(before.schedule, "min_lr", 0)


@pytest.mark.parametrize(
    ("epochs", "interval", "milestones", "warmup"),
    [
        (60, "epoch", (30, 45), 3),
        (2, "step", (1, 1), 0.1),
        (2, "epoch", (1, 1), 0),
        (1, "step", (), 0.05),
    ],
)
def test_digits_scale_milestones_warmup_and_holdout(epochs, interval, milestones, warmup, capsys):
    """Part of an epoch of warm-up would be a whole one where the rate changes between epochs."""
    long = load_experiment("lite", **LONG, interval=interval)
    capsys.readouterr()
    recipe = apply_overrides(long, {"dataset": "digits", "epochs": epochs}).recipe
    assert (recipe.schedule.milestones, recipe.schedule.warmup_epochs) == (milestones, warmup)
    assert recipe.holdout == 135  # a tenth of 1,347 images
    assert recipe.optimizer == long.recipe.optimizer
    assert recipe.schedule.gamma == 0.1
    assert capsys.readouterr().err == (
        f"scaled to {epochs} of 180 epochs on the digits: warmup_epochs = {float(warmup)}, "
        f"milestones = {list(milestones)}, holdout = 135\n"
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine", "hold_epochs": 45, "period_epochs": 90}, {"hold_epochs": 0}),
        ({"name": "cosine", "hold_epochs": 45, "period_epochs": 90}, {"period_epochs": 1}),
        ({"name": "exponential", "gamma": 0.5, "every_epochs": 30}, {"every_epochs": 1}),
        ({"name": "exponential", "gamma": 0.98}, {"every_epochs": 1, "gamma": 0.98}),
        ({"name": "plateau", "patience": 5}, {"patience": 5}),
    ],
    ids=str,
)
def test_digits_scale_each_schedule(schedule, expected):
    long = load_experiment("lite", epochs=180, schedule=schedule)
    scaled = apply_overrides(long, {"dataset": "digits", "epochs": 2}).recipe.schedule
    assert {key: getattr(scaled, key) for key in expected} == expected


def test_digits_scale_only_what_is_not_given(capsys):
    long = load_experiment("lite", **LONG)
    trial = {"dataset": "digits", "epochs": 90}
    capsys.readouterr()
    own = apply_overrides(long, trial | {"milestones": "70", "warmup_epochs": 2, "holdout": 100})
    assert own.recipe.schedule.milestones == (70,)
    assert (own.recipe.schedule.warmup_epochs, own.recipe.holdout) == (2, 100)
    whole = {"name": "step", "milestones": [70], "warmup_epochs": 2}
    assert apply_overrides(long, trial | {"schedule": whole, "holdout": 0}).recipe.schedule == (
        own.recipe.schedule
    )
    apply_overrides(load_experiment("lite"), {"dataset": "digits"})
    assert capsys.readouterr().err == ""
    # As many epochs as before, or another data set, leave the schedule alone.
    assert apply_overrides(long, {"dataset": "digits"}).recipe.schedule == long.recipe.schedule
    assert capsys.readouterr().err == "scaled to the digits: holdout = 135\n"
    with pytest.raises(ConfigError, match=r"milestones = \[90, 135\]"):
        apply_overrides(long, {"epochs": 2})


def test_digits_reduce_a_batch_larger_than_the_data_set():
    large = load_experiment("lite", batch_size=2048, holdout=5000)
    recipe = apply_overrides(large, {"dataset": "digits", "epochs": 2}).recipe
    assert recipe.batch_size == 1347 - 135


def test_scaled_settings_are_recorded_as_overrides(tmp_path, capsys):
    trial = load_experiment("adamw", dataset="digits", epochs=2, holdout=100)
    assert trial.overrides["recipe.schedule.warmup_epochs"] == 0
    again = load_experiment("adamw", **trial.overrides)
    path = tmp_path / "experiment.yaml"
    path.write_text(trial.to_yaml())
    capsys.readouterr()
    assert load_experiment(path, **trial.overrides).digest == again.digest == trial.digest
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("null", ["null", "~"])
def test_null_on_the_command_line_is_refused(null):
    """In a file it switches a part off; as an override None leaves the variant's value."""
    with pytest.raises(ConfigError, match="write `none` to switch a part off"):
        load_experiment("champion", ema=null)
    assert load_experiment("champion", ema="none").recipe.ema is None
    assert load_experiment("laptop", strides="none").architecture.strides is None
    assert load_experiment("champion", ema="None").recipe.ema is not None
    assert format_value(None) == "None"  # as a child process gets it


def test_file_in_params_is_checked_by_its_name_also_by_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    text = (params_folder() / "lite.yaml").read_text()
    (tmp_path / "params" / "mine.yaml").write_text(text)
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    for path in ("params/mine.yaml", tmp_path / "params" / "mine.yaml"):
        with pytest.raises(ConfigError, match="variant is 'lite'; it must be 'mine'"):
            load_experiment(path)


# Settings that cannot act -----------------------------------------------------------------------

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


# Absurd values: one short line, at once ---------------------------------------------------------

ABSURD = [
    {"widths": [10**30, 32, 64]},
    {"widths": [2**31] * 3},
    {"depths": [10_000, 1, 1]},
    {"depths": [1] * 17, "widths": [8] * 17, "strides": [1] * 17},
    {"depths": []},
    {"widths": []},
    {"stem_width": 10**9},
    {"lr": "-" * 10_000},
    {"lr": "x" * 100_000},
    {"lr": [[[]]] * 1000},
    {"epochs": 10**7},
    {"lr": 1e-300},
    {"clip": {"by": "norm", "limit": 1e-300}},
    {"augment": [{"name": "color_jitter", "brightness": 1e30}]},
    {"augment": [{"name": "rand_augment", "num_ops": 10**9}]},
    {"augment": [{"name": "gaussian_blur", "sigma": [1, 1e300]}]},
    {"epochs": "9" * 5000},
    {"epochs": "040"},
    {"epochs": 1e300},
    {"augment": "[" * 100_000},
    {"augment": "[*bomb]"},
    {"augment": "{<<: {name: crop}}"},
    {"augment": ["x" * 100_000]},
    {"optimizer": {"x" * 100_000: 1}},
    {"optimizer": {1: 2}},
    {"x" * 1000: 1},
    {"output_root": "~nosuchuser/x"},
    {"output_root": "a\0b"},
    {"data_root": "~nosuchuser/x"},
    {"device": "cuda:" + "9" * 5000},
    *({key: 10**5000} for key in ("epochs", "seed", "batch_size", "holdout", "widths", "lr")),
]


@pytest.mark.parametrize("overrides", ABSURD, ids=range(len(ABSURD)))
def test_absurd_values_are_refused_in_a_short_line(overrides):
    begin = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_experiment("lite", **overrides)
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)
    assert time.monotonic() - begin < 5  # thousandths of a second; without limits, minutes


@pytest.mark.parametrize(
    "variant", ["x" * 100_000, "x" * 3000 + ".yaml", "a\0.yaml", "~nosuchuser/a.yaml", 3, "", None]
)
def test_absurd_variant_is_refused_in_a_short_line(variant):
    with pytest.raises(ConfigError) as caught:
        load_experiment(variant)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_refusal_needs_no_heavy_import():
    code = """
import sys
from resnetlib import list_variants, load_experiment
from resnetlib.errors import ConfigError
load_experiment(list_variants()[0], seed=1).to_yaml()
try:
    load_experiment("lite", batch_size=10**6)
except ConfigError:
    print([name for name in ("torch", "numpy", "pandas", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("0", 0),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("", ""),
        ("crop,flip", "crop,flip"),
        ("2,2,2", [2, 2, 2]),
        ("0.9, 0.999", [0.9, 0.999]),
        ("3,", [3]),
        ("2,2,x", "2,2,x"),
        ("[1,2]", [1, 2]),
        ("[]", []),
        ("{a: b}", {"a": "b"}),
        ("{'name': 'adam', 'lr': 0.1}", {"name": "adam", "lr": 0.1}),
        ("'040'", "040"),
        ("../data", "../data"),
        ("C:\\data: new", "C:\\data: new"),
    ],
)
def test_parse_value_follows_the_core_schema(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_parse_value_reads_nan_as_a_number():
    assert all(math.isnan(parse_value(text)) for text in ("nan", ".nan", "NaN"))


UNREADABLE = [
    ("040", "no leading zeros"),
    ("-007.5", "no leading zeros"),
    ("2,02", "no leading zeros"),
    ("9" * 5000, "a whole number of 5,000 characters"),
    ("[" * 5000, "nested more than 20 levels"),
    ("[&a [1], *a]", "aliases are not supported"),
    ("{<<: {a: 1}}", "merge keys are not supported"),
    ("[!!python/name:os.system x]", "tags such as"),
    ("{a: 1, a: 2}", "key 'a' is specified twice"),
    ("{1: 2}", "a key must be a name"),
    ("{[1]: 2}", "a key must be a name"),
    ("[1, 2", "expected ',' or ']'"),
    ("[\0]", "#x0000"),
    ("[" + "x" * 100_000 + "]", "more than 50,000 characters"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE, ids=lambda text: text[:20])
def test_unreadable_yaml_is_refused_in_a_short_line(text, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_value(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)
    path = tmp_path / "mine.yaml"
    path.write_text(f"variant: mine\nwidths: {text}\n")
    if "," not in text[:2]:  # a list without brackets is text in a file
        with pytest.raises(ConfigError) as caught:
            load_experiment(path)
        assert str(caught.value).startswith(f"{path} is not valid YAML: ")
        assert message in str(caught.value)


def test_variant_file_with_alias_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = [
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path.write_text("a: &a [x]\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match="line 1: anchors and aliases are not supported"):
        load_experiment(path)


def test_variant_file_with_two_equal_keys_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("variant: a\nvariant: b\n")
    with pytest.raises(ConfigError, match="line 2: key 'variant' is specified twice"):
        load_experiment(path)


def test_variant_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML: it is not UTF-8 text"):
        load_experiment(path)


@pytest.mark.parametrize(
    "text", ["1e3", "1.", "nan", "040", "yes", "~", "", "1:30", "a: b", "é", "<<", "*x"]
)
def test_write_yaml_quotes_what_would_be_read_otherwise(text):
    assert read_yaml(write_yaml({"title": text})) == {"title": text}


# The reference pages ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", PROJECT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_reference_pages_are_up_to_date(reference):
    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/reference.py"


def test_reference_describes_every_key(reference):
    page = (PROJECT / "docs" / "variant_file.md").read_text(encoding="utf-8")
    for model in reference.models():
        for key, description in reference.descriptions(model).items():
            assert description, f"{model.__name__}.{key} has no comment"
            assert key == "name" or f"| `{key}` |" in page


@pytest.mark.parametrize("variant", list_variants())
def test_json_schema_accepts_every_variant_file(variant):
    content = read_yaml((params_folder() / f"{variant}.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads((params_folder() / "schema.json").read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipee": {}},
        {"architecture": {"block": "basci", "depths": [1], "widths": [8]}},
        {"budget": 0},
    ],
    ids=str,
)
def test_json_schema_refuses_mistakes(wrong):
    content = read_yaml((params_folder() / "lite.yaml").read_text(encoding="utf-8")) | wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads((params_folder() / "schema.json").read_text()))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("11h", 39_600), ("1h30m", 5400), ("1d0.5h", 88_200)]
)
def test_parse_duration_reads_units(text, seconds):
    assert parse_duration(text) == seconds
