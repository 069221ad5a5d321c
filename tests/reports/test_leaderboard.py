"""The tables of all runs: README, terminal and LaTeX."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import PROJECT
from reports.recorded import LITE_ACCURACIES, LITE_RESULT, LITE_RUNS, copied, row_of, rows_of

from resnetlib import files, list_variants
from resnetlib.analysis.significance import SeedStatistics
from resnetlib.cli import main
from resnetlib.errors import ConfigError
from resnetlib.paths import params_folder
from resnetlib.reports import leaderboard
from resnetlib.reports.leaderboard import (
    BEGIN,
    END,
    experiments,
    format_accuracy,
    latex_table,
    markdown_table,
    own_recipes,
    results_table,
    text_table,
    with_table,
)
from resnetlib.reports.ranking import best_for_size, with_statistics
from resnetlib.runs.find import find_runs, reference_runs, split_unreadable
from resnetlib.runs.run import RECIPE_CAVEAT, load_run


def test_readme_table_equals_the_recorded_runs():
    readme = (PROJECT / "README.md").read_text()
    assert readme == with_table(readme, markdown_table(results_table(reference_runs())))


def test_first_table_of_the_readme_agrees_with_the_recorded_runs():
    readme = (PROJECT / "README.md").read_text()
    table = readme.partition("## What is trained\n")[2].partition("\nCIFAR-10 test set")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `") and "…" not in line]
    rows = {row["variant"]: row for row in results_table(reference_runs()) if row["runs"]}
    for line in lines:
        row = rows.pop(re.match(r"\| `(\w+)`", line)[1])
        mark = " †" if row["recipe_selected_on_test"] else ""
        accuracies = [
            format_accuracy(row["published"]),
            format_accuracy(row["reproduced"], row["spread"]),
        ]
        published, accuracy = [text if text == "–" else f"{text} %" for text in accuracies]
        cells = (f"`{row['variant']}`{mark}", f"{row['parameters']:,}", published, accuracy)
        assert line.startswith(f"| {' | '.join(cells)} | {row['runs']} | ")
    assert not rows


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
from pathlib import Path
from resnetlib import cli
cli.output_folder = lambda: Path(sys.argv[1])
cli.main(["list"])
"""


def test_list_needs_no_torch_pandas_or_matplotlib():
    listed = subprocess.run(
        [sys.executable, "-c", LIST, PROJECT / "outputs" / "reference"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(rf"\nlite +78,042 .* {LITE_RESULT} +{len(LITE_ACCURACIES)}\n", listed)


def test_nothing_is_claimed_of_runs_whose_variant_file_is_not_valid(tmp_path, monkeypatch):
    """Neither that they have the variant's own recipe, nor, in the README, that there are none."""
    folder = shutil.copytree(params_folder(), tmp_path / "params")
    text = (folder / "lite.yaml").read_text(encoding="utf-8")
    (folder / "lite.yaml").write_text(text + "nonsense: 1\n", encoding="utf-8")
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: folder)
    runs = [run for run in reference_runs() if run.record["variant"] in ("lite", "laptop")]
    rows = experiments(runs)
    assert {row["published"] for row in rows if row["variant"] == "lite"} == {None}
    assert {row["variant"] for row in own_recipes(rows) if row["runs"]} == {"laptop"}
    assert {run.has_own_recipe for run in runs if run.record["variant"] == "lite"} == {False}
    readme = shutil.copy(PROJECT / "README.md", tmp_path)
    before = Path(readme).read_bytes()
    with pytest.raises(ConfigError, match="unknown key 'nonsense'"):
        leaderboard.main(Path(readme))
    assert Path(readme).read_bytes() == before


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
