"""The recorded runs of `lite`, copies of them that say something else, and rows of tables."""

import shutil
import statistics

from conftest import PROJECT, history_with

from resnetlib import files, load_experiment
from resnetlib.runs.find import reference_runs
from resnetlib.runs.run import load_run

LITE = PROJECT / "outputs" / "reference" / "lite"
EVERY_LITE = [run for run in reference_runs() if run.record["variant"] == "lite"]
LITE_RUNS = [run for run in EVERY_LITE if run.has_own_recipe]
EARLIER_RUNS = [run for run in EVERY_LITE if not run.has_own_recipe]  # without augmentation
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


def rows_of(table, variant, key=None):
    """The rows of a variant; by the value of this key where it is given."""
    rows = [row for row in table if row["variant"] == variant]
    return {row[key]: row for row in rows} if key else rows


def row_of(table, variant):
    (row,) = rows_of(table, variant)
    return row
