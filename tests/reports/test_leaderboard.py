"""The leaderboard page and the results table of the README."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from conftest import PROJECT, TINY, copy_recorded, history_with, recorded_lite

from resnetlib import files, list_variants, load_experiment, train
from resnetlib.analysis.significance import SeedStatistics, compare_recipes, compare_seeds
from resnetlib.cli import main
from resnetlib.errors import RunError
from resnetlib.evaluation import wilson_interval
from resnetlib.progress import duration
from resnetlib.reports.leaderboard import (
    BEGIN,
    END,
    experiments,
    latex_table,
    markdown_table,
    results_table,
    text_table,
    with_table,
)
from resnetlib.reports.page import write_index
from resnetlib.reports.ranking import best_for_size, significantly_best, with_statistics
from resnetlib.runs.find import find_runs, reference_runs, split_unreadable
from resnetlib.runs.run import RECIPE_CAVEAT, load_run

LITE = PROJECT / "outputs" / "reference" / "lite"
LITE_RUNS = [run for run in reference_runs() if run.record["variant"] == "lite"]
EARLIER_RUNS = [run for run in LITE_RUNS if not run.has_own_recipe]  # without augmentation
LITE_RUNS = [run for run in LITE_RUNS if run.has_own_recipe]
LITE_ACCURACIES = [100 * run.metrics["test_accuracy"] for run in LITE_RUNS]
LITE_MEAN = statistics.mean(LITE_ACCURACIES)
LITE_RESULT = f"{LITE_MEAN:.2f} ± {statistics.stdev(LITE_ACCURACIES):.2f}"


def copied(run, folder, variant=None, *, accuracy=None, record=None, **overrides):
    """A copy of a run folder that says another variant, seed, recipe, accuracy or record."""
    shutil.copytree(
        run.path,
        folder,
        ignore=shutil.ignore_patterns(
            "figures", "*.npz", "*.safetensors", "*.ipynb", "report.html"
        ),
    )
    changed = {"seed": run.experiment.seed, "dataset": run.experiment.dataset} | overrides
    experiment = load_experiment(variant or run.experiment.variant, **changed)
    files.write_text(folder / "experiment.yaml", experiment.to_yaml())
    if accuracy is not None:
        files.write_json(folder / "metrics.json", run.metrics | {"test_accuracy": accuracy})
        files.write_text(folder / "history.csv", history_with(run, accuracy))
    content = run.record | {
        "variant": experiment.variant,
        "dataset": experiment.dataset,
        "seed": experiment.seed,
        "experiment": experiment.digest,
    }
    content["artifacts"] = {
        name: files.sha256(folder / name)
        for name in content["artifacts"]
        if (folder / name).is_file()
    }
    files.write_json(folder / "run.json", content | (record or {}))
    return load_run(folder)


@pytest.fixture
def lite():
    return recorded_lite()


@pytest.fixture
def runs_of(lite, tmp_path):
    """Makes runs of a variant with these accuracies, seeds 0, 1, …"""

    def make(variant, *accuracies, **overrides):
        number = len(list(tmp_path.iterdir()))
        return [
            copied(
                lite,
                tmp_path / f"{number}-{variant}-{seed}",
                variant,
                accuracy=accuracy,
                **{"seed": seed} | overrides,
            )
            for seed, accuracy in enumerate(accuracies)
        ]

    return make


def rows_of(table, variant, key=None):
    """The rows of a variant; by the value of this key where it is given."""
    rows = [row for row in table if row["variant"] == variant]
    return {row[key]: row for row in rows} if key else rows


def row_of(table, variant):
    (row,) = rows_of(table, variant)
    return row


# Tables of the README and the terminal ----------------------------------------------------------


def test_readme_table_equals_the_recorded_runs():
    readme = (PROJECT / "README.md").read_text()
    assert readme == with_table(readme, markdown_table(results_table(reference_runs())))


def test_results_count_finished_seeds_of_the_own_recipe(runs_of):
    runs = runs_of("lite", 0.79, 0.81)
    runs += runs_of("lite", 0.99, epochs=3)
    (unfinished,) = runs_of("lite", 0.1, seed=3)
    files.write_json(unfinished.path / "run.json", unfinished.record | {"status": "interrupted"})
    (damaged,) = runs_of("lite", 0.1, seed=4)
    (damaged.path / "metrics.json").write_text("{")
    table = results_table([*runs, load_run(unfinished.path), load_run(damaged.path)])
    row = row_of(table, "lite")
    assert row["runs"] == 2
    assert row["reproduced"] == pytest.approx(80)
    assert row["spread"] == pytest.approx(2**0.5)
    machine = LITE_RUNS[0].machine
    minutes = LITE_RUNS[0].metrics["train_seconds"] / 60
    cells = f"| 79.87 | 80.00 ± 1.41 | 2 | {minutes:.0f}, {machine}, torch"
    assert cells in markdown_table(table)
    assert re.search(r"\nlite +78,042 +12.5 M +40 +79.87  80.00 ± 1.41 +2\n", text_table(table))


def test_results_equal_the_rows_of_the_page(runs_of):
    runs = runs_of("lite", 0.79, 0.81) + runs_of("lite", 0.9, dataset="digits")
    runs += runs_of("se", 0.9, epochs=3)
    own = [row for row in experiments(runs) if row["dataset"] == "cifar10" and not row["changes"]]
    for row in own:
        del row["changes"], row["changed"], row["folders"]
    assert results_table(runs) == own


def test_single_run_has_no_spread(runs_of):
    assert "| 79.87 | 80.00 | 1 |" in markdown_table(results_table(runs_of("lite", 0.8)))


def test_untrained_variant_is_only_in_the_terminal_table(runs_of):
    table = results_table(runs_of("lite", 0.8))
    assert "dropout" not in markdown_table(table)
    assert re.search(r"\ndropout +4,700,682 +798.7 M +100 +– +– +–\n", text_table(table))


def test_results_read_only_record_and_metrics(runs_of):
    (run,) = runs_of("lite", 0.8)
    for path in run.path.iterdir():
        if path.name not in ("run.json", "metrics.json"):
            path.unlink()
    assert row_of(results_table([run]), "lite")["runs"] == 1


LIST = """
import sys
sys.modules.update(dict.fromkeys(["torch", "pandas", "matplotlib", "scipy"]))  # not importable
from resnetlib.cli import main
main(["list"])
"""


def test_list_needs_no_torch_pandas_or_matplotlib():
    listed = subprocess.run(
        [sys.executable, "-c", LIST], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(rf"\nlite +78,042 .* {LITE_RESULT} +{len(LITE_ACCURACIES)}\n", listed)


def test_with_table_needs_both_markers():
    with pytest.raises(ValueError, match="results"):
        with_table("no markers", "table")
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"


# Finding runs -----------------------------------------------------------------------------------


def test_find_runs_counts_copies_of_a_run_once(lite, tmp_path):
    first = copied(lite, tmp_path / "mine" / "lite" / "run")
    copy = tmp_path / "from" / "a" / "friend" / "run"
    shutil.copytree(first.path, copy)
    again = copied(lite, tmp_path / "hers" / "run", record={"started": "2027-01-01T00:00:00+00:00"})
    found = find_runs(tmp_path)
    assert [run.path for run in found] == [copy, again.path]
    (first.path / "report.html").write_text("the copy with a report is preferred")
    found = find_runs(tmp_path)
    assert {run.path for run in found} == {first.path, again.path}

    row = row_of(experiments(found), "lite")
    assert (row["seeds"], row["runs"]) == (1, 2)  # one seed run by two people
    assert find_runs(tmp_path / "nothing here") == []


def _no_json(folder):
    (folder / "run.json").write_text("{")


def _no_mapping(folder):
    (folder / "run.json").write_text("[]")


def _no_status(folder):
    content = json.loads((folder / "run.json").read_text())
    files.write_json(folder / "run.json", {k: v for k, v in content.items() if k != "status"})


def _record_with(**changes):
    def damage(folder):
        content = json.loads((folder / "run.json").read_text())
        files.write_json(folder / "run.json", content | changes)

    return damage


def _changed_metrics(folder):
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace("0.8", "0.9"))


def _no_history(folder):
    (folder / "history.csv").unlink()


def _unknown_key(folder):
    text = (folder / "experiment.yaml").read_text() + "colour: green\n"
    (folder / "experiment.yaml").write_text(text)
    content = json.loads((folder / "run.json").read_text())
    content["artifacts"]["experiment.yaml"] = files.sha256(folder / "experiment.yaml")
    files.write_json(folder / "run.json", content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_json, "not JSON"),
        (_no_mapping, "not a JSON object"),
        (_no_status, "status"),
        (_record_with(finished=None), "run.json is damaged: finished = None: "),
        (_record_with(git=[1]), "run.json is damaged: git = [1]: "),
        (_record_with(inexact_resumes=[1]), "run.json is damaged: inexact_resumes.0 = 1: "),
        (_changed_metrics, "metrics.json is damaged"),
        (_no_history, "history.csv is missing"),
        (_unknown_key, "colour"),
    ],
)
def test_damaged_run_is_named_and_others_are_read(damage, message, lite, tmp_path):
    good, bad = copied(lite, tmp_path / "good"), copied(lite, tmp_path / "bad", seed=1)
    damage(bad.path)
    readable, damaged = split_unreadable(find_runs(tmp_path))
    assert [run.path for run in readable] == [good.path]
    assert list(damaged) == [bad.path]
    assert message in damaged[bad.path]
    assert "\n" not in damaged[bad.path]


# Rows of the page -------------------------------------------------------------------------------


def test_runs_with_changed_settings_have_their_own_row(runs_of):
    runs = runs_of("lite", 0.80, 0.82) + runs_of("lite", 0.85, 0.87, epochs=80, augment="crop,flip")
    table = experiments(runs)
    lite = rows_of(table, "lite", "changes")
    assert list(lite) == ["", "epochs = 80, augment = [crop, flip]"]
    assert [row["reproduced"] for row in lite.values()] == pytest.approx([81, 86])
    published = [row["published"] for row in lite.values()]
    assert published == [pytest.approx(79.87), None]  # it is for the own recipe only
    assert {row["variant"] for row in table} == set(list_variants())


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ({"clip": "none"}, "clip = none"),
        ({"lookahead": "none"}, "lookahead = none"),
        ({"clip": {"by": "norm", "limit": 1}}, "clip.by = norm, clip.limit = 1.0"),
    ],
    ids=str,
)
def test_part_that_is_switched_off_is_a_change(runs_of, overrides, changes):
    runs = runs_of("se", 0.9, **overrides)
    of_se = rows_of(experiments(runs), "se", "changes")
    assert {key: row["runs"] for key, row in of_se.items()} == {"": 0, changes: 1}
    assert row_of(results_table(runs), "se")["runs"] == 0


def test_data_sets_have_separate_rows(runs_of):
    cifar10, digits = runs_of("lite", 0.80, 0.82), runs_of("lite", 0.98, 0.99, dataset="digits")
    table = experiments(cifar10 + digits)
    lite = rows_of(table, "lite", "dataset")
    assert lite["cifar10"]["reproduced"] == pytest.approx(81)
    assert lite["digits"]["reproduced"] == pytest.approx(98.5)
    assert lite["cifar10"]["published"] and lite["digits"]["published"] is None
    assert results_table(cifar10 + digits) == results_table(cifar10)
    assert best_for_size(table) == best_for_size(experiments(cifar10))


def test_repeated_seed_counts_once(runs_of):
    runs = runs_of("lite", 0.80, 0.82) + runs_of("lite", 0.82)
    row = row_of(experiments(runs), "lite")
    assert (row["seeds"], row["runs"]) == (2, 3)
    assert row["accuracies"] == pytest.approx((0.81, 0.82))


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


# Statistics -------------------------------------------------------------------------------------


def test_statistics_of_recorded_runs():
    rows = with_statistics(experiments(reference_runs()))
    _, earlier = rows_of(rows, "lite")
    assert earlier["statistics"].accuracies == earlier["accuracies"]
    assert earlier["interval"] == SeedStatistics(earlier["accuracies"]).interval
    assert 0 < earlier["statistics"].sampling_sd < earlier["statistics"].sd
    assert row_of(rows, "dropout")["statistics"] is None
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


def test_recipe_chosen_on_the_test_set_is_marked_in_every_table():
    runs = reference_runs()
    rows = with_statistics(experiments(runs))
    assert [row["variant"] for row in rows if row["recipe_selected_on_test"]] == ["laptop94"]
    listed, readme = text_table(results_table(runs)), markdown_table(results_table(runs))
    assert "\nlaptop94 * " in listed and listed.endswith(f"\n* {RECIPE_CAVEAT}")
    assert "| `laptop94` † |" in readme and readme.endswith(f"\n† {RECIPE_CAVEAT}")
    latex = latex_table(rows)
    assert r"laptop94 $\dagger$ &" in latex
    assert rf"{{\footnotesize $\dagger$ {RECIPE_CAVEAT}}} \\" in latex
    others = [run for run in runs if run.record["variant"] != "laptop94"]
    table = latex_table(with_statistics(experiments(others)))
    assert RECIPE_CAVEAT not in table + markdown_table(results_table(others))


def test_recipe_derived_from_one_chosen_on_the_test_set_is_marked(runs_of):
    (row,) = rows_of(experiments(runs_of("laptop94", 0.9, epochs=3)), "laptop94")[1:]
    assert row["changes"] == "epochs = 3" and row["recipe_selected_on_test"]


def test_latex_table_has_n_mean_spread_and_interval(runs_of):
    runs = runs_of("improved_sgd", 0.80, 0.81, 0.82, augment="crop,flip")
    low, high = SeedStatistics((0.80, 0.81, 0.82)).interval
    table = latex_table(with_statistics(experiments(runs)))
    assert (
        r"improved\_sgd (augment = [crop, flip]) & cifar10 & 4,903,242 & 253.4 & 40 & -- & 3 & "
        f"81.00 & 1.00 & -- & {100 * low:.2f}--{100 * high:.2f} \\\\\n"
    ) in table
    body = [line for line in table.splitlines() if not line.startswith("%")]
    assert body[0].startswith(r"\begin{tabular}") and body[-1] == r"\end{tabular}"
    assert table.isascii()


def test_report_command_prints_latex(runs_of, tmp_path):
    runs_of("lite", 0.80, 0.82)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--latex"])
    assert done.exit_code == 0
    assert "lite & cifar10 & 78,042" in done.stdout
    assert "left out: " in done.stderr and "broken" in done.stderr
    assert not (tmp_path / "index.html").exists()
    empty = CliRunner().invoke(main, ["report", str(tmp_path / "broken"), "--latex"])
    assert empty.exit_code == 1
    assert "Error: a table needs a finished run\n" in empty.stderr


# The page ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_names_the_best_network_its_lead_and_p(runs_of, tmp_path, open_page):
    runs_of("lite", 0.80, 0.81, 0.82)
    runs_of("se", 0.90, 0.91, 0.92)
    runs_of("wide66", 0.905, 0.915, 0.93)
    page = open_page(write_index(tmp_path))
    assert (
        "wide66 is the most accurate of 3 networks measured on CIFAR-10 within 5,000,000 "
        "parameters: 91.67 ± 1.26 % (n = 3)." in page.locator("p.answer").inner_text()
    )
    front = [row.split("\t") for row in page.locator("table.front tbody tr").all_inner_texts()]
    assert front[0][0] == "lite" and front[0][4:] == ["–", "–", "–", "–"]
    assert front[1] == [
        *["se", "4,697,742", "91.00 ± 1.00", "3"],
        *["10.00", "lite", "< 0.001", "distinguishable"],
    ]
    assert front[2][4:6] == ["0.67", "se"]
    comparison = compare_seeds((0.905, 0.915, 0.93), (0.90, 0.91, 0.92), ("wide66", "se"))
    more = f"to settle it: {comparison.more_seeds} more"
    assert front[2][7].split("\n") == ["not distinguishable", more]


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_marks_a_recipe_chosen_on_the_test_set(runs_of, tmp_path, open_page):
    runs_of("lite", 0.80, 0.81)
    runs_of("laptop94", 0.93, 0.94)
    runs_of("laptop94", 0.94, 0.95, lr=0.2)
    page = open_page(write_index(tmp_path))
    assert RECIPE_CAVEAT in page.locator("p.answer").inner_text()
    assert page.locator("table.front tbody th").first.inner_text() == "lite"
    assert "laptop94 †" in page.locator("table.front").inner_text()
    assert f"† {RECIPE_CAVEAT}" in page.locator("ul.notes").inner_text()
    changed = page.locator("#experiments tr", has_text="optimizer.lr = 0.2").inner_text()
    p_value = compare_recipes((0.93, 0.94), {"": (0.94, 0.95)}).loc["", "p"]
    assert f"+1.00\np = {p_value:.3f}, not distinguishable" in changed
    assert "laptop94 †" in changed


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_without_measured_networks_says_so(runs_of, tmp_path, open_page):
    empty = open_page(write_index(tmp_path))
    assert "has been measured on CIFAR-10 yet" in empty.locator("p.answer").inner_text()
    runs_of("lite", 0.8)
    one = open_page(write_index(tmp_path))
    assert "Only lite has been measured" in one.locator("p.answer").inner_text()
    assert one.locator("table.front").count() == 0
    row = one.locator("#experiments tr", has_text="seed 0").inner_text()
    low, high = wilson_interval(0.8, 10_000)
    assert f"80.00\n95 %: {100 * low:.2f}–{100 * high:.2f}" in row


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Recorded runs of CIFAR-10, real ones of the digits, copies, an unfinished one, damage."""
    root = tmp_path_factory.mktemp("outputs")
    copy_recorded(LITE, root / "reference" / "lite")
    for seed in (0, 1):
        train(load_experiment("lite", **TINY, epochs=1, seed=seed, output_root=root))
    lite = recorded_lite()
    stopped = {"status": "interrupted", "artifacts": {}}
    copied(lite, root / "stopped here" / "run", seed=9, record=stopped)
    copy_recorded(LITE, root / "a friend's" / "lite")
    title = copied(lite, root / "titled", epochs=41)
    text = (title.path / "experiment.yaml").read_text()
    text = text.replace("Lite (small) ResNet", "<script>alert(1)</script>")
    files.write_text(title.path / "experiment.yaml", text)
    record = title.record | {"status": "failed", "artifacts": {}}
    files.write_json(title.path / "run.json", record)
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    (root / "begun").mkdir()
    (root / "begun" / "experiment.yaml").write_text("variant: lite")
    write_index(root)
    return root


