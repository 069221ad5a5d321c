"""Which runs a command line means."""

from pathlib import Path

import numpy as np
import pytest

from resnetlib.config import parse_value
from resnetlib.errors import ConfigError
from resnetlib.sweep.grid import alternatives, expand_grid
from resnetlib.sweep.task import Task, format_value


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0..4", [0, 1, 2, 3, 4]),
        ("0..2,7", [0, 1, 2, 7]),
        ("-1..1", [-1, 0, 1]),
        ("0.05,0.1", [0.05, 0.1]),
        ("1e-3", [1e-3]),
        ("[2,2,2],[3,3,3]", [[2, 2, 2], [3, 3, 3]]),
        ("crop,flip", ["crop", "flip"]),
        ("[crop,flip],[]", [["crop", "flip"], []]),
        ("{name: adam, lr: 0.1},sgd", [{"name": "adam", "lr": 0.1}, "sgd"]),
        ("true,false", [True, False]),
    ],
)
def test_alternatives_reads_values(text, values):
    assert alternatives(text) == values


@pytest.mark.parametrize(
    "value",
    [3, 1e-05, 0.1, True, None, "adam", "3", "true", "a,b", [2, 2], {"name": "adam"}, "größe"],
)
def test_format_value_is_read_back(value):
    read = parse_value(format_value(value))
    assert read == value and type(read) is type(value)


def test_format_value_takes_numbers_of_numpy():
    assert [format_value(value) for value in np.linspace(0.1, 0.3, 3)] == ["0.1", "0.2", "0.3"]


def test_grid_is_the_product_of_variants_and_alternatives():
    tasks = expand_grid(["lite", "laptop"], [("seed", "0..1"), ("lr", "0.05,0.1")])
    found = [(t.variant, t.experiment.seed, t.experiment.recipe.optimizer.lr) for t in tasks]
    assert found == [
        (variant, seed, lr)
        for seed in (0, 1)
        for lr in (0.05, 0.1)
        for variant in ("lite", "laptop")
    ]
    assert tasks[0].name == "lite, seed 0, lr 0.05"
    assert tasks[0].words() == ["lite", "-p", "seed", "0", "-p", "lr", "0.05"]
    assert tasks[0].words(threads=1)[-3:] == ["-p", "threads", "1"]


def test_settings_of_the_pool_replace_overrides():
    task = Task("lite", {"execution.threads": 4, "execution.stop_after": "5m", "seed": 1})
    words = task.words(threads=1, stop_after="9s")
    assert words == ["lite", "-p", "seed", "1", "-p", "threads", "1", "-p", "stop_after", "9s"]


def test_folder_may_look_like_a_number():
    (task,) = expand_grid(["lite"], [("output_root", "2024")])
    assert task.experiment.execution.output_root == Path("2024")


def test_log_of_a_team_is_beside_the_others(tmp_path):
    logs = {
        Task(variant, {"output_root": str(tmp_path)}).log.parent
        for variant in ("lite", "class/yifei")
    }
    assert logs == {tmp_path / "logs"}


@pytest.mark.parametrize(
    ("variants", "parameters", "message"),
    [
        (["lite"], [("depths", "2,2,2")], "2 appears twice; commas separate alternatives"),
        (["lite"], [("seed", "0..2,1")], "1 appears twice"),
        (["lite"], [("seed", "4..0")], "give a range"),
        (["lite"], [("seed", f"{'9' * 5000}..{'9' * 5000}")], "seed = '999"),
        (["lite"], [("seed", "0..5000"), ("lr", "0.1,0.2")], "10,002 runs are more than 10,000"),
        (["lite"], [("lr", "0.1,,0.2")], "an alternative is empty"),
        (["lite"], [("fresh", "true")], "a sweep resumes its runs"),
        (["lite"], [("variant", "se")], "variants are the first arguments"),
        (["lite"], [("seed", "1"), ("seed", "2")], "-p seed is specified twice"),
        (["lite", "lite"], [("seed", "1")], "are the same run"),
        (["lite"], [("budget", "100000,200000")], "are the same run"),
        (["lite", "liet"], [], "unknown variant 'liet'; did you mean 'lite'"),
        (["lite"], [("epoch", "1,2")], "unknown parameter 'epoch'"),
        (["resnet18"], [("budget", "5000000")], "exceed the budget"),
    ],
)
def test_mistake_is_refused_before_any_run(variants, parameters, message):
    with pytest.raises(ConfigError, match=message):
        expand_grid(variants, parameters)


def test_note_of_many_runs_is_printed_once(capsys):
    expand_grid(["lite"], [("seed", "0..3"), ("optimizer", "adam")])
    assert capsys.readouterr().err.count("optimizer adam: lr = 0.001") == 1
