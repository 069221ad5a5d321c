"""The notebook as its users run it: through papermill, on a run of the digits and on lite's."""

import nbformat
import papermill
import pytest
from conftest import NOTEBOOKS, recorded_lite
from traitlets.config import Config

from resnetlib import train

ANALYZE_ERRORS = NOTEBOOKS / "analyze_errors.ipynb"
# ipykernel otherwise warns of its unencrypted connection.
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}})


def executed(folder, **parameters):
    """The notebook run in a folder of its own, as an output path would have it."""
    folder.mkdir()
    return papermill.execute_notebook(
        str(ANALYZE_ERRORS),
        str(folder / "errors.ipynb"),
        parameters={name: str(value) for name, value in parameters.items() if name != "images"}
        | {"images": parameters.get("images")},
        cwd=str(folder),
        progress_bar=False,
        config=QUIET,
    )


def outputs(notebook):
    return {cell.get("id"): cell["outputs"] for cell in notebook.cells if "outputs" in cell}


def text_of(shown):
    return "".join(
        part.get("text", "") + part.get("data", {}).get("text/markdown", "") for part in shown
    )


def figures_in(notebook):
    data = [part.get("data", {}) for shown in outputs(notebook).values() for part in shown]
    return sum("image/png" in part for part in data)


def assert_whole(notebook):
    """Every cell shows one thing, nothing came over stderr, and the verdict is in words."""
    for name, shown in outputs(notebook).items():
        assert not [part for part in shown if part.get("name") == "stderr"], name
        assert len(shown) <= 1, name
    assert figures_in(notebook) == 9
    verdict = text_of(outputs(notebook)["verdict"])
    assert "costs most**" in verdict
    assert "One team lost 13 points" in verdict
    assert "What to try" in verdict


def test_papermill_can_inspect_the_parameters():
    found = papermill.inspect_notebook(str(ANALYZE_ERRORS))
    assert list(found) == ["run", "images", "data_root", "output_root"]
    assert all(parameter["default"] == "None" for parameter in found.values())
    assert all(parameter["help"] for parameter in found.values())


def test_a_run_of_the_digits_is_found_and_analysed(tiny, tmp_path):
    run = train(tiny(epochs=2, widths=[8], holdout=100))
    notebook = executed(tmp_path / "cwd", output_root=tmp_path / "outputs", images=100)
    assert_whole(notebook)
    assert run.path.name in text_of(outputs(notebook)["run"])
    table = outputs(notebook)["temperature"][0]["data"]["text/html"]
    assert "fitted on 100 training images held out of this run" in table
    assert "100 of them" in text_of(outputs(notebook)["verdict"])
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["errors.ipynb"]


def test_the_recorded_lite_is_analysed(cifar10_folder, tmp_path):
    lite = recorded_lite(0)
    notebook = executed(tmp_path / "cwd", run=lite.path, data_root=cifar10_folder, images=500)
    assert_whole(notebook)
    assert "81.95%" in text_of(outputs(notebook)["run"])
    table = outputs(notebook)["temperature"][0]["data"]["text/html"]
    assert "fitted on each half of the test images for the other" in table


def test_a_run_without_weights_stops_at_its_first_cell(tmp_path):
    without = recorded_lite(1)
    with pytest.raises(papermill.PapermillExecutionError, match="has no weights"):
        executed(tmp_path / "cwd", run=without.path)
    left = nbformat.read(tmp_path / "cwd" / "errors.ipynb", as_version=4)
    told = [part for shown in outputs(left).values() for part in shown]
    (error,) = [part for part in told if part["output_type"] == "error"]
    assert len(error["traceback"]) == 1
    assert "outputs/reference/lite/cifar10-seed0" in error["traceback"][0].partition("weights: ")[2]
