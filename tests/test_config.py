"""Variant files, overrides, and the messages about mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resnetlib import explore, list_variants, load_experiment, schema
from resnetlib.config import apply_overrides, known_variants, parse_parameter
from resnetlib.errors import ConfigError
from resnetlib.paths import params_folder
from resnetlib.reports.leaderboard import experiments, results_table
from resnetlib.schedule import learning_rate
from resnetlib.sweep.task import Task, format_value
from resnetlib.yaml_core import write_yaml


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
    (
        "lite",
        {"schedule": {"name": "exponential", "gamma": 0.5, "every_epochs": 40}},
        ["every_epochs = 40", "never drop", "less than the 40 epochs"],
    ),
    ("lite", {"block_widths": [16, 32, 64]}, ["block_widths", "give a list"]),
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
@pytest.mark.parametrize(
    "text", ["2024", "1,2", "1e3", "true", "[a]", "007", "[2024] runs", "'a", "null"]
)
def test_folder_stays_text(name, text):
    """A folder's name may look like a number or a list; papermill passes a number."""
    key = name.rpartition(".")[2]
    value = parse_parameter(name, text)
    assert getattr(load_experiment("lite", **{name: value}).execution, key) == Path(text)
    words = Task("lite", {name: value}).words()  # as a child process gets it
    assert parse_parameter(name, words[words.index(name) + 1]) == text
    assert getattr(load_experiment("lite", **{name: 2024}).execution, key) == Path("2024")
    assert parse_parameter(name, "None") is None
    assert parse_parameter(name, "'2024'") == "2024"


def test_folder_that_is_not_unicode_is_refused():
    """Notebooks and scripts name it."""
    with pytest.raises(ConfigError, match="a path cannot have these characters"):
        load_experiment("lite", output_root=os.fsdecode(b"/tmp/\xff"))


def test_hidden_files_are_no_variants(tmp_path, monkeypatch):
    """Emacs puts a link with a name of its own beside a file that is edited."""
    (tmp_path / "class").mkdir()
    for folder in (tmp_path, tmp_path / "class"):
        (folder / ".#lite.yaml").symlink_to("user@host.123:456")
        (folder / "mine.yaml").touch()
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path)
    assert known_variants() == ["mine", "class/mine"]


def test_unreadable_variant_is_left_out_of_tables(tmp_path, monkeypatch, capsys):
    for name in ("lite", "laptop"):
        (tmp_path / f"{name}.yaml").write_text((params_folder() / f"{name}.yaml").read_text())
    (tmp_path / "half.yaml").write_text("variant: half\ntitle")
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path)
    tables = [row["variant"] for row in results_table([])], [r["variant"] for r in experiments([])]
    assert tables == (["laptop", "lite"],) * 2
    assert list(explore.published().index) == [*explore.claims().index, "laptop"]
    (line,) = capsys.readouterr().err.splitlines()  # once, however many tables
    assert line.startswith(f"passed over: {tmp_path}/half.yaml is not valid YAML")


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


def test_variant_file_made_of_a_recorded_experiment_is_checked(tmp_path):
    """A run of an older version may have settings that cannot act; a file that is new may not."""
    content = load_experiment("resnet110").model_dump(mode="json", exclude={"execution"})
    content["recipe"]["epochs"] = 20  # before the first milestone
    for name in ("experiment.yaml", "mine.yaml"):
        (tmp_path / name).write_text(write_yaml(content))
    assert load_experiment(str(tmp_path / "experiment.yaml")).recipe.epochs == 20
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*milestones = "):
        load_experiment(str(tmp_path / "mine.yaml"))


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
    """In thousandths of a second; without limits some would take minutes."""
    with pytest.raises(ConfigError) as caught:
        load_experiment("lite", **overrides)
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)


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
