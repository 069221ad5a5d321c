"""The best networks for their size, and what is said of the seeds of each."""

import shutil

import pytest
from reports.recorded import EARLIER_RUNS, row_of, rows_of

from resnetlib import files
from resnetlib.analysis.significance import SeedStatistics, compare_recipes
from resnetlib.evaluation import wilson_interval
from resnetlib.reports.leaderboard import experiments
from resnetlib.reports.ranking import best_for_size, significantly_best, with_statistics
from resnetlib.runs.find import find_runs, reference_runs


@pytest.mark.slow
def test_significantly_best_needs_spread_and_a_clear_lead(runs_of):
    def best(runs):
        table = experiments(runs)
        flags = significantly_best(table)
        return [row["variant"] for row, flag in zip(table, flags, strict=True) if flag]

    lite, se = runs_of("lite", 0.80, 0.81, 0.82), runs_of("se", 0.90, 0.91, 0.92)
    assert best(lite + se) == ["se"]
    close = runs_of("wide66", 0.905, 0.915, 0.93)  # better than `se`, but within the spread
    assert best(lite + se + close) == []
    single = runs_of("adamw", 0.5)
    assert best(lite + se + single) == []
    assert best(lite) == []
    changed = runs_of("lite", 0.98, 0.981, 0.982, epochs=80)  # not an own recipe
    assert best(lite + se + changed) == ["se"]
    easier = runs_of("lite", 0.98, 0.985, 0.99, dataset="digits")
    assert best(lite + se + easier) == ["se"]


def test_front_is_compared_with_the_next_best_up_to_its_size(runs_of):
    runs = runs_of("lite", 0.8, 0.8) + runs_of("se", 0.9, 0.91) + runs_of("dropout", 0.88, 0.89)
    front = best_for_size(experiments(runs + runs_of("wide66", 0.95, 0.96)))
    assert [row["variant"] for row in front] == ["lite", "se", "wide66"]
    assert [row["rival"] for row in front] == [None, "dropout", "se"]
    assert [row["lead"] for row in front[1:]] == pytest.approx([2, 5])
    assert front[0]["lead"] is None and front[0]["comparison"] is None
    assert front[2]["comparison"].p_value == pytest.approx(0.02, abs=0.001)


def test_front_of_single_seeds_has_no_p_value(runs_of):
    front = best_for_size(experiments(runs_of("lite", 0.8) + runs_of("se", 0.9, 0.91)))
    assert front[1]["comparison"].p_value is None
    assert front[1]["lead"] == pytest.approx(10.5)


def test_front_keeps_the_budget(runs_of):
    runs = runs_of("lite", 0.8, 0.81)
    over_budget = runs_of("resnet18", 0.99, 0.99)
    assert best_for_size(experiments(runs + over_budget)) == best_for_size(experiments(runs))


def test_statistics_of_recorded_runs():
    rows = with_statistics(experiments(reference_runs()))
    _, earlier = rows_of(rows, "lite")
    assert earlier["statistics"].accuracies == earlier["accuracies"]
    assert earlier["interval"] == SeedStatistics(earlier["accuracies"]).interval
    assert 0 < earlier["statistics"].sampling_sd < earlier["statistics"].sd
    assert {row["statistics"] for row in rows if not row["runs"]} == {None}
    # There is one recipe of each other variant.
    assert [row["variant"] for row in rows if row["against"]] == ["lite", "lite"]


def test_statistics_of_a_single_seed(runs_of):
    row = row_of(with_statistics(experiments(runs_of("lite", 0.8))), "lite")
    assert row["interval"] == wilson_interval(0.8, 10_000)
    assert row["statistics"].sampling_sd is None


def test_sampling_noise_needs_undamaged_predictions_of_the_last_epoch(tmp_path):
    folders = [shutil.copytree(run.path, tmp_path / run.path.name) for run in EARLIER_RUNS[:3]]

    def statistics_of_three():
        return rows_of(with_statistics(experiments(find_runs(tmp_path))), "lite")[1]["statistics"]

    noise = statistics_of_three()
    (folders[0] / "predictions.npz").write_bytes(b"damaged")
    two = statistics_of_three()
    assert two.accuracies == noise.accuracies
    assert 0 < two.sampling_sd != noise.sampling_sd
    record = files.read_json(folders[0] / "run.json")  # the same with a checksum that agrees
    record["artifacts"]["predictions.npz"] = files.sha256(folders[0] / "predictions.npz")
    files.write_json(folders[0] / "run.json", record)
    assert statistics_of_three() == two
    metrics = files.read_json(folders[1] / "metrics.json") | {"selected_epoch": 3}
    files.write_json(folders[1] / "metrics.json", metrics)
    record = files.read_json(folders[1] / "run.json")
    record["artifacts"]["metrics.json"] = files.sha256(folders[1] / "metrics.json")
    files.write_json(folders[1] / "run.json", record)
    one = statistics_of_three()
    assert len(one.accuracies) == 3 and one.sampling_sd is None


@pytest.mark.slow
def test_recipes_are_compared_with_the_least_changed_one(runs_of):
    runs = runs_of("lite", 0.80, 0.81, 0.82, epochs=20)
    runs += runs_of("lite", 0.90, 0.91, 0.92, epochs=20, lr=0.2)
    runs += runs_of("lite", 0.81, 0.82, 0.83, epochs=20, lr=0.3)
    runs += runs_of("lite", 0.70, 0.71, 0.72, widths=[8, 8, 8])  # another network
    runs += runs_of("lite", 0.99, 0.98, dataset="digits") + runs_of("lite", 0.5, lr=0.4)
    rows = rows_of(with_statistics(experiments(runs)), "lite", "changes")
    better, same = "epochs = 20, optimizer.lr = 0.2", "epochs = 20, optimizer.lr = 0.3"
    recipes = {better: (0.90, 0.91, 0.92), same: (0.81, 0.82, 0.83)}
    expected = compare_recipes((0.80, 0.81, 0.82), recipes)
    assert rows["epochs = 20"]["against"] == "baseline"
    for name in recipes:
        assert rows[name]["against"].p == expected.loc[name, "p"]
    assert rows[better]["against"].significant and not rows[same]["against"].significant
    others = [row["against"] for name, row in rows.items() if "epochs" not in name]
    assert others and set(others) == {None}
