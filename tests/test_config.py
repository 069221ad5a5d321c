"""Variant files, overrides, and what a person is told about a mistake."""

import pytest
import yaml

from resnetlib import list_variants, load_experiment
from resnetlib.config import apply_overrides
from resnetlib.errors import ConfigError
from resnetlib.paths import params_folder


def test_lists_the_eight_published_variants():
    published = {"lite", "improved_sgd", "improved_adam", "dropout", "se", "adamw", "wide66"}
    assert published | {"resnet18"} <= set(list_variants())


@pytest.mark.parametrize("variant", list_variants())
def test_a_variant_survives_the_round_trip_through_experiment_yaml(variant, tmp_path):
    experiment = load_experiment(variant, seed=3, dataset="digits")
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.to_yaml())
    again = load_experiment(str(path))
    assert again == experiment
    assert again.digest == experiment.digest


def test_flat_and_dotted_names_reach_the_same_key():
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


def test_single_keys_act_on_a_branch_that_is_replaced_in_the_same_breath():
    adam = {"name": "adam", "lr": 0.01}
    experiment = load_experiment("lite", eps=1e-6, optimizer=adam, clip={"by": "norm", "limit": 1})
    assert experiment.recipe.optimizer.eps == 1e-6
    assert experiment.recipe.clip.limit == 1
    assert "optimizer.momentum" not in experiment.assumed


def test_none_in_quotes_switches_a_part_off():
    assert load_experiment("se").recipe.lookahead
    assert load_experiment("se", lookahead="none", clip="none").recipe.lookahead is None
    assert load_experiment("adamw", period_epochs="none").recipe.schedule.period_epochs is None


def test_a_variant_file_may_not_say_what_only_a_run_says(tmp_path, monkeypatch):
    text = (params_folder() / "lite.yaml").read_text()
    (tmp_path / "lite.yaml").write_text(text + "execution: {fresh: true}\n")
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'execution'"):
        load_experiment("lite")


def test_what_yaml_cannot_read_is_told_in_one_line(tmp_path):
    path = tmp_path / "date.yaml"
    path.write_text("variant: 2020-13-45\n")
    with pytest.raises(ConfigError, match="not valid YAML: month must be in"):
        load_experiment(str(path))


def test_one_key_under_two_names_is_refused():
    with pytest.raises(ConfigError, match=r"recipe\.optimizer\.lr is set twice"):
        load_experiment("lite", lr=0.1, **{"optimizer.lr": 0.2})


def test_none_keeps_the_variants_value_and_equal_values_are_no_override():
    experiment = load_experiment("lite", lr=None, epochs=40)
    assert experiment == load_experiment("lite")
    assert experiment.overrides == {}


def test_values_as_papermill_passes_them_are_understood():
    experiment = load_experiment(
        "lite", lr="1e-3", epochs=10.0, augment="crop,flip", fresh="false", seed="7"
    )
    assert experiment.recipe.optimizer.lr == 0.001
    assert experiment.recipe.epochs == 10
    assert [augment.name for augment in experiment.recipe.augment] == ["crop", "flip"]
    assert experiment.execution.fresh is False
    assert experiment.seed == 7
    assert experiment.overrides["recipe.optimizer.lr"] == 0.001


