"""The designer's bench, used as from the browser, and its notebook through papermill."""

import json
import re

import matplotlib.pyplot as plt
import papermill
import pytest
import yaml
from conftest import NOTEBOOKS, run_papermill

from resnetlib import explore, list_variants, load_experiment, plots, schema, size
from resnetlib.errors import ConfigError
from resnetlib.explore.widget import ArchitectureExplorer, budget_bar
from resnetlib.schema import Architecture

NOTEBOOK = NOTEBOOKS / "explore_architecture.ipynb"


@pytest.fixture
def bench():
    return ArchitectureExplorer("lite")


def html_of(widget):
    """All that a person would see of it as text in HTML, the unfolded included."""
    own = getattr(widget, "value", "")
    inner = [html_of(child) for child in getattr(widget, "children", ())]
    return "\n".join([own if isinstance(own, str) else "", *inner])


def message_of(bench):
    told = re.search(r'<div role="alert".*?>(.*?)<br>', html_of(bench))
    return told and told[1]


# The bench ---------------------------------------------------------------------------------------


def test_the_bench_starts_with_the_variant_and_shows_its_facts(bench):
    shown = html_of(bench)
    assert bench.architecture == load_experiment("lite").architecture
    assert "78,042" in shown and "12.5 million" in shown
    assert "within the budget, 4,921,958 left" in shown
    assert 'alt="3 basic blocks (1-1-1), 16-32-64 channels"' in shown
    assert message_of(bench) is None
    assert not plt.get_fignums()


@pytest.mark.parametrize("variant", list_variants())
def test_every_variant_can_be_started_from(bench, variant):
    bench.controls["start"].value = variant
    assert bench.architecture == load_experiment(variant).architecture
    assert bench.error == ""
    assert f"{bench.size.parameters:,}" in html_of(bench)


def test_a_change_shows_at_once(bench):
    bench.controls["depths"].value = "2, 1, 1"
    assert bench.architecture.depths == (2, 1, 1)
    shown = html_of(bench)
    assert (
        f"{size.measure_size(bench.architecture).parameters:,}" in shown and "78,042" not in shown
    )
    assert plots.describe_drawing(bench.architecture) in shown

    bench.controls["placement"].value = "block"
    bench.controls["reduction"].value = 4
    bench.controls["block"].value = "dropout"
    bench.controls["dropout"].value = 0.25
    bench.controls["conv_bias"].value = True
    assert bench.architecture == Architecture(
        block="dropout",
        depths=(2, 1, 1),
        widths=(16, 32, 64),
        conv_bias=True,
        dropout=0.25,
        squeeze_excitation={"placement": "block", "reduction": 4},
    )
    bench.controls["placement"].value = "none"
    bench.controls["block"].value = "preact"
    assert bench.error == ""
    assert bench.architecture.squeeze_excitation == schema.SqueezeExcitation()
    assert bench.controls["reduction"].disabled and bench.controls["dropout"].disabled


@pytest.mark.parametrize(
    ("control", "value", "told"),
    [
        ("depths", "x,1,1", "depths.0 = 'x': should be a whole number"),
        ("depths", "1,1", "depths has 2 stages and widths 3; give one value per stage"),
        ("depths", "", "depths has 0 stages"),
        ("depths", "0,0,0", "depths needs at least one block"),
        ("depths", "-1,1,1", "greater than or equal to 0"),
        ("widths", "16,0,64", "widths.1 = 0: should be greater than or equal to 1"),
        ("widths", "16,1e9,64", "networks of more than 65,536 channels"),
        ("widths", "999999999,1,1", "networks of more than 65,536 channels"),
        ("widths", "<script>,1,1", "widths.0 = '<script>'"),
    ],
)
def test_nonsense_is_told_in_one_line_and_the_last_network_stays(bench, control, value, told):
    before = bench.architecture
    bench.controls[control].value = value
    assert told in bench.error
    assert "\n" not in bench.error and "override" not in bench.error
    assert message_of(bench) and "<" not in message_of(bench)
    assert bench.architecture == before and "78,042" in html_of(bench)

    bench.controls[control].value = {"depths": "1,1,2", "widths": "8,8,8"}[control]
    assert (bench.error, message_of(bench)) == ("", None)
    assert bench.architecture != before


@pytest.mark.parametrize(("depths", "strides"), [("1,1,1,1", (2, 2, 2, 2)), ("1,1", (2, 2))])
def test_a_network_with_strides_of_its_own_can_have_more_stages_and_fewer(bench, depths, strides):
    bench.controls["start"].value = "laptop"
    assert bench.architecture == load_experiment("laptop").architecture
    bench.controls["depths"].value = depths
    bench.controls["widths"].value = depths.replace("1", "64")
    assert bench.error == ""
    assert bench.architecture.strides == strides


