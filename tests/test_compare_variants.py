"""Two runs side by side: choosing them, what is said of them, and the notebook both ways."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
from conftest import NOTEBOOKS, run_papermill
from nbclient import NotebookClient

from resnetlib import analysis, load_experiment, train
from resnetlib.errors import ConfigError, RunError
from resnetlib.plots.leaderboard import overlaid_curves
from resnetlib.runs.find import reference_runs

NOTEBOOK = NOTEBOOKS / "compare_variants.ipynb"
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


def copied(folder, place, **changes):
    """A copy of a run folder whose record says something else."""
    shutil.copytree(folder, place)
    record = json.loads((place / "run.json").read_text()) | changes
    (place / "run.json").write_text(json.dumps(record))
    return place


def names(root, *chosen, **settings):
    return analysis.select(*chosen, output_root=root, **settings).pair.names


# Choosing ----------------------------------------------------------------------------------------


def test_what_is_not_given_is_found(outputs):
    assert names(outputs) == ("lite seed 1", "se seed 0")  # the newest, then another recipe's
    assert names(outputs, "lite") == ("lite seed 0", "se seed 0")
    assert names(outputs, None, "se") == ("lite seed 1", "se seed 0")


def test_a_run_is_meant_by_variant_label_or_folder(outputs):
    assert names(outputs, "lite", "se") == ("lite seed 0", "se seed 0")
    assert names(outputs, "lite", "lite") == ("lite seed 0", "lite seed 1")
    (folder,) = (outputs / "se").iterdir()
    assert names(outputs, "lite seed 1", str(folder)) == ("lite seed 1", "se seed 0")


def test_a_run_elsewhere_joins_by_its_folder(outputs):
    (folder,) = (outputs / "se").iterdir()
    assert names(outputs / "lite", "lite", str(folder)) == ("lite seed 0", "se seed 0")


def test_runs_of_one_seed_are_told_apart_by_what_they_change(outputs, tmp_path):
    (plain,) = (outputs / "se").iterdir()
    overrides = json.loads((plain / "run.json").read_text())["overrides"]
    copied(plain, tmp_path / "a")
    copied(plain, tmp_path / "b", overrides=overrides | {"recipe.optimizer.lr": 0.05}, started="x")
    assert set(analysis.finished_runs(tmp_path)) == {"se seed 0", "se seed 0, lr 0.05"}


@pytest.mark.parametrize(
    ("chosen", "error", "told"),
    [
        (("liet",), ConfigError, "'liet' is no run folder.*; did you mean 'lite'"),
        (("dropout",), ConfigError, "'dropout' is no run folder.*\nThere are .*: lite, se"),
        (("lite seed 1", "lite seed 1"), RunError, "lite seed 1 is chosen twice"),
        ((None, None, "cifar10"), RunError, "no two finished runs of cifar10: train another"),
    ],
)
def test_a_choice_that_cannot_be_is_told_in_a_line_or_two(outputs, chosen, error, told):
    first, second, dataset = (*chosen, None, None)[:3]
    with pytest.raises(error, match=told):
        analysis.select(first, second, dataset=dataset, output_root=outputs)


def test_one_run_alone_has_nothing_beside_it(outputs):
    with pytest.raises(RunError, match="holds no two finished runs of one data set: train another"):
        analysis.select(output_root=outputs / "se")
    with pytest.raises(RunError, match="no other finished run to compare se seed 0 with"):
        analysis.select("se", output_root=outputs / "se")


def test_runs_on_different_test_sets_are_refused(outputs):
    elsewhere = str(reference_runs()[0].path)
    with pytest.raises(RunError, match=r"different test sets \(450 and 10,000 images\)"):
        analysis.select("lite seed 1", elsewhere, output_root=outputs)


def test_an_unfinished_run_is_refused_by_folder_and_not_listed(outputs, tmp_path):
    (folder,) = (outputs / "se").iterdir()
    broken = copied(folder, tmp_path / "broken", status="interrupted")
    assert analysis.finished_runs(tmp_path) == {}
    with pytest.raises(RunError, match="interrupted; only finished runs"):
        analysis.select("lite", str(broken), output_root=outputs)


# What is said ------------------------------------------------------------------------------------


def test_images_that_one_alone_gets_right_come_with_both_predictions(outputs, digits):
    pair = analysis.select("lite", "se", output_root=outputs).pair
    found = 0
    for name, other in (pair.names, pair.names[::-1]):
        images, captions, title = pair.only_correct(name)
        right, wrong = (pair.runs[label].evaluation for label in (name, other))
        alone = np.flatnonzero(right.correct & ~wrong.correct)
        assert len(images) == len(captions) == min(16, len(alone))
        assert f"✓ {name} right, ✗ {other} wrong" in title
        found += len(alone)
        for image, caption in zip(images, captions, strict=True):
            (at,) = [i for i in alone if (digits.test[0][i] == image).all()]
            true, correct, mistaken = caption.splitlines()
            assert true == str(int(right.labels[at]))
            assert (
                correct.startswith(f"✓ {int(right.predictions[at])} ") and f"✓ {true} " in correct
            )
            assert mistaken.startswith(f"✗ {int(wrong.predictions[at])} ")
    assert found == pair.comparison.only_first + pair.comparison.only_second > 0


def test_two_seeds_of_one_recipe_say_nothing_of_a_design():
    pair = analysis.select("lite seed 1", "lite seed 0").pair
    assert "lite seed 1 is better than lite seed 0 by 1.40 points" in pair.verdict
    assert "Both come from one recipe" in pair.verdict
    seeds = sum(run.record["variant"] == "lite" for run in reference_runs())
    assert f"(n = {seeds})" in pair.recipes


def test_the_curves_of_two_seeds_are_told_apart():
    axes = overlaid_curves(analysis.select("lite", "lite").pair.histories)
    lines = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(set(lines)) == len(axes.get_legend().get_texts()) == 2
    plt.close(axes.figure)


def test_recipes_are_compared_over_their_seeds(outputs):
    pair = analysis.select("lite", "se", output_root=outputs).pair
    assert "Both come from one recipe" not in pair.verdict
    assert pair.recipes.startswith(
        "Whether one recipe is better cannot be told: only one seed of se"
    )
    assert "lite: " in pair.recipes and "(n = 2)" in pair.recipes


def test_every_run_is_set_beside_the_first(outputs):
    pair = analysis.select("se", "lite", output_root=outputs).pair
    assert set(pair.differences.index) == {"lite seed 0", "lite seed 1"}
    page = pair.table.to_html()
    parameters = pair.runs["se seed 0"].metrics["parameters"]
    assert all(text in page for text in ("lite seed 1", "se seed 0", f"{parameters:,}", "p (Holm)"))
    own = pair.differences.loc["lite seed 0", "difference"]
    accuracies = [pair.runs[name].evaluation.accuracy for name in ("lite seed 0", "se seed 0")]
    assert own == pytest.approx(accuracies[0] - accuracies[1])


# The notebook ------------------------------------------------------------------------------------


def told(outputs):
    """All text of a cell's outputs."""
    return "".join(
        part if isinstance(part, str) else "".join(part)
        for output in outputs
        for part in [output.get("text") or output.get("data", {}).get("text/plain", "")]
    )


