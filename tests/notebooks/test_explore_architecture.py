"""The architecture explorer, used as in the browser, and its notebook through papermill."""

import re

import matplotlib.pyplot as plt
import papermill
import pytest
import yaml
from conftest import NOTEBOOKS, outputs_of, run_papermill, text_of, with_figure, with_warning

from resnetlib import explore, list_variants, load_experiment, paths, plots, schema, size
from resnetlib.errors import ConfigError
from resnetlib.explore.widget import ArchitectureExplorer, budget_bar
from resnetlib.schema import Architecture

pytestmark = pytest.mark.slow

NOTEBOOK = NOTEBOOKS / "explore_architecture.ipynb"


@pytest.fixture
def explorer():
    return ArchitectureExplorer("lite")


def html_of(widget):
    """The HTML of a widget and of all widgets inside."""
    own = getattr(widget, "value", "")
    inner = [html_of(child) for child in getattr(widget, "children", ())]
    return "\n".join([own if isinstance(own, str) else "", *inner])


def message_of(explorer):
    found = re.search(r'<div role="alert".*?>(.*?)<br>', html_of(explorer))
    return found and found[1]


# The explorer ------------------------------------------------------------------------------------


def test_explorer_starts_with_the_variant(explorer):
    html = html_of(explorer)
    assert explorer.architecture == load_experiment("lite").architecture
    assert "78,042" in html and "12.5 million" in html
    assert "within the budget, 4,921,958 left" in html
    assert 'alt="3 basic blocks (1-1-1), 16-32-64 channels"' in html
    assert message_of(explorer) is None
    assert not plt.get_fignums()


@pytest.mark.parametrize("variant", list_variants())
def test_explorer_starts_from_every_variant(explorer, variant):
    explorer.controls["start"].value = variant
    assert explorer.architecture == load_experiment(variant).architecture
    assert explorer.error == ""
    assert f"{explorer.size.parameters:,}" in html_of(explorer)


def test_explorer_starts_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_experiment("se").to_yaml())
    for variant in (path, str(path)):
        explorer = ArchitectureExplorer(variant)
        assert explorer.architecture == load_experiment("se").architecture
        explorer.controls["start"].value = "lite"
        assert explorer.architecture == load_experiment("lite").architecture


