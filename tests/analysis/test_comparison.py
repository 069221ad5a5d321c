"""Comparison of two runs: choosing them, statistics and images."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import history_with, recorded_lite

from resnetlib import analysis, files, load_experiment, load_run, train
from resnetlib.analysis.significance import (
    SeedStatistics,
    compare_recipes,
    format_p_value,
    format_points,
)
from resnetlib.errors import ConfigError, RunError
from resnetlib.plots.leaderboard import overlaid_curves
from resnetlib.runs.find import find_run, reference_runs
from resnetlib.runs.run import RECIPE_CAVEAT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

SMALL = {"dataset": "digits", "depths": [1], "widths": [8], "device": "cpu", "batch_size": 128}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Three finished runs on the digits, a minute apart: two seeds of `lite`, one of `se`."""
    root = tmp_path_factory.mktemp("compared") / "outputs"
    for minute, (variant, seed) in enumerate((("lite", 0), ("se", 0), ("lite", 1))):
        run = train(load_experiment(variant, seed=seed, epochs=2, output_root=root, **SMALL))
        record = run.record | {"finished": f"2026-01-01T00:0{minute}:00+00:00"}
        (run.path / "run.json").write_text(json.dumps(record))
    return root


def copied(folder, target, **changes):
    """A copy of a run folder with changes in its record."""
    shutil.copytree(folder, target)
    record = json.loads((target / "run.json").read_text()) | changes
    (target / "run.json").write_text(json.dumps(record))
    return target


def compare(root, first=None, second=None):
    return analysis.compare_runs(first, second, dataset="digits", output_root=root)


def names(root, first=None, second=None):
    return compare(root, first, second).names


# Choosing ----------------------------------------------------------------------------------------


def test_compare_runs_chooses_what_is_not_given(outputs):
    assert names(outputs) == ("lite seed 1", "se seed 0")  # the newest, then another recipe's
    assert names(outputs, "lite") == ("lite seed 1", "se seed 0")
    assert names(outputs, None, "se") == ("lite seed 1", "se seed 0")
    assert names(outputs, None, "lite") == ("se seed 0", "lite seed 1")


def test_compare_runs_accepts_variants_and_folders(outputs):
    assert names(outputs, "lite", "se") == ("lite seed 1", "se seed 0")
    assert names(outputs, "lite", "lite") == ("lite seed 1", "lite seed 0")
    (folder,) = (outputs / "se").iterdir()
    assert names(outputs, "lite", str(folder)) == ("lite seed 1", "se seed 0")
    assert names(outputs, f"se/{folder.name}", "lite") == ("se seed 0", "lite seed 1")


def test_compare_runs_accepts_a_folder_elsewhere(outputs):
    (folder,) = (outputs / "se").iterdir()
    assert names(outputs / "lite", "lite", str(folder)) == ("lite seed 1", "se seed 0")


def test_compare_runs_finds_recorded_runs(tmp_path):
    pair = analysis.compare_runs("lite", "lite", output_root=tmp_path)
    assert pair.names == ("lite seed 0", "lite seed 1")
    earlier = "batch_size 64, lr 0.1, augment none"  # another recipe, which has these seeds too
    assert {f"lite seed {seed}, {earlier}" for seed in range(5)} < set(pair.runs)
    assert {"lite", f"lite, {earlier}"} < set(pair.recipe_table.index)
    notes = pair.recipe_table["note"]
    assert notes[f"lite, {earlier}"] == f"Not the variant's file: {earlier}."
    assert notes["lite"] == "–"
    assert len(pair.runs) == len(reference_runs())


def test_compare_runs_finds_the_data_set_that_both_have(outputs):
    """Of `lite` the newest run is on the digits, of `laptop` there is none on them."""
    folder = next(str(run.path) for run in reference_runs() if run.record["variant"] == "laptop")
    for chosen in (("lite", "laptop"), ("laptop", "lite"), ("lite", folder), (folder, "lite")):
        pair = analysis.compare_runs(*chosen, output_root=outputs)
        assert {name.split(",")[0] for name in pair.names} == {"laptop seed 0", "lite seed 0"}
        assert len(pair.classes) == 10 and pair.runs[pair.names[0]].record["dataset"] == "cifar10"
    with pytest.raises(ConfigError, match=r"unknown dataset 'digit'; did you mean 'digits'\?"):
        analysis.compare_runs("lite", dataset="digit", output_root=outputs)