def test_papermill_can_inspect_the_parameters():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["first", "second", "dataset", "output_root", "data_root"]
    assert all(p["inferred_type_name"] == "str" and p["help"] for p in found.values())


def test_in_batch_it_compares_the_recorded_runs(cifar10_folder, tmp_path):
    words = ["-p", "first", "lite", "-p", "second", "lite"]
    done = run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    shown = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    text = told(shown)
    assert "lite seed 0 against lite seed 1" in text
    assert "Distinguishable on these 10,000 images: lite seed 1 is better than lite seed 0" in text
    assert "Both come from one recipe" in text
    assert "widgets" not in notebook["metadata"]  # a report shows it without any network
    assert (tmp_path / "out.ipynb").stat().st_size < 2_000_000


def test_another_choice_in_a_list_or_by_call_changes_what_is_shown(outputs):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source += f"\nfirst, second, output_root = 'lite', 'se', {str(outputs)!r}"
    steps = [
        'selection.lists[0].value = "lite seed 1"',
        'selection.lists[1].value = "lite seed 1"',
        'selection.choose("se", "lite")\n[box.value for box in selection.lists]',
    ]
    notebook.cells += [nbformat.v4.new_code_cell(step) for step in steps]
    *cells, listed, twice, called = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    client = NotebookClient(notebook, timeout=120)

    def run(*some):
        for cell in some:
            client.execute_cell(cell, notebook.cells.index(cell))
        shows = [cell for cell in code if "selection.show(" in cell.source]
        figures = [cell.outputs[0].data.get("image/png") for cell in shows]
        assert all(len(cell.outputs) == 1 for cell in shows)
        return shows[0].outputs[0].data["text/plain"], figures

    with client.setup_kernel():
        verdict, figures = run(*code)
        assert re.search(r"lite seed 0 .*se seed 0|se seed 0 .*lite seed 0", verdict)
        changed, others = run(listed)
        assert "lite seed 1" in changed and "lite seed 0" not in changed
        drawn = [i for i, figure in enumerate(figures) if figure]
        assert len(drawn) == 5
        assert all(figures[i] != others[i] for i in drawn)
        refused, nothing = run(twice)
        assert refused == "lite seed 1 is chosen twice; choose another run beside it"
        assert not any(nothing)
        verdict, figures = run(called)
        assert "se seed 0" in verdict and "lite seed 0" in verdict and any(figures)
        assert told(called.outputs) == "['se seed 0', 'lite seed 0']"
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if "ename" in o]