def test_explorer_keeps_what_has_no_control(tmp_path, monkeypatch):
    params = tmp_path / "params"
    params.mkdir()
    content = yaml.safe_load(load_experiment("lite").to_yaml())
    content = {key: content[key] for key in ("title", "source", "recipe")}
    architecture = {
        "block": "bottleneck",
        "depths": [1, 2],
        "widths": [16, 32],
        "activation": ["relu", "relu", "leaky_relu"],
        "dropout": 0.1,
        "dropout_unit": "values",
        "squeeze_excitation": {"placement": "addition", "bias": False, "blocks": [2]},
    }
    content |= {"variant": "rich", "architecture": architecture}
    (params / "rich.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    explorer = ArchitectureExplorer("rich")
    assert (explorer.architecture, explorer.error) == (Architecture(**architecture), "")
    titles = list(explorer._folds.titles)
    explorer._folds.selected_index = titles.index("All designs of this family within the budget")
    assert "squeeze_excitation.blocks is set for single" in html_of(explorer)
    explorer.controls["placement"].value = "none"
    assert explorer.architecture.squeeze_excitation == schema.SqueezeExcitationConfig()


def test_explorer_displays_a_change_at_once(explorer):
    explorer.controls["depths"].value = "2, 1, 1"
    assert explorer.architecture.depths == (2, 1, 1)
    html = html_of(explorer)
    assert f"{explorer.size.parameters:,}" in html and "78,042" not in html
    assert plots.describe_drawing(explorer.architecture) in html

    explorer.controls["placement"].value = "block"
    explorer.controls["reduction"].value = 4
    explorer.controls["block"].value = "dropout"
    explorer.controls["dropout"].value = 0.25
    explorer.controls["conv_bias"].value = True
    assert explorer.architecture == Architecture(
        block="dropout",
        depths=(2, 1, 1),
        widths=(16, 32, 64),
        conv_bias=True,
        dropout=0.25,
        squeeze_excitation={"placement": "block", "reduction": 4},
    )
    explorer.controls["placement"].value = "none"
    explorer.controls["block"].value = "preact"
    assert explorer.error == ""
    assert explorer.architecture.squeeze_excitation == schema.SqueezeExcitationConfig()
    assert explorer.controls["reduction"].disabled and explorer.controls["dropout"].disabled


@pytest.mark.parametrize(
    ("control", "value", "message"),
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
def test_explorer_keeps_the_network_on_a_mistake(explorer, control, value, message):
    before = explorer.architecture
    explorer.controls[control].value = value
    assert message in explorer.error
    assert "\n" not in explorer.error and "override" not in explorer.error
    assert message_of(explorer) and "<" not in message_of(explorer)
    assert explorer.architecture == before and "78,042" in html_of(explorer)

    explorer.controls[control].value = {"depths": "1,1,2", "widths": "8,8,8"}[control]
    assert (explorer.error, message_of(explorer)) == ("", None)
    assert explorer.architecture != before


@pytest.mark.parametrize(("depths", "strides"), [("1,1,1,1", (2, 2, 2, 2)), ("1,1", (2, 2))])
def test_explorer_changes_the_number_of_stages(explorer, depths, strides):
    explorer.controls["start"].value = "laptop"
    assert explorer.architecture == load_experiment("laptop").architecture
    explorer.controls["depths"].value = depths
    explorer.controls["widths"].value = depths.replace("1", "64")
    assert explorer.error == ""
    assert explorer.architecture.strides == strides


def test_explorer_refuses_a_budget_that_is_no_number():
    with pytest.raises(ConfigError, match="budget = 'none': give whole numbers"):
        ArchitectureExplorer("lite", "none")


def test_budget_bar_says_over_the_budget(explorer):
    explorer.controls["start"].value = "resnet18"
    assert "OVER THE BUDGET by 6,173,962" in html_of(explorer)
    assert "within the budget" in budget_bar(500, 500) and "width: 100.00%" in budget_bar(500, 500)
    assert "OVER" in budget_bar(501, 500)
    assert "OVER THE BUDGET by 77,042" in html_of(ArchitectureExplorer("lite", 1_000))


def test_explorer_refuses_a_wrong_argument():
    with pytest.raises(ConfigError, match="did you mean 'lite'"):
        ArchitectureExplorer("liet")
    with pytest.raises(ConfigError, match=r"budget = 0: give whole numbers from 1 up"):
        ArchitectureExplorer("lite", 0)


def test_explorer_pages_follow_the_network(explorer):
    folds = explorer.children[-1]
    titles = list(folds.titles)
    assert not any(child.value for child in folds.children)

    folds.selected_index = titles.index("Stage by stage")
    assert "64 × 8 × 8" in folds.children[folds.selected_index].value
    explorer.controls["widths"].value = "16,32,72"
    assert "72 × 8 × 8" in folds.children[folds.selected_index].value

    folds.selected_index = titles.index("Summary table")
    assert (
        f"Total params: {explorer.size.parameters:,}" in folds.children[folds.selected_index].value
    )
    explorer.controls["widths"].value = "16,32,9000"
    assert "too many" in folds.children[folds.selected_index].value

    explorer.controls["widths"].value = "16,32,64"
    folds.selected_index = titles.index("For params/<name>.yaml")
    content = re.search(r"<pre>(.*)</pre>", folds.children[folds.selected_index].value, re.DOTALL)
    assert yaml.safe_load(content[1])["architecture"]["widths"] == [16, 32, 64]
    assert yaml.safe_load(explorer.yaml) == yaml.safe_load(content[1])

    folds.selected_index = titles.index("Beside the variants of params/")
    html = folds.children[folds.selected_index].value
    assert "this design" in html and all(variant in html for variant in list_variants())
    assert not plt.get_fignums()


def test_explorer_lists_the_designs_of_a_search():
    explorer = ArchitectureExplorer("lite", budget=30_000)
    folds = explorer.children[-1]
    folds.selected_index = folds.titles.index("All designs of this family within the budget")
    found = explore.search(explorer.architecture, budget=30_000)
    html = folds.children[folds.selected_index].value
    assert html.startswith(f"{len(found):,} designs")
    assert f"{found['parameters'].max():,}" in html


def test_explorer_repr_is_a_sentence(explorer):
    assert (
        repr(explorer)
        == "ArchitectureExplorer: 3 basic blocks (1-1-1), 16-32-64 channels (live in JupyterLab)"
    )


# The notebook ------------------------------------------------------------------------------------


def test_papermill_inspects_the_parameters():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["variant", "budget"]
    assert found["budget"]["default"] == "5000000"
    assert all(parameter["help"] for parameter in found.values())


@pytest.mark.parametrize(
    "variant",
    [
        "lite",
        *(pytest.param(v, marks=pytest.mark.exhaustive) for v in ("resnet18", "class/coconut")),
    ],
)
def test_explore_architecture_runs_in_batch(variant, tmp_path):
    done = run_papermill(NOTEBOOK, "out.ipynb", "-p", "variant", variant, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = outputs_of(tmp_path / "out.ipynb")
    assert not with_warning(cells)
    assert with_figure(cells) == {"diagram", "sizes", "class-claims"}
    architecture = load_experiment(variant).architecture
    parameters = f"{size.measure_size(architecture).parameters:,}"
    for cell in ("size", "summary", "published"):
        assert parameters in text_of(cells[cell]), cell
    assert "this design" in text_of(cells["published"])
    assert ("OVER THE BUDGET" in text_of(cells["size"])) == (variant == "resnet18")
    assert yaml.safe_load(text_of(cells["yaml"])) == yaml.safe_load(explore.to_yaml(architecture))
    described = plots.describe_drawing(architecture)[:60]  # a long one is shortened
    assert described in cells["explorer"][0]["data"]["text/plain"]