def test_compare_runs_refuses_a_folder_on_other_data(outputs):
    folder = str(recorded_lite().path)
    with pytest.raises(ConfigError, match="was trained on cifar10, not on digits"):
        compare(outputs, folder, folder)


def test_compare_runs_takes_another_run_of_the_variant_in_either_order(outputs):
    """Also where the folder is the run that the variant alone would mean."""
    folder = find_run("lite", outputs, dataset="digits", needs="predictions").path
    for chosen in (("lite", folder), (folder, "lite")):
        assert set(compare(outputs, *chosen).names) == {"lite seed 0", "lite seed 1"}
    with pytest.raises(RunError, match="is chosen twice"):
        compare(outputs, folder, folder)


def test_compare_runs_is_not_disturbed_by_damaged_runs(outputs, tmp_path):
    root = shutil.copytree(outputs, tmp_path / "outputs")
    (folder,) = (root / "se").iterdir()
    (copied(folder, root / "se" / "damaged", started="x") / "predictions.npz").write_bytes(b"?")
    (copied(folder, root / "se" / "record", started="y") / "run.json").write_text("[]")
    pair = compare(root, "se", "lite")
    assert set(pair.runs) == {"se seed 0", "lite seed 0", "lite seed 1"}
    assert len(pair.table) == 3


def test_labels_name_what_runs_of_one_seed_change(outputs, tmp_path):
    (plain,) = (outputs / "se").iterdir()
    copied(plain, tmp_path / "a")
    train(load_experiment("se", epochs=2, lr=0.05, output_root=tmp_path, **SMALL))
    (first, second) = (str(folder) for folder in (outputs / "lite").iterdir())
    pair = analysis.compare_runs(first, second, output_root=tmp_path)
    assert {"se seed 0", "se seed 0, lr 0.05"} < set(pair.runs)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        (
            ("liet",),
            ConfigError,
            "no finished run of 'liet' with .* on digits; did you mean 'lite'",
        ),
        (("dropout",), ConfigError, "no finished run of 'dropout' .* with one: lite, se"),
        (
            ("se", "se"),
            ConfigError,
            r"no finished run of 'se' .* other than .*digits-seed0-\w+\. Variants with one: lite$",
        ),
        (("se", "FOLDER"), RunError, "se/digits-seed0-.* is chosen twice; choose another"),
    ],
)
def test_compare_runs_names_what_exists(outputs, chosen, error, message):
    (folder,) = (outputs / "se").iterdir()
    with pytest.raises(error, match=message) as raised:
        compare(outputs, *(str(folder) if name == "FOLDER" else name for name in chosen))
    assert "\n" not in str(raised.value)


def test_compare_runs_needs_two_runs_of_one_test_set(outputs):
    for chosen in ((None,), ("se",)):
        with pytest.raises(RunError, match=r"se/digits-.* needs another finished run on digits"):
            compare(outputs / "se", *chosen)


def test_compare_runs_refuses_different_test_sets(outputs):
    (folder,) = (outputs / "se").iterdir()
    elsewhere = str(reference_runs()[0].path)
    with pytest.raises(RunError, match=r"different test sets \(450 and 10,000 images\)"):
        analysis.compare_runs(str(folder), elsewhere, output_root=outputs)


def test_compare_runs_refuses_an_unfinished_run(outputs, tmp_path):
    (folder,) = (outputs / "se").iterdir()
    broken = copied(folder, tmp_path / "broken", status="interrupted")
    with pytest.raises(RunError, match="broken is not finished: its status is 'interrupted'"):
        compare(outputs, "lite", str(broken))


# Statistics and images ---------------------------------------------------------------------------