@pytest.fixture
def page(root, open_page):
    return open_page(root / "index.html")


def column(page, number, only_visible=False):
    rows = "#experiments tbody tr" + (":visible" if only_visible else "")
    cells = page.locator(f"{rows} > :nth-child({number})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def head(page, name):
    return page.locator("#experiments thead th", has_text=re.compile(rf"^\s*{name}"))


def sideways(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_page_lists_every_experiment(page):
    names = page.locator("#experiments tbody th code").all_inner_texts()
    assert set(names) == set(list_variants())
    row = page.locator("#experiments tr", has_text=LITE_RESULT).inner_text()
    for text in (
        "78,042",
        "12.5",
        "79.87",
        f"{LITE_MEAN - 79.87:+.2f}",
        duration(statistics.mean(run.metrics["train_seconds"] for run in LITE_RUNS)),
        LITE_RUNS[0].machine.partition(",")[0],
        "seed 9",
        "interrupted",
    ):
        assert text in row
    assert "epochs = 1" in page.locator("tr[data-dataset=digits]").inner_text()


def test_click_sorts_by_number_and_missing_last(page):
    button = head(page, "parameters").get_by_role("button")
    button.click()
    ascending = [int(text.replace(",", "")) for text in column(page, 3)]
    assert ascending == sorted(ascending)
    assert head(page, "parameters").get_attribute("aria-sort") == "ascending"
    button.click()
    descending = [int(text.replace(",", "")) for text in column(page, 3)]
    assert descending == ascending[::-1]
    assert head(page, "parameters").get_attribute("aria-sort") == "descending"
    place = head(page, "published").evaluate("cell => cell.cellIndex + 1")
    for _ in range(2):
        head(page, "published").get_by_role("button").click()
        assert column(page, place)[-1] == "–"
    published = [float(text) for text in column(page, place) if text != "–"]
    assert published == sorted(published, reverse=True)
    assert head(page, "parameters").get_attribute("aria-sort") is None


def test_keyboard_sorts(page):
    page.locator("#dataset").focus()
    for _ in range(3):  # the box that scrolls, then the first two heads
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert head(page, "data set").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert column(page, 2)[0] == "digits"


def test_text_and_data_set_filter_rows(page):
    everything = len(column(page, 1))
    page.locator("#find").fill("WIDE66")
    assert column(page, 1, only_visible=True) == ["wide66"]
    assert page.locator("#count").inner_text() == f"1 of {everything} experiments"
    page.locator("#find").fill("")
    page.locator("#dataset").select_option("digits")
    assert column(page, 2, only_visible=True) == ["digits"]
    page.locator("#dataset").select_option("")
    assert len(column(page, 1, only_visible=True)) == everything


def test_page_without_javascript_has_no_dead_controls(root, open_page):
    page = open_page(root / "index.html", java_script_enabled=False)
    assert LITE_RESULT in page.locator("#experiments").inner_text()
    assert page.locator("#find").is_hidden()
    assert page.locator("button").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(scheme, root, open_page):
    page = open_page(root / "index.html", width=390, height=844, color_scheme=scheme)
    assert sideways(page) <= 0
    box = page.get_by_role("region", name="All experiments")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")


def test_figures_are_on_white_in_dark_mode(root, open_page):
    page = open_page(root / "index.html", color_scheme="dark")
    color = "element => getComputedStyle(element).backgroundColor"
    assert page.locator("body").evaluate(color) == "rgb(18, 22, 28)"
    assert page.locator(".card").first.evaluate(color) == "rgb(255, 255, 255)"


def test_figures_are_drawn_and_described(page, root):
    images = page.locator("img")
    assert images.count() == 5
    for image in images.all():
        assert image.evaluate("image => image.naturalWidth") > 300
    alts = [image.get_attribute("alt") for image in images.all()]
    assert len(set(alts)) == 5
    assert all("“All experiments”" in alt for alt in alts)
    assert "“Table of the teams”" in alts[-1]
    assert all(len(alt) > 100 for alt in alts)
    assert (root / "index.html").stat().st_size < 3_000_000


@pytest.mark.slow
def test_links_survive_a_move(root, tmp_path):
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    (moved / "reference/lite/cifar10-seed1-652727f4/report.html").write_text("report")
    html = (moved / "index.html").read_text()
    links = re.findall(r'href="(?!https://github.com/)([^"]+)"', html)
    assert len(links) >= 6
    assert all(link.startswith("./") for link in links)
    assert "./stopped%20here/run" in links
    assert str(PROJECT) not in html and str(root) not in html
    assert all((moved / unquote(link)).exists() for link in links)

    before = html
    html = write_index(moved).read_text()
    # Only the link changes, and runs on the digits are in no figure.
    assert "lite/cifar10-seed1-652727f4/report.html" in html
    assert "lite/cifar10-seed0-9fbf37a8/notebook.ipynb" in html
    shutil.rmtree(moved / "lite")
    without_digits = write_index(moved).read_text()
    figures = re.compile('img src="([^"]+)" alt="([^"]+)"')
    assert figures.findall(before) == figures.findall(html) == figures.findall(without_digits)
    assert "digits" not in without_digits


def test_unreadable_folders_are_listed_as_text(page, root):
    folders = page.locator("details", has_text="could not be read")
    folders.locator("summary").click()
    text = folders.inner_text()
    assert "2 folders could not be read" in text
    assert "broken:" in text and "not JSON" in text
    assert "begun: has no run.json" in text
    assert "<script>alert(1)</script>" in page.locator("#experiments").inner_text()
    assert page.locator("em.failed").inner_text() == "failed"


@pytest.mark.browser
def test_teams_are_listed_by_claim_with_their_source(page):
    teams = page.locator("details", has_text="Table of the teams")
    teams.locator("summary").click()
    first = teams.locator("tbody tr").first
    assert first.inner_text().split()[:2] == ["class/yifei", "SE-ResNet"]
    assert "97.80" in first.inner_text() and "best on test" in first.inner_text()
    address = first.locator("a").get_attribute("href")
    assert address == "https://github.com/yifeihsu/DL25_Course_Project"


@pytest.mark.parametrize("kind", ["page", "folder", "named pipe"])
def test_index_of_the_user_is_not_replaced(tmp_path, kind):
    path = tmp_path / "index.html"
    if kind == "page":
        path.write_text("<html><title>My home page</title></html>")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(RunError, match=r"index\.html is not a leaderboard page; rename it"):
        write_index(tmp_path)
    assert (path.lstat().st_mode, path.lstat().st_size) == (before.st_mode, before.st_size)


def test_missing_folder_is_refused_and_not_created(tmp_path):
    with pytest.raises(RunError, match="is not a folder"):
        write_index(tmp_path / "outptus")
    assert not list(tmp_path.iterdir())
