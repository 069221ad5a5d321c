"""The notebook analyze_errors under papermill, on a run of the digits and on the recorded lite."""

import nbformat
import papermill
import pytest
from conftest import NOTEBOOKS, recorded_lite
from traitlets.config import Config

from resnetlib import train

pytestmark = pytest.mark.slow

ANALYZE_ERRORS = NOTEBOOKS / "analyze_errors.ipynb"
# ipykernel otherwise warns of its unencrypted connection.
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}})


def executed(folder, **parameters):
    """The notebook, executed in a folder of its own."""
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


def text_of(cell_outputs):
    return "".join(
        part.get("text", "") + part.get("data", {}).get("text/html", "") for part in cell_outputs
    )


def figures_in(notebook):
    data = [part.get("data", {}) for parts in outputs(notebook).values() for part in parts]
    return sum("image/png" in part for part in data)


def assert_complete(notebook):
    """Every cell has at most one result, nothing on stderr, and every figure and table exists."""
    for name, parts in outputs(notebook).items():
        assert not [part for part in parts if part.get("name") == "stderr"], name
        assert len(parts) <= 1, name
    assert figures_in(notebook) == 9
    drops = text_of(outputs(notebook)["drops"])
    assert all(text in drops for text in ("noise", "13 points from severity", "trivial_augment"))
    assert "95 % interval" in text_of(outputs(notebook)["clean"])


def test_parameters_are_inspectable():
    found = papermill.inspect_notebook(str(ANALYZE_ERRORS))
    assert list(found) == ["run", "images", "data_root", "output_root"]
    assert all(parameter["default"] == "None" for parameter in found.values())
    assert all(parameter["help"] for parameter in found.values())


def test_notebook_analyzes_a_run_of_the_digits(tiny, tmp_path):
    run = train(tiny(epochs=2, widths=[8], holdout=100))
    notebook = executed(tmp_path / "cwd", output_root=tmp_path / "outputs", images=100)
    assert_complete(notebook)
    assert run.path.name in text_of(outputs(notebook)["run"])
    table = outputs(notebook)["temperature"][0]["data"]["text/html"]
    assert "fitted on 100 training images held out of this run" in table
    assert ">100<" in text_of(outputs(notebook)["clean"])
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["errors.ipynb"]


@pytest.mark.exhaustive
def test_notebook_analyzes_the_recorded_lite(cifar10_folder, tmp_path):
    lite = recorded_lite(0)
    notebook = executed(tmp_path / "cwd", run=lite.path, data_root=cifar10_folder, images=500)
    assert_complete(notebook)
    assert f"{lite.metrics['test_accuracy']:.2%}" in text_of(outputs(notebook)["run"])
    table = outputs(notebook)["temperature"][0]["data"]["text/html"]
    assert "fitted on each half of the test images for the other" in table


def test_notebook_refuses_a_run_without_weights(tmp_path):
    without = recorded_lite(1)
    with pytest.raises(papermill.PapermillExecutionError, match="has no weights"):
        executed(tmp_path / "cwd", run=without.path)
    left = nbformat.read(tmp_path / "cwd" / "errors.ipynb", as_version=4)
    parts = [part for parts in outputs(left).values() for part in parts]
    (error,) = [part for part in parts if part["output_type"] == "error"]
    assert len(error["traceback"]) == 1
    assert "outputs/reference/lite/cifar10-seed0" in error["traceback"][0].partition("weights: ")[2]