def test_only_correct_gives_images_and_both_predictions(outputs, digits):
    pair = compare(outputs, "lite", "se")
    found = 0
    for name, other in (pair.names, pair.names[::-1]):
        images, captions, title = pair.only_correct(name)
        right, wrong = (pair.runs[label].evaluation for label in (name, other))
        only_right = np.flatnonzero(right.correct & ~wrong.correct)
        assert len(images) == len(captions) == min(16, len(only_right))
        assert f"✓ {name} correct, ✗ {other} wrong: {len(images)} of {len(only_right)}" in title
        found += len(only_right)
        confidences = torch.minimum(right.confidences, wrong.confidences).numpy()
        surest = sorted(confidences[only_right].tolist(), reverse=True)
        for image, caption, confidence in zip(images, captions, surest[:16], strict=True):
            (index,) = [i for i in only_right if (digits.test[0][i] == image).all()]
            assert confidences[index] == confidence
            true, correct, mistaken = caption.splitlines()
            assert true == str(int(right.labels[index]))
            assert correct.startswith(f"✓ {int(right.predictions[index])} ")
            assert f"✓ {true} " in correct
            assert mistaken.startswith(f"✗ {int(wrong.predictions[index])} ")
    assert found == pair.comparison.only_first + pair.comparison.only_second > 0


def test_counts_are_the_table_of_mcnemars_test(outputs):
    pair = compare(outputs, "lite", "se")
    first, second = (run.evaluation.correct for run in pair.selected)
    assert pair.counts.loc["lite seed 1 correct", "se seed 0 wrong"] == (first & ~second).sum()
    assert pair.counts.loc["lite seed 1 wrong", "se seed 0 correct"] == (~first & second).sum()
    assert pair.counts.to_numpy().sum() == 450


def test_verdict_of_two_seeds_names_the_common_recipe(tmp_path):
    pair = analysis.compare_runs("lite", "lite", output_root=tmp_path)
    first, second = pair.names
    assert f"{second} is better than {first} by 0.82 points" in pair.verdict
    assert "Both have the same recipe" in pair.verdict
    of_lite = [run for run in reference_runs() if run.record["variant"] == "lite"]
    assert f"(n = {sum(run.has_own_recipe for run in of_lite)})" in pair.recipes


def test_verdict_says_that_a_run_was_selected_on_the_test_set(tiny, outputs):
    chosen = train(tiny(select="best_test", epochs=2, seed=4))
    pair = compare(outputs, str(chosen.path), "se")
    assert "was selected on the test set; its accuracy is optimistically biased" in pair.verdict
    assert "optimistically" not in compare(outputs, "lite", "se").verdict
    notes = pair.table["note"]
    assert [("Selected on the test set" in note) for note in notes].count(True) == 1
    # Recipes are compared by their last epochs.
    assert not any("Selected" in note for note in pair.recipe_table["note"])


def test_histories_of_two_seeds_have_different_lines(tmp_path):
    axes = overlaid_curves(analysis.compare_runs("lite", "lite", output_root=tmp_path).histories)
    lines = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(set(lines)) == len(axes.get_legend().get_texts()) == 2
    plt.close(axes.figure)


def test_recipes_are_compared_over_their_seeds(outputs):
    pair = compare(outputs, "lite", "se")
    assert "Both have the same recipe" not in pair.verdict
    assert pair.recipes.startswith("The recipes cannot be compared: only one seed of se")
    assert "lite: " in pair.recipes and "(n = 2)" in pair.recipes


def test_table_compares_every_run_with_the_first(outputs):
    pair = compare(outputs, "se", "lite")
    assert set(pair.differences.index) == {"lite seed 0", "lite seed 1"}
    table = pair.table
    assert set(table.index) == {"se seed 0", "lite seed 0", "lite seed 1"}
    assert table.loc["se seed 0", "parameters"] == pair.runs["se seed 0"].metrics["parameters"]
    assert table.loc["se seed 0", "p"] == "–"
    significant = pair.differences.loc["lite seed 0", "significant"]
    result = "distinguishable" if significant else "not distinguishable"
    assert table.loc["lite seed 0", "result"] == result
    assert all(note.startswith("Not the variant's file: depths [1]") for note in table["note"])
    difference = pair.differences.loc["lite seed 0", "difference"]
    accuracies = [pair.runs[name].evaluation.accuracy for name in ("lite seed 0", "se seed 0")]
    assert difference == pytest.approx(accuracies[0] - accuracies[1])
    assert table.loc["lite seed 0", "minus the first (points)"] == format_points(difference)