def test_being_over_the_budget_is_said_in_words(bench):
    bench.controls["start"].value = "resnet18"
    assert "OVER THE BUDGET by 6,173,962" in html_of(bench)
    assert "within the budget" in budget_bar(500, 500) and "width: 100.00%" in budget_bar(500, 500)
    assert "OVER" in budget_bar(501, 500)
    assert "OVER THE BUDGET by 77,042" in html_of(ArchitectureExplorer("lite", 1_000))


def test_a_mistake_in_the_call_is_refused_at_once():
    with pytest.raises(ConfigError, match="did you mean 'lite'"):
        ArchitectureExplorer("liet")
    with pytest.raises(ConfigError, match=r"budget = 0: give whole numbers from 1 up"):
        ArchitectureExplorer("lite", 0)


def test_what_is_unfolded_follows_the_network(bench):
    folds = bench.children[-1]
    titles = list(folds.titles)
    assert not any(child.value for child in folds.children)

    folds.selected_index = titles.index("Stage by stage")
    assert "64 × 8 × 8" in folds.children[folds.selected_index].value
    bench.controls["widths"].value = "16,32,72"
    assert "72 × 8 × 8" in folds.children[folds.selected_index].value

    folds.selected_index = titles.index("Summary table")
    assert f"Total params: {bench.size.parameters:,}" in folds.children[folds.selected_index].value
    bench.controls["widths"].value = "16,32,9000"
    assert "too many" in folds.children[folds.selected_index].value

    bench.controls["widths"].value = "16,32,64"
    folds.selected_index = titles.index("For params/<name>.yaml")
    content = re.search(r"<pre>(.*)</pre>", folds.children[folds.selected_index].value, re.DOTALL)
    assert yaml.safe_load(content[1])["architecture"]["widths"] == [16, 32, 64]
    assert yaml.safe_load(bench.yaml) == yaml.safe_load(content[1])

    folds.selected_index = titles.index("Beside the published networks")
    shown = folds.children[folds.selected_index].value
    assert "this design" in shown and all(variant in shown for variant in list_variants())
    assert not plt.get_fignums()


def test_all_designs_within_the_budget_are_found_from_the_bench():
    bench = ArchitectureExplorer("lite", budget=30_000)
    folds = bench.children[-1]
    folds.selected_index = folds.titles.index("All designs of this family within the budget")
    found = explore.search(bench.architecture, budget=30_000)
    shown = folds.children[folds.selected_index].value
    assert shown.startswith(f"{len(found):,} designs")
    assert f"{found['parameters'].max():,}" in shown


def test_where_widgets_are_not_drawn_the_bench_is_a_sentence(bench):
    assert (
        repr(bench)
        == "ArchitectureExplorer: 3 basic blocks (1-1-1), 16-32-64 channels (live in JupyterLab)"
    )


# The notebook ------------------------------------------------------------------------------------


def test_papermill_can_inspect_the_parameters():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["variant", "budget"]
    assert found["budget"]["default"] == "5000000"
    assert all(parameter["help"] for parameter in found.values())


def cells_after(folder, *words):
    """The cells of the notebook, run from a working directory that is not its own."""
    done = run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.ipynb").read_text())["cells"]


def outputs_of(cells):
    return {cell["id"]: cell["outputs"] for cell in cells if cell["cell_type"] == "code"}


def shown_by(outputs):
    """The text of a cell's outputs."""
    found = []
    for output in outputs:
        data = output.get("data", {})
        found += output.get("text", data.get("text/html", data.get("text/plain", [])))
    return "".join(found)


@pytest.mark.parametrize("variant", ["lite", "resnet18"])
def test_the_notebook_runs_in_batch_and_shows_everything(variant, tmp_path):
    outputs = outputs_of(cells_after(tmp_path, "-p", "variant", variant))
    assert not [o for all_of in outputs.values() for o in all_of if o.get("name") == "stderr"]
    pictures = {
        name
        for name, all_of in outputs.items()
        if any("image/png" in output.get("data", {}) for output in all_of)
    }
    assert pictures == {"diagram", "sizes"}
    architecture = load_experiment(variant).architecture
    parameters = f"{size.measure_size(architecture).parameters:,}"
    for cell in ("size", "summary", "published"):
        assert parameters in shown_by(outputs[cell]), cell
    assert "this design" in shown_by(outputs["published"])
    assert ("OVER THE BUDGET" in shown_by(outputs["size"])) == (variant == "resnet18")
    assert yaml.safe_load(shown_by(outputs["yaml"])) == yaml.safe_load(
        explore.to_yaml(architecture)
    )
    assert plots.describe_drawing(architecture) in "".join(
        outputs["explorer"][0]["data"]["text/plain"]
    )