MISTAKES = [
    ("liet", {}, ["'liet'", "'lite'", "wide66"]),
    ("lite", {"epoch": 3}, ["'epoch'", "'epochs'", "batch_size"]),
    ("lite", {"name": "adam"}, ["recipe.optimizer.name", "recipe.schedule.name"]),
    ("lite", {"lr": -1}, ["recipe.optimizer.lr = -1", "greater than 0"]),
    ("lite", {"lr": float("nan")}, ["recipe.optimizer.lr = nan", "finite"]),
    ("lite", {"epochs": 0}, ["recipe.epochs = 0", "greater than 0"]),
    ("lite", {"epochs": True}, ["recipe.epochs = True", "number"]),
    ("lite", {"epochs": "many"}, ["recipe.epochs = 'many'", "integer"]),
    ("lite", {"dataset": "cifar"}, ["dataset = 'cifar'", "'cifar10'", "'digits'"]),
    ("lite", {"augment": "crop,flop"}, ["'flop'", "'flip'"]),
    ("lite", {"augment": [{"name": "crop", "paddin": 4}]}, ["augment.0.paddin", "'padding'"]),
    ("lite", {"augment": [{"name": "cutout", "size": 0}]}, ["recipe.augment.0.size = 0"]),
    ("lite", {"augment": [{"name": "rotation", "degrees": 0}]}, ["augment.0.degrees = 0"]),
    ("lite", {"augment": [{"name": "random_erasing", "scale": [0.3, 0.1]}]}, ["lower bound first"]),
    (
        "lite",
        {"augment": [{"name": "color_jitter", "brightness": 0, "contrast": 0, "saturation": 0}]},
        ["all four strengths are 0"],
    ),
    ("lite", {"ema": {"decay": 1}}, ["recipe.ema.decay = 1", "less than 1"]),
    ("lite", {"precision": "float16"}, ["execution.precision = 'float16'", "'bfloat16'"]),
    ("lite", {"device": "gpu"}, ["execution.device = 'gpu'"]),
    ("lite", {"optimizer": {"name": "adma", "lr": 1}}, ["'adma'", "'adam'"]),
    ("lite", {"optimizer": {"name": "adam"}}, ["recipe.optimizer.lr", "missing"]),
    ("lite", {"optimizer": {"name": "adam", "lr": 1, "momentum": 0.9}}, ["momentum", "betas"]),
    (
        "lite",
        {"augment": ["crop", {"name": "one_of", "choices": ["cutmix", "cutuot"]}]},
        ["choices", "'cutuot'", "did you mean 'cutout'"],
    ),
    (
        "lite",
        {"augment": [{"name": "one_of", "choices": ["cutmix", {"name": "cutout", "sise": 8}]}]},
        ["unknown key", "choices.1.sise", "did you mean 'size'"],
    ),
    (
        "lite",
        {"augment": [{"name": "one_of", "choices": ["cutmix"]}]},
        ["recipe.augment.0", "at least two"],
    ),
    ("lite", {"dropout": 0.4}, ["dropout", "'basic'"]),
    ("lite", {"reduction": 8}, ["reduction", "placement"]),
    ("lite", {"depths": [1, 1]}, ["depths has 2 stages and widths 3"]),
    ("lite", {"select": "best_holdout"}, ["best_holdout", "holdout"]),
    ("lite", {"lr": True}, ["recipe.optimizer.lr = True", "number"]),
    ("lite", {"typo": None}, ["'typo'", "One of"]),
    ("lite", {"optimizer": "adam", "momentum": 0.5}, ["optimizer = 'adam'", "mapping"]),
    ("lite", {"lookahead": "yes"}, ["recipe.lookahead = 'yes'", "mapping"]),
    ("lite", {"budget": "lots"}, ["budget = 'lots'"]),
    ("lite", {"momentum": 0, "nesterov": True}, ["nesterov", "momentum"]),
]


@pytest.mark.parametrize(("variant", "overrides", "told"), MISTAKES, ids=str)
def test_a_mistake_is_told_in_one_line_with_what_is_allowed(variant, overrides, told):
    with pytest.raises(ConfigError) as caught:
        load_experiment(variant, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message
    assert isinstance(caught.value, ValueError)
    assert caught.value._render_traceback_() == [f"ConfigError: {message}"]


def variant_file(tmp_path, **changes):
    content = yaml.safe_load((params_folder() / "lite.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_file_of_ones_own_needs_no_code(tmp_path):
    path = variant_file(tmp_path, variant="mine", published={})
    assert load_experiment(path, epochs=2).variant == "mine"


def test_an_unknown_key_of_a_file_is_an_error(tmp_path):
    path = variant_file(tmp_path, recipee={})
    with pytest.raises(ConfigError, match=r"unknown key 'recipee'; did you mean 'recipe'\?"):
        load_experiment(path)


def test_a_key_given_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("variant: a\nvariant: b\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_experiment(str(path))


def test_an_assumed_key_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"'optimizer\.learning_rate'"):
        load_experiment(variant_file(tmp_path, assumed=["optimizer.learning_rate"]))


def test_the_digest_changes_with_what_decides_the_outcome_and_with_nothing_else():
    base = load_experiment("lite")
    same = apply_overrides(base, {"device": "cpu", "fresh": True, "output_root": "elsewhere"})
    assert same.digest == base.digest
    others = [{"seed": 1}, {"dataset": "digits"}, {"lr": 0.2}, {"widths": [16, 32, 65]}]
    digests = {apply_overrides(base, change).digest for change in others}
    assert len(digests | {base.digest}) == 5


def test_the_run_folder_is_named_as_the_design_says():
    experiment = load_experiment("lite", seed=4, output_root="runs")
    assert experiment.folder.as_posix() == f"runs/lite/cifar10-seed4-{experiment.digest[:8]}"


def test_defaults_do_not_enter_the_digest_and_everything_else_does():
    """So that a setting that is new in a later version leaves older experiments what they were."""
    plain = load_experiment("lite")
    assert load_experiment("lite", nesterov=False, min_lr=0).digest == plain.digest
    assert load_experiment("lite", augment=[]).digest == plain.digest
    assert load_experiment("lite", precision="float32", output_root="x").digest == plain.digest
    changed = [{"nesterov": True}, {"augment": "crop"}, {"seed": 1}, {"ema": {"decay": 0.9}}]
    digests = {load_experiment("lite", **change).digest for change in changed}
    assert len(digests | {plain.digest}) == 5


DIGESTS = {
    "adamw": "ead046c6",
    "dropout": "19bd3631",
    "improved_adam": "e8410c50",
    "improved_sgd": "9f911e9e",
    "lite": "9fbf37a8",
    "resnet18": "aef71964",
    "se": "c3bd3452",
    "wide66": "bd86dbb2",
}


@pytest.mark.parametrize("variant", DIGESTS)
def test_the_digest_of_a_published_variant_stays(variant):
    """Recorded runs are found by it: change a default only together with their records."""
    assert load_experiment(variant).digest[:8] == DIGESTS[variant]