def with_accuracy(folder, target, seed, accuracy, **overrides):
    """A copy of a run on the digits as if it had another seed, recipe and test accuracy."""
    shutil.copytree(folder, target)
    variant = load_run(folder).record["variant"]
    experiment = load_experiment(variant, seed=seed, epochs=2, **SMALL | overrides)
    files.write_text(target / "experiment.yaml", experiment.to_yaml())
    files.write_text(target / "history.csv", history_with(load_run(folder), accuracy))
    metrics = files.read_json(target / "metrics.json") | {"test_accuracy": accuracy}
    files.write_json(target / "metrics.json", metrics)
    record = files.read_json(target / "run.json")
    for name in ("experiment.yaml", "metrics.json", "history.csv"):
        record["artifacts"][name] = files.sha256(target / name)
    own = {"seed": seed, "experiment": experiment.digest, "overrides": experiment.overrides}
    files.write_json(target / "run.json", record | own | {"started": target.name})


def test_recipe_table_compares_recipes_over_their_seeds(outputs, tmp_path):
    (se,), (lite, _) = (outputs / "se").iterdir(), (outputs / "lite").iterdir()
    accuracies = {"lr 0.2": (0.90, 0.91, 0.92), "lr 0.3": (0.81, 0.82, 0.84)}
    for seed, accuracy in enumerate((0.80, 0.81, 0.83)):
        with_accuracy(lite, tmp_path / f"lite{seed}", seed, accuracy)
        with_accuracy(se, tmp_path / f"se{seed}", seed, accuracy + 0.08)
        for name, values in accuracies.items():
            target = tmp_path / f"{name[-1]}-{seed}"
            with_accuracy(lite, target, seed, values[seed], lr=float(name[3:]))
    pair = compare(tmp_path, str(tmp_path / "lite0"), str(tmp_path / "se0"))
    table = pair.recipe_table
    assert list(table.index[:2]) == ["lite", "se"]
    table = table.sort_index()
    assert list(table.index) == ["lite", "lite, lr 0.2", "lite, lr 0.3", "se"]
    assert table["test"].tolist() == ["–", "Dunnett", "Dunnett", "Welch"]
    expected = compare_recipes((0.80, 0.81, 0.83), {f"lite, {k}": v for k, v in accuracies.items()})
    assert table.loc[expected.index, "p"].tolist() == list(map(format_p_value, expected["p"]))
    significant = ["–", "distinguishable", "not distinguishable", "distinguishable"]
    assert table["result"].tolist() == significant
    assert table.loc["lite", "n"] == 3
    assert table.loc["lite", "mean (%)"] == pytest.approx(100 * 2.44 / 3)
    assert table.loc["lite", "sampling sd"] == 0  # the copies have the same predictions
    assert "lite: standard deviation over seeds 1.53 points: sampling noise" in pair.recipes
    low, high = SeedStatistics((0.80, 0.81, 0.83)).interval
    assert table.loc["lite", "95 % interval"] == f"{100 * low:.2f} to {100 * high:.2f}"


def test_recipe_table_without_a_second_seed_has_no_result(outputs):
    table = compare(outputs, "lite", "se").recipe_table
    assert table.loc["se", ["n", "95 % interval"]].tolist() == [1, "–"]
    assert table["sd"].isna().tolist() == [False, True]
    assert "result" not in table


def test_recipe_chosen_on_the_test_set_is_named(tmp_path):
    pair = analysis.compare_runs("lite", "laptop94", output_root=tmp_path)
    for text in (pair.verdict, pair.recipes):
        assert f"laptop94 seed 0: {RECIPE_CAVEAT}" in text
        assert text.count(RECIPE_CAVEAT) == 1
    for table in (pair.table, pair.recipe_table):
        noted = set(table.index[table["note"] == RECIPE_CAVEAT])
        assert noted == {name for name in table.index if name.startswith("laptop94")}
    assert RECIPE_CAVEAT in pair.selected[1].headline
    assert RECIPE_CAVEAT not in pair.selected[0].headline
